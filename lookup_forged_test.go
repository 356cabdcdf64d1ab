package fetchonce_test

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// Another client removes the TTL of a value in Redis. The value expires by the TTL in its envelope.
func TestValueWithoutARedisTTLExpires(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		opt := aging(func(opt *options) { opt.NotFoundTTL = time.Minute })
		for name, found := range map[string]testkit.Reply{
			"a value":       {Value: "v"},
			"a large value": {Value: strings.Repeat("v", 100_000)},
			"an absence":    {Err: fetchonce.ErrNotFound},
		} {
			for _, again := range []bool{false, true} { // by a Loader that knows the server's clock, and by a new one
				o := testkit.NewOrigin(t)
				l := newLoader(t, r, opt)
				g := testkit.Get(t, t.Context(), l, "k", o)
				o.Next().Answer <- found
				_ = g.Outcome()
				if err := rdb.Persist(t.Context(), "test:v:{k}").Err(); err != nil {
					t.Fatal(err)
				}
				if again {
					l = newLoader(t, r, opt)
				}
				time.Sleep(time.Minute + 30*time.Second)
				_ = testkit.Get(t, t.Context(), l, "k", o).Outcome()
				o.Want(1)
				time.Sleep(time.Minute)
				if _, err := l.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
					t.Errorf("%s: Peek = %v, want %v", name, err, fetchonce.ErrNotFound)
				}
				g = testkit.Get(t, t.Context(), l, "k", o)
				o.Next().Returns("new")
				g.Want("new")
				if err := l.Delete(t.Context(), "k"); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// A process's clock is two hours wrong. The server's clock decides that a value is still fresh.
func TestWrongClockDoesNotFetchAFreshValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		for _, size := range []int{1, 100_000} {
			value := strings.Repeat("v", size)
			r.SetTime(time.Now().Add(-2 * time.Hour))
			o := testkit.NewOrigin(t)
			opt := aging(func(*options) {})
			g := testkit.Get(t, t.Context(), newLoader(t, r.Backend(), opt), "k", o)
			o.Next().Returns(value)
			g.Want(value)
			rdb := r.Client()
			l := testkit.LoaderOf(t, rdb, opt)
			for range 3 {
				testkit.Get(t, t.Context(), l, "k", o).Want(value)
			}
			o.Want(1)
			if n := testkit.Scripts(rdb); n > 1 {
				t.Errorf("%d scripts for 3 hits, want 1, which reads the server's clock", n)
			}
			if err := l.Delete(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestForgedFailureIsNotReturned(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, rdb := newLoader(t, r), r.Client()
		if err := rdb.HSet(t.Context(), "test:m:{k}", "e", "eforged", "f", "1").Err(); err != nil {
			t.Fatal(err)
		}
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("v")
		g.Want("v")
	})
}

func TestForeignMarkDoesNotStopAnUpdate(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		for _, policy := range []fetchonce.Policy{fetchonce.FailOpen, fetchonce.FailClosed} {
			o := testkit.NewOrigin(t)
			l, rdb := newLoader(t, r, func(opt *options) { opt.OnRedisDown = policy }), r.Client()
			if err := l.Set(t.Context(), "k", "old"); err != nil {
				t.Fatal(err)
			}
			if err := rdb.Set(t.Context(), "test:u:{k}", "foreign", 0).Err(); err != nil {
				t.Fatal(err)
			}
			written := false
			err := l.Update(t.Context(), "k", func(context.Context) error {
				written = true
				return nil
			})
			if err != nil || !written {
				t.Errorf("Update = %v, written: %v; want nil, true", err, written)
			}
			g := testkit.Get(t, t.Context(), l, "k", o)
			o.Next().Returns("new")
			g.Want("new")
		}
	})
}

// publishForged publishes a message about a key to all processes, with any fence.
func publishForged(t *testing.T, r backend, kind byte, fence int64, body string) {
	t.Helper()
	rdb, name := testkit.Admin(r), "test:v:{k}"
	message := binary.BigEndian.AppendUint64([]byte{kind}, uint64(fence))
	message = append(append(binary.AppendUvarint(message, uint64(len(name))), name...), body...)
	channels := rdb.PubSubChannels(t.Context(), "test:b:*").Val()
	if len(channels) == 0 {
		t.Error("no process is subscribed")
	}
	for _, channel := range channels {
		if err := rdb.Publish(t.Context(), channel, message).Err(); err != nil {
			t.Error(err)
		}
	}
	synctest.Wait()
}

// Another client publishes a failure or a value with a fence that is not the lease's. The waiter
// still waits.
func TestForgedFenceReachesNoWaiter(t *testing.T) {
	for _, kind := range []byte{'E', 'V'} {
		inBubble(t, func(t *testing.T, r backend) {
			opt := aging(func(opt *options) { opt.StaleIfError = 2 * time.Hour })
			holder, waiter := newLoader(t, r, opt), newLoader(t, r, opt)
			_ = holder.Set(t.Context(), "k", "old")
			time.Sleep(61 * time.Second)
			o := testkit.NewOrigin(t)
			first := testkit.Get(t, t.Context(), holder, "k", o)
			call := o.Next()
			second := testkit.Get(t, t.Context(), waiter, "k", o)
			testkit.AwaitWaiters(t, r, "k", 1)
			synctest.Wait()
			for _, fence := range []int64{1 << 62, time.Now().Add(time.Hour).UnixMicro()} {
				publishForged(t, r, kind, fence, "echosen\n\x1b[31mtext")
				if second.Returned() {
					t.Fatalf("a forged %c with the fence %d ended a Get", kind, fence)
				}
			}
			call.Returns("new")
			first.Want("new")
			second.Want("new")
		})
	}
}

// A failure that another process publishes is one printable line.
func TestFailureOfAnotherProcessIsOneLine(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		holder, waiter := newLoader(t, r), newLoader(t, r)
		o := testkit.NewOrigin(t)
		first := testkit.Get(t, t.Context(), holder, "k", o)
		call := o.Next()
		second := testkit.Get(t, t.Context(), waiter, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		boom := errors.New("down\n\x1b[31mlevel=ERROR \u202emsg=forged")
		call.Fails(boom)
		first.WantErr(boom)
		var ours *fetchonce.Error
		want := `down\n\x1b[31mlevel=ERROR \u202emsg=forged`
		if out := second.Outcome(); !errors.As(out.Err, &ours) || ours.Err.Error() != want {
			t.Errorf("Get = %v, want the text %s", out.Err, want)
		}
	})
}
