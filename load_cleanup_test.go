package fetchonce_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// An Update returns, at its context's deadline or after RedisTimeout, before its mark reaches
// Redis. The mark arrives later and is removed.
func TestMarkOfAnUpdateThatLeftIsRemoved(t *testing.T) {
	for name, limits := range map[string]struct{ own, redis time.Duration }{
		"the context's deadline": {100 * time.Millisecond, time.Second},
		"RedisTimeout":           {time.Minute, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				rdb, admin := r.Client(), r.Client()
				l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailClosed), func(opt *options) { opt.RedisTimeout, opt.Lease = limits.redis, time.Minute })
				if err := l.Delete(t.Context(), "k"); err != nil { // there is a connection, and Redis knows the script
					t.Fatal(err)
				}
				redistest.WireOf(rdb).Pause()
				ctx, cancel := context.WithTimeout(t.Context(), limits.own)
				defer cancel()
				err := l.Update(ctx, "k", func(context.Context) error { t.Error("write was called"); return nil })
				if err == nil || errors.Is(err, context.DeadlineExceeded) != (limits.own < limits.redis) {
					t.Errorf("Update = %v", err)
				}
				time.Sleep(200 * time.Millisecond)
				redistest.WireOf(rdb).Resume()
				time.Sleep(10 * time.Second)
				if n := admin.Exists(t.Context(), "test:u:{k}").Val(); n != 0 {
					t.Error("the mark is still there")
				}
				o := testkit.NewOrigin(t)
				reader := testkit.Get(t, t.Context(), newLoader(t, r), "k", o)
				o.Next().Returns("v")
				reader.Want("v")
				testkit.WantKept(t, l, "v")
			})
		})
	}
}

// A delayer is a hook that times out every script while it is on. The test sends the first of
// them later.
type delayer struct {
	on    atomic.Bool
	first func() // sends the first script
}

func (*delayer) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d *delayer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !d.on.Load() || cmd.Name() != "evalsha" {
			return next(ctx, cmd)
		}
		if d.first == nil {
			d.first = func() { _ = next(context.Background(), redis.NewCmd(context.Background(), cmd.Args()...)) }
		}
		cmd.SetErr(os.ErrDeadlineExceeded)
		return os.ErrDeadlineExceeded
	}
}

func (*delayer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A renewal of a mark times out and reaches Redis after the mark was removed. The mark is removed
// again.
func TestLateRenewalOfAMarkIsRemoved(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		rdb, admin, d := r.Client(), r.Client(), &delayer{}
		rdb.AddHook(d)
		writer := testkit.LoaderOf(t, rdb, func(opt *options) { opt.RedisTimeout, opt.Lease = time.Second, time.Minute })
		u := startUpdate(t, writer).began()
		d.on.Store(true)
		time.Sleep(21 * time.Second) // a renewal
		d.on.Store(false)
		if err := u.returns(nil); err != nil {
			t.Error(err)
		}
		if d.first == nil {
			t.Fatal("there was no renewal")
		}
		synctest.Wait()
		d.first()
		if n := admin.Exists(t.Context(), "test:u:{k}").Val(); n != 1 {
			t.Error("the renewal set no mark, so the test shows nothing")
		}
		time.Sleep(10 * time.Second)
		if n := admin.Exists(t.Context(), "test:u:{k}").Val(); n != 0 {
			t.Error("the mark is still there")
		}
	})
}

// failAcquires makes n Gets of different keys and checks that their ACQUIREs fail.
func failAcquires(t *testing.T, l loader, n int) {
	t.Helper()
	for i := range n {
		_, err := l.Get(t.Context(), strconv.Itoa(i), func(context.Context, string) (string, error) { return "v", nil })
		if _, ok := errors.AsType[*fetchonce.Error](err); !ok {
			t.Fatalf("Get = %v, want an *Error of Redis", err)
		}
	}
}

// Redis refuses every RELEASE permanently. Retries end within 10 seconds.
func TestCleanupOfARefusedLeaseEnds(t *testing.T) {
	for _, text := range []string{"NOPERM this user has no permissions", "ERR unknown command 'EVALSHA'"} {
		inBubble(t, func(t *testing.T, r backend) {
			rdb := r.Client()
			l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailClosed), func(opt *options) { opt.Lease = time.Minute })
			redistest.WireOf(rdb).Fail(redistest.All, text, "EVALSHA", "EVAL")
			failAcquires(t, l, 20)
			time.Sleep(10 * time.Second)
			before := testkit.Scripts(rdb)
			time.Sleep(40 * time.Second)
			if n := testkit.Scripts(rdb) - before; n != 0 {
				t.Errorf("%d scripts were sent in 40 s after %q", n, text)
			}
		})
	}
}

// Leases that cannot be released wait in a list. They do not need one goroutine each.
func TestOutageLeavesFewGoroutines(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailClosed), func(opt *options) { opt.Lease = time.Minute })
		redistest.WireOf(rdb).Fail(redistest.All, "ERR not now", "EVALSHA", "EVAL")
		before := runtime.NumGoroutine()
		failAcquires(t, l, 1000)
		if n := runtime.NumGoroutine() - before; n > 200 {
			t.Errorf("1,000 failed Gets left %d goroutines", n)
		}
		redistest.WireOf(rdb).Heal()
		time.Sleep(20 * time.Second)
		before = testkit.Scripts(rdb)
		time.Sleep(30 * time.Second)
		if n := testkit.Scripts(rdb) - before; n != 0 {
			t.Errorf("%d scripts were sent after all leases were released", n)
		}
	})
}

// An ACQUIRE that was never sent needs no RELEASE.
func TestUnsentAcquireNeedsNoCleanup(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, testkit.WithPolicy(fetchonce.FailClosed), func(opt *options) { opt.Lease = time.Minute })
		for i := range 40 { // so that a Get sends ACQUIRE without a lookup
			_, _ = l.Get(t.Context(), "m"+strconv.Itoa(i), func(context.Context, string) (string, error) { return "v", nil })
		}
		r.Kill()
		failAcquires(t, l, 20)
		synctest.Wait()
		if n := l.TakingBack(); n != 0 {
			t.Errorf("%d leases wait for their release, and no ACQUIRE was sent", n)
		}
	})
}
