package protocol_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

const canary = "a secret value"

// shape derives a reply from bytes, of the types that go-redis returns.
func shape(data []byte) (reply any, rest []byte) {
	if len(data) == 0 {
		return nil, nil
	}
	kind, rest := data[0], data[1:]
	switch kind % 8 {
	case 0:
		return nil, rest
	case 1:
		return int64(int8(kind)), rest
	case 2: // a number in a text
		n := min(len(rest), 9)
		var v int64
		for _, b := range rest[:n] {
			v = v<<8 | int64(b)
		}
		return strconv.FormatInt(v, 10), rest[n:]
	case 3, 4:
		words := []string{"value", "large", "leased", "wait", "failed", "stored", "lost", "", canary, "e" + canary, "-1", "1e15", "99999999999999999999"}
		return words[int(kind>>3)%len(words)], rest
	case 5: // a number of any size
		n := min(len(rest), 8)
		var v int64
		for _, b := range rest[:n] {
			v = v<<8 | int64(b)
		}
		return v, rest[n:]
	case 6:
		n := min(int(kind>>3), len(rest))
		return string(rest[:n]), rest[n:]
	}
	list := make([]any, kind>>3%7)
	for i := range list {
		list[i], rest = shape(rest)
	}
	return list, rest
}

// FuzzReplies parses replies of any shape. Each is parsed, or fails with an error that does not
// contain the reply.
func FuzzReplies(f *testing.F) {
	for _, word := range []byte{3, 11, 19, 27, 35, 43, 51} { // value, large, leased, wait, failed, stored, lost
		for items := range byte(6) {
			f.Add(append([]byte{items<<3 | 7, word}, "\x02\x00\x00\x00\x00\x00\x00\x00\x01\x05\x7f\xff\xff\xff\xff\xff\xff\xff\x02\xff\xff\xff\xff\xff\xff\xff\xff"...))
		}
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		reply, _ := shape(data)
		a, err := protocol.ParseAcquired(reply)
		wantNotTold(t, err)
		if a.Left < 0 || a.Left > 200*365*24*time.Hour {
			t.Errorf("%v: a wait of %v", reply, a.Left)
		}
		_, err = protocol.ParseFilled(reply)
		wantNotTold(t, err)
		lock, err := protocol.ParseLockAnswer(reply)
		wantNotTold(t, err)
		if lock.Left < 0 || lock.Left > 200*365*24*time.Hour {
			t.Errorf("%v: a wait of %v", reply, lock.Left)
		}
		if _, bad := strconv.ParseInt(lock.Ticket, 10, 64); err == nil && !lock.Held && bad != nil {
			t.Errorf("%v: ticket %q", reply, lock.Ticket)
		}
	})
}

func wantNotTold(t *testing.T, err error) {
	t.Helper()
	if err != nil && strings.Contains(err.Error(), canary) {
		t.Errorf("the error contains the reply: %v", err)
	}
}

// A lister records the commands and answers none.
type lister struct{ sent [][]any }

func (l *lister) Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error {
	return l.Do(ctx, within, cmd)
}

func (*lister) Each(context.Context, time.Duration, []redis.Cmder) []error           { panic("not called") }
func (*lister) Failed(_ context.Context, _ string, _ time.Duration, err error) error { return err }

func (l *lister) Do(_ context.Context, _ time.Duration, cmds ...redis.Cmder) error {
	for _, cmd := range cmds {
		l.sent = append(l.sent, cmd.Args())
	}
	return nil
}

// FuzzDurations sends every duration that the options accept. Each is sent in ms, and never as 0 or a
// negative number: Redis would delete the key.
func FuzzDurations(f *testing.F) {
	for _, d := range []time.Duration{time.Millisecond, time.Millisecond + 1, 2*time.Millisecond - 1, 10 * time.Millisecond, time.Second, 200 * 365 * 24 * time.Hour} {
		f.Add(int64(d))
	}
	f.Fuzz(func(t *testing.T, n int64) {
		d := time.Duration(n)
		const longest = 200 * 365 * 24 * time.Hour // a TTL and StaleWhileRevalidate
		if d < time.Millisecond || d > longest {
			return // options.go refuses it
		}
		to := &lister{}
		c := protocol.NewClient(to, protocol.NewNamespace("p", ""), "process", time.Second, false)
		k := protocol.NewNamespace("p", "").Key("k")
		h := envelope.Header{Kind: envelope.Value, Fresh: d, Keep: d}
		sealed := envelope.Seal(h, nil)
		ctx := t.Context()
		_, _ = c.Acquire(ctx, k, "o.1", d, nil)
		_, _ = c.Fill(ctx, protocol.Lease{Key: k, Owner: "o.1", Fence: 1}, sealed, d)
		_ = c.Set(ctx, k, "o.1", sealed, d)
		_, _ = c.Renew(ctx, protocol.Lease{Key: k, Owner: "o.1"}, d)
		_ = c.Mark(ctx, k, "o.2", d)
		_, _ = c.ReleaseFailed(ctx, protocol.Lease{Key: k, Owner: "o.1", Fence: 1}, protocol.Failure{Class: protocol.FetchTimeout}, protocol.Sharing{Lasts: d})
		for _, args := range to.sent {
			if !hasMillis(args, d) {
				t.Errorf("%v was sent as %v", d, args)
			}
		}
		if d >= 10*time.Millisecond {
			l := protocol.NewNamespace("p", "").Lock("n")
			to.sent = nil
			_, _ = c.AcquireLock(ctx, l, protocol.LockRequest{Owner: "o.1", Lease: d, Slots: 1})
			_, _ = c.RenewLock(ctx, l, protocol.LockRequest{Owner: "o.1", Lease: d, Slots: 1})
			for _, args := range to.sent {
				if !hasMillis(args, d+time.Second) { // the key of a lock lasts for another second
					t.Errorf("%v was sent as %v", d, args)
				}
			}
		}
		if got, err := envelope.Open(sealed, 0); err != nil || got.Fresh != d.Truncate(time.Millisecond) || got.Keep != got.Fresh {
			t.Errorf("%v came back as %v and %v, %v", d, got.Fresh, got.Keep, err)
		}
	})
}

func hasMillis(args []any, d time.Duration) bool {
	for _, arg := range args {
		if n, ok := arg.(int64); ok && n == int64(d/time.Millisecond) && n > 0 {
			return true
		}
	}
	return false
}
