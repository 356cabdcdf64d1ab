package protocol_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestUnknownScriptCostsOneMoreRoundTrip(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		w := redistest.WireOf(p.rdb)
		want := func(what string, do func(), commands ...string) {
			t.Helper()
			w.Reset()
			do()
			trips := len(commands)
			if commands[0] == "SET" {
				trips /= 2
			}
			if got := w.Commands(); !slices.Equal(got, commands) || w.RoundTrips() != trips {
				t.Errorf("%s: sent %v in %d round trips, want %v in %d", what, got, w.RoundTrips(), commands, trips)
			}
		}
		large := sized(0, protocol.StageAbove+1)
		set := func() { p.must(p.Set(t.Context(), key, p.owner(), large, ttl)) }
		invalidate := func() { p.must(p.Invalidate(t.Context(), key)) }
		for range 2 {
			want("the first time", invalidate, "EVALSHA", "EVAL")
			want("the second time", invalidate, "EVALSHA")
			want("a large value, the first time", set, "SET", "EVALSHA", "SET", "EVAL")
			want("a large value, the second time", set, "SET", "EVALSHA")
			nodes(t, p.rdb, func(ctx context.Context, rdb *redis.Client) error { return rdb.ScriptFlush(ctx).Err() })
		}
	})
}

// operations are all operations of a Client. Each returns its result.
var operations = map[string]func(ctx context.Context, c *protocol.Client) (any, error){
	"Get": func(ctx context.Context, c *protocol.Client) (any, error) {
		b, err := c.Get(ctx, key, 100)
		return string(b), err
	},
	"Acquire": func(ctx context.Context, c *protocol.Client) (any, error) {
		a, err := c.Acquire(ctx, key, "p.1", lease, nil)
		return a.State, err
	},
	"Fill": func(ctx context.Context, c *protocol.Client) (any, error) {
		f, err := c.Fill(ctx, leaseOf("holder.1", 7), seal(7, 1), ttl)
		return f.Stored, err
	},
	"a large Fill": func(ctx context.Context, c *protocol.Client) (any, error) {
		f, err := c.Fill(ctx, leaseOf("holder.1", 7), sized(7, protocol.StageAbove+1), ttl)
		return f.Stored, err
	},
	"Set": func(ctx context.Context, c *protocol.Client) (any, error) {
		return nil, c.Set(ctx, key, "p.1", seal(7, 1), ttl)
	},
	"a large Set": func(ctx context.Context, c *protocol.Client) (any, error) {
		return nil, c.Set(ctx, key, "p.1", sized(7, protocol.StageAbove+1), ttl)
	},
	"Release": func(ctx context.Context, c *protocol.Client) (any, error) {
		return c.Release(ctx, leaseOf("holder.1", 7))
	},
	"ReleaseFailed": func(ctx context.Context, c *protocol.Client) (any, error) {
		return c.ReleaseFailed(ctx, leaseOf("holder.1", 7), protocol.Failure{Class: protocol.FailedFetch}, protocol.Sharing{Lasts: ttl})
	},
	"Renew": func(ctx context.Context, c *protocol.Client) (any, error) {
		return c.Renew(ctx, leaseOf("holder.1", 0), lease)
	},
	"Invalidate": func(ctx context.Context, c *protocol.Client) (any, error) { return nil, c.Invalidate(ctx, key) },
	"Mark":       func(ctx context.Context, c *protocol.Client) (any, error) { return nil, c.Mark(ctx, key, "m", ttl) },
	"Unmark":     func(ctx context.Context, c *protocol.Client) (any, error) { return nil, c.Unmark(ctx, key, "m") },
}

// leased deletes the value and gives the lease to holder.1.
func leased(t *testing.T, rdb redis.UniversalClient) {
	t.Helper()
	for _, err := range []error{
		rdb.Del(t.Context(), key.Value, key.Meta()).Err(),
		rdb.HSet(t.Context(), key.Meta(), "o", "holder.1", "f", 7).Err(),
		rdb.PExpire(t.Context(), key.Meta(), lease).Err(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// each calls do for each operation, in a bubble in which holder.1 has the lease.
func each(t *testing.T, do func(t *testing.T, r redistest.Redis, rdb *redis.Client, op func(ctx context.Context) (any, error))) {
	for name, op := range operations {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := redistest.Bubble(t)
				rdb := r.Client()
				c := protocol.NewClient(batch.NewRouter(rdb).Link(0, 0), ns, "p", timeout, false)
				leased(t, rdb)
				do(t, r, rdb, func(ctx context.Context) (any, error) { return op(ctx, c) })
			})
		})
	}
}

var passing = []string{
	"TRYAGAIN Multiple keys request during rehashing of slot", "MOVED 1234 127.0.0.1:1", "ASK 1234 127.0.0.1:1",
	"LOADING Redis is loading the dataset in memory", "READONLY You can't write against a read only replica.",
	"MASTERDOWN Link with MASTER is down", "CLUSTERDOWN The cluster is down",
}

func TestOperationSucceedsAfterPassingErrors(t *testing.T) {
	each(t, func(t *testing.T, _ redistest.Redis, rdb *redis.Client, op func(context.Context) (any, error)) {
		want, err := op(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range passing {
			leased(t, rdb)
			redistest.WireOf(rdb).Fail(4, text)
			if got, err := op(t.Context()); err != nil || got != want {
				t.Errorf("during %q: %v, %v; want %v, nil", text, got, err, want)
			}
			redistest.WireOf(rdb).Heal()
		}
	})
}

func TestErrorThatDoesNotPassIsReturnedAtTheTimeout(t *testing.T) {
	each(t, func(t *testing.T, _ redistest.Redis, rdb *redis.Client, op func(context.Context) (any, error)) {
		for _, text := range passing {
			redistest.WireOf(rdb).Fail(redistest.All, text)
			start := time.Now()
			_, err := op(t.Context())
			if took := time.Since(start); took > timeout || took < timeout/2 {
				t.Errorf("%q for ever: failed after %v, want near %v", text, took, timeout)
			}
			if err == nil || err.Error() != text {
				t.Errorf("error = %v, want the server's, %q", err, text)
			}
			if n := len(redistest.WireOf(rdb).Commands()); n > 250 {
				t.Errorf("%q for ever: %d commands were sent", text, n)
			}
			redistest.WireOf(rdb).Heal()
			redistest.WireOf(rdb).Reset()
		}
	})
}

func TestLastingErrorIsReturnedAtOnce(t *testing.T) {
	each(t, func(t *testing.T, _ redistest.Redis, rdb *redis.Client, op func(context.Context) (any, error)) {
		for _, text := range []string{
			"OOM command not allowed when used memory > 'maxmemory'.", "NOPERM this user has no permissions", "ERR unknown command",
			"NOAUTH Authentication required.", "MISCONF Redis is configured to save RDB snapshots",
		} {
			redistest.WireOf(rdb).Reset()
			redistest.WireOf(rdb).Fail(redistest.All, text)
			start := time.Now()
			_, err := op(t.Context())
			if err == nil || err.Error() != text || time.Since(start) > 0 {
				t.Errorf("%v after %v, want %q at once", err, time.Since(start), text)
			}
			if n := redistest.WireOf(rdb).RoundTrips(); n != 1 {
				t.Errorf("%q: %d round trips, want 1", text, n)
			}
			redistest.WireOf(rdb).Heal()
		}
	})
}

// A restarted server knows no scripts. It answers LOADING first.
func TestRestartedServerReceivesTheScript(t *testing.T) {
	each(t, func(t *testing.T, _ redistest.Redis, rdb *redis.Client, op func(context.Context) (any, error)) {
		for _, text := range append(passing, "") {
			if err := rdb.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			if text == "" {
				redistest.WireOf(rdb).LoseReplies(1)
			} else {
				redistest.WireOf(rdb).Fail(1, text)
			}
			if _, err := op(t.Context()); err != nil {
				t.Errorf("%q, and then a server without scripts: %v", text, err)
			}
			redistest.WireOf(rdb).Heal()
		}
	})
}

func TestOperationIsSentAgainAfterALostAnswer(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		c := protocol.NewClient(batch.NewRouter(rdb).Link(0, 0), ns, "p", timeout, false)
		for name, op := range operations {
			// The server does not know the script the first time, and knows it the second time.
			for _, warm := range []bool{false, true} {
				leased(t, rdb)
				if name == "Acquire" {
					rdb.Del(t.Context(), key.Meta())
				}
				if !warm {
					nodes(t, rdb, func(ctx context.Context, rdb *redis.Client) error { return rdb.ScriptFlush(ctx).Err() })
				}
				redistest.WireOf(rdb).LoseReplies(1)
				got, err := op(t.Context(), c)
				var want any
				switch name {
				case "Get":
					want = ""
				case "Acquire":
					want = protocol.Leased
				case "Fill", "a large Fill", "Renew":
					want = true
				case "Release", "ReleaseFailed":
					want = !warm // the second request finds no lease
				}
				if err != nil || got != want {
					t.Errorf("%s, known script %v: %v, %v; want %v, nil", name, warm, got, err, want)
				}
			}
		}
		leased(t, rdb)
		redistest.WireOf(rdb).LoseReplies(1, "EVALSHA")
		if _, err := c.Fill(t.Context(), leaseOf("holder.1", 7), sized(7, protocol.StageAbove+1), ttl); err != nil {
			t.Error(err)
		}
		if n := rdb.Exists(t.Context(), key.Staged("holder.1")).Val(); n > 0 {
			t.Error("the staged value is still there")
		}
		wantEveryKeyToEnd(t, rdb)
	})
}

func TestConnectionCutTwiceIsAnError(t *testing.T) {
	each(t, func(t *testing.T, _ redistest.Redis, rdb *redis.Client, op func(context.Context) (any, error)) {
		if _, err := op(t.Context()); err != nil { // the script is known now
			t.Fatal(err)
		}
		w := redistest.WireOf(rdb)
		w.Reset()
		w.LoseReplies(redistest.All)
		start := time.Now()
		if got, err := op(t.Context()); err == nil {
			t.Errorf("%v, nil; want an error", got)
		}
		if took := time.Since(start); took > 100*time.Millisecond || w.RoundTrips() != 2 {
			t.Errorf("failed after %v and %d round trips, want 2", took, w.RoundTrips())
		}
	})
}

func TestDownRedisIsAnErrorAtOnce(t *testing.T) {
	each(t, func(t *testing.T, r redistest.Redis, _ *redis.Client, op func(context.Context) (any, error)) {
		r.Kill()
		start := time.Now()
		// The pooled connection may be cut, and then the dial fails.
		if got, err := op(t.Context()); err == nil || time.Since(start) > 100*time.Millisecond {
			t.Errorf("%v, %v after %v; want an error at once", got, err, time.Since(start))
		}
	})
}

// After the timeout no goroutine reads the command, whose answer may still arrive: the race detector
// would report that.
func TestHangingRedisIsAnErrorAtTheTimeout(t *testing.T) {
	each(t, func(t *testing.T, r redistest.Redis, _ *redis.Client, op func(context.Context) (any, error)) {
		r.Pause()
		start := time.Now()
		_, err := op(t.Context())
		if took := time.Since(start); err == nil || took > timeout {
			t.Errorf("%v after %v, want an error after at most %v", err, took, timeout)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		time.AfterFunc(150*time.Millisecond, r.Resume) // the answer comes after all
		start = time.Now()
		if _, err := op(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 100*time.Millisecond {
			t.Errorf("%v after %v, want %v after 100ms", err, time.Since(start), context.DeadlineExceeded)
		}
		time.Sleep(time.Minute)
	})
}

func TestEndOfTheContextEndsTheRetries(t *testing.T) {
	each(t, func(t *testing.T, _ redistest.Redis, rdb *redis.Client, op func(context.Context) (any, error)) {
		redistest.WireOf(rdb).Fail(redistest.All, "LOADING Redis is loading the dataset in memory")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(777*time.Millisecond, cancel)
		start := time.Now()
		if _, err := op(ctx); !errors.Is(err, context.Canceled) || time.Since(start) != 777*time.Millisecond {
			t.Errorf("%v after %v, want %v after 777ms", err, time.Since(start), context.Canceled)
		}
	})
}

// failing is a Runner that fails and counts its calls.
type failing struct {
	err  error
	runs int
}

func (f *failing) Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error {
	return f.Do(ctx, within, cmd)
}

func (f *failing) Each(context.Context, time.Duration, []redis.Cmder) []error { panic("not called") }

func (*failing) Failed(_ context.Context, _ string, _ time.Duration, err error) error { return err }

func (f *failing) Do(context.Context, time.Duration, ...redis.Cmder) error {
	f.runs++
	return f.err
}

// An operation is sent again after a lost connection, and not after a failed dial.
func TestWhichConnectionErrorsAreRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for err, want := range map[error]int{
			io.EOF:              2,
			io.ErrUnexpectedEOF: 2,
			net.ErrClosed:       2,
			&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}:      2,
			&net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)}:         2,
			&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNRESET)}:   1,
			&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}: 1,
			&net.OpError{Op: "dial", Err: io.EOF}:                                              1,
			batch.ErrTimeout:                                                                   1,
			os.ErrDeadlineExceeded:                                                             1,
			errors.New("anything else"):                                                        1,
		} {
			f := &failing{err: err}
			c := protocol.NewClient(f, ns, "p", timeout, false)
			if got := c.Invalidate(t.Context(), key); !errors.Is(got, err) || f.runs != want {
				t.Errorf("%v: tried %d times and %v; want %d times, and the error", err, f.runs, got, want)
			}
		}
	})
}

// The first attempt may have arrived, so the error of the second does not prove NotSent.
func TestErrorAfterALostReplyIsNotNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		c := protocol.NewClient(batch.NewRouter(rdb).Link(0, 0), ns, "p", timeout, false)
		redistest.WireOf(rdb).LoseReplies(1, "EVALSHA")
		var ended atomic.Bool
		go func() {
			time.Sleep(time.Millisecond) // the operation is in its pause
			r.Kill()
			ended.Store(true)
		}()
		err := c.Invalidate(t.Context(), key)
		if !ended.Load() || err == nil || batch.NotSent(err) {
			t.Errorf("refused after a cut: NotSent(%v) = %v, want false", err, batch.NotSent(err))
		}
		if err := c.Invalidate(t.Context(), key); !batch.NotSent(err) {
			t.Errorf("refused: NotSent(%v) = false", err)
		}
	})
}

// What a proxy, or another program's command, may answer in the place of a script.
type answers struct{ reply any }

func (a answers) Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error {
	return a.Do(ctx, within, cmd)
}

func (answers) Each(context.Context, time.Duration, []redis.Cmder) []error { panic("not called") }

func (answers) Failed(_ context.Context, _ string, _ time.Duration, err error) error { return err }

func (a answers) Do(_ context.Context, _ time.Duration, cmds ...redis.Cmder) error {
	for _, cmd := range cmds {
		if cmd, ok := cmd.(*redis.Cmd); ok {
			cmd.SetVal(a.reply)
		}
	}
	return nil
}

func TestForeignAnswersAreErrorsOrFalse(t *testing.T) {
	for _, reply := range []any{nil, "OK", "1", int64(7), []any{"1"}, true} {
		c := protocol.NewClient(answers{reply}, ns, "p", timeout, false)
		if a, err := c.Acquire(t.Context(), key, "p.1", lease, nil); err == nil {
			t.Errorf("%v: Acquire = %+v, nil; want an error", reply, a)
		}
		if f, err := c.Fill(t.Context(), leaseOf("p.1", 7), seal(7, 1), ttl); err == nil {
			t.Errorf("%v: Fill = %+v, nil; want an error", reply, f)
		}
		if ours, _ := c.Renew(t.Context(), leaseOf("p.1", 0), lease); ours {
			t.Errorf("%v was taken for a lease that is renewed", reply)
		}
		if ours, _ := c.Release(t.Context(), leaseOf("p.1", 7)); ours {
			t.Errorf("%v was taken for a lease that is released", reply)
		}
	}
}
