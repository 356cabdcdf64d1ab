package fetchonce_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// outages are the ways in which Redis is unavailable, and how it comes back.
var outages = map[string]struct {
	begin, end func(r backend)
}{
	"refused": {func(r backend) { r.Kill() }, func(r backend) { r.Restart() }},
	"hung":    {func(r backend) { r.Pause() }, func(r backend) { r.Resume() }},
}

// duringEachOutage runs a test in a bubble, in which Redis serves until the outage begins.
func duringEachOutage(t *testing.T, test func(t *testing.T, r backend, begin, end func())) {
	for name, o := range outages {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				defer r.Resume()
				test(t, r, func() { o.begin(r) }, func() { o.end(r) })
			})
		})
	}
}

func withBreaker(opt *options) {
	opt.RedisBreaker, opt.RedisTimeout = time.Second, 500*time.Millisecond
}

// constant is a fetch that returns at once.
func constant(context.Context, string) (string, error) { return "v", nil }

// The first Get notices the outage. Later Gets do not wait for Redis, and use it again within
// two seconds of its return.
func TestGetsDoNotWaitForARedisThatHasFailed(t *testing.T) {
	duringEachOutage(t, func(t *testing.T, r backend, begin, end func()) {
		l := newLoader(t, r, withBreaker)
		if _, err := l.Get(t.Context(), "warm", constant); err != nil {
			t.Fatal(err)
		}
		begin()
		_, _ = l.Get(t.Context(), "first", constant)
		for range 20 {
			began := time.Now()
			var callers sync.WaitGroup
			for range 64 {
				callers.Go(func() {
					if v, err := l.Get(t.Context(), "k", constant); v != "v" || err != nil {
						t.Errorf("Get = %q, %v", v, err)
					}
				})
			}
			callers.Wait()
			if took := time.Since(began); took > 0 {
				t.Errorf("64 Gets took %v after the first failure, want no time", took)
			}
			time.Sleep(100 * time.Millisecond)
		}
		end()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, err := l.Get(t.Context(), "back", constant); err != nil {
			t.Error(err)
		}
		if got, err := l.Peek(t.Context(), "back"); got.Value != "v" || err != nil {
			t.Errorf("two seconds after Redis is back, Peek = %+v, %v; want the stored value", got, err)
		}
	})
}

// The breaker opens when RedisTimeout passes, even if all callers left before.
func TestCallersWithShortDeadlinesOpenTheBreaker(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		defer r.Resume()
		l := newLoader(t, r, withBreaker)
		_, _ = l.Get(t.Context(), "k", constant)
		r.Pause()
		impatient := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := l.Get(ctx, "other", constant)
			return err
		}
		if err := impatient(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the first Get = %v, want its deadline", err)
		}
		time.Sleep(600 * time.Millisecond)
		if err := impatient(); err != nil {
			t.Errorf("a Get after RedisTimeout = %v, want the fetched value", err)
		}
	})
}

// Redis answers LOADING for as long as it loads its data. Each Get waits for that once.
func TestAnswerThatRedisServesNoKeyOpensTheBreaker(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb, withBreaker, testkit.WithPolicy(fetchonce.FailClosed))
		redistest.WireOf(rdb).Fail(redistest.All, "LOADING Redis is loading the dataset in memory")
		_, err := l.Get(t.Context(), "first", constant)
		if !errors.Is(err, fetchonce.ErrUnavailable) {
			t.Errorf("the first Get = %v, want ErrUnavailable", err)
		}
		began := time.Now()
		if _, err = l.Get(t.Context(), "k", constant); !errors.Is(err, fetchonce.ErrUnavailable) || time.Since(began) > 0 {
			t.Errorf("the next Get = %v after %v, want ErrUnavailable at once", err, time.Since(began))
		}
		redistest.WireOf(rdb).Heal()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, err = l.Get(t.Context(), "k", constant); err != nil {
			t.Errorf("after the data is loaded, Get = %v", err)
		}
	})
}

// The log reports a Redis that loads its data as unavailable, and then as available again.
func TestLogReportsTheEndOfARedisThatLoadsItsData(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		var log lines
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb, withBreaker, func(opt *options) { opt.Logger = log.logger() })
		redistest.WireOf(rdb).Fail(redistest.All, "LOADING Redis is loading the dataset in memory")
		_, _ = l.Get(t.Context(), "k", constant)
		redistest.WireOf(rdb).Heal()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		log.one(t, "redis unavailable")
		log.one(t, "redis available again")
	})
}

// One command is refused because the Redis user lacks the right. Others still work.
func TestRefusedCommandDoesNotOpenTheBreaker(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb, withBreaker, testkit.WithPolicy(fetchonce.FailClosed))
		_, _ = l.Get(t.Context(), "hit", constant)
		redistest.WireOf(rdb).Fail(redistest.All, "NOPERM no", "EVALSHA", "EVAL")
		if _, err := l.Get(t.Context(), "miss", constant); err == nil {
			t.Error("a Get whose ACQUIRE is refused returned no error")
		}
		if v, err := l.Get(t.Context(), "hit", constant); v != "v" || err != nil {
			t.Errorf("a hit after that = %q, %v", v, err)
		}
	})
}

func TestDeleteUnderAnOpenBreakerFailsAtOnce(t *testing.T) {
	duringEachOutage(t, func(t *testing.T, r backend, begin, _ func()) {
		l := newLoader(t, r, withBreaker)
		begin()
		_, _ = l.Get(t.Context(), "first", constant)
		began := time.Now()
		err := l.Delete(t.Context(), "k")
		if !errors.Is(err, fetchonce.ErrNotInvalidated) || !errors.Is(err, fetchonce.ErrUnavailable) || time.Since(began) > 0 {
			t.Errorf("Delete = %v after %v, want ErrNotInvalidated and ErrUnavailable at once", err, time.Since(began))
		}
	})
}

// With the breaker off, each call waits for RedisTimeout.
func TestBreakerThatIsOffLetsEachCallTry(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		defer r.Resume()
		l := newLoader(t, r, withBreaker, func(opt *options) { opt.RedisBreaker = fetchonce.Off })
		r.Pause()
		for range 3 {
			began := time.Now()
			if _, err := l.Get(t.Context(), "k", constant); err != nil || time.Since(began) < 500*time.Millisecond {
				t.Errorf("Get took %v, %v; want RedisTimeout", time.Since(began), err)
			}
		}
	})
}

// A Loader's failure opens the breaker of a Locker over the same client.
func TestLoadersAndLockersOfAClientShareTheBreaker(t *testing.T) {
	duringEachOutage(t, func(t *testing.T, r backend, begin, _ func()) {
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb, withBreaker)
		lk := testkit.LockerOf(t, rdb, func(opt *fetchonce.LockOptions) { opt.RedisBreaker = time.Second })
		begin()
		_, _ = l.Get(t.Context(), "first", constant)
		began := time.Now()
		if err := lk.Do(t.Context(), "lock", testkit.Nothing); !errors.Is(err, fetchonce.ErrUnavailable) || time.Since(began) > 0 {
			t.Errorf("Do = %v after %v, want ErrUnavailable at once", err, time.Since(began))
		}
	})
}

// A lock is renewed under an open breaker, so it outlives an outage that is shorter than its
// lease.
func TestHeldLockIsRenewedUnderAnOpenBreaker(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		lk := testkit.LockerOf(t, rdb, func(opt *fetchonce.LockOptions) {
			opt.Lease, opt.RedisTimeout, opt.RedisBreaker = 3*time.Second, 500*time.Millisecond, time.Hour
		})
		ctx, held, err := lk.Acquire(t.Context(), "held")
		if err != nil {
			t.Fatal(err)
		}
		r.Pause()
		if err := lk.Do(t.Context(), "other", testkit.Nothing); !errors.Is(err, fetchonce.ErrUnavailable) {
			t.Errorf("Do = %v, want ErrUnavailable", err)
		}
		r.Resume()
		time.Sleep(10 * time.Second)
		if ctx.Err() != nil {
			t.Errorf("the lock was lost: %v", context.Cause(ctx))
		}
		_ = held.Release()
	})
}

// A client with go-redis' defaults dials five times, which takes longer than RedisTimeout. Errors
// still wrap the cause: that of the first call, and those that the open breaker returns.
func TestErrorOfAnOutageHasItsCause(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	rdb := redis.NewClient(&redis.Options{Addr: closed.Addr().String()})
	defer rdb.Close()
	l := testkit.LoaderOf(t, rdb, func(opt *options) { opt.RedisTimeout, opt.OnRedisDown = 200*time.Millisecond, fetchonce.FailClosed })
	lk := testkit.LockerOf(t, rdb)
	for name, call := range redisCalls(l, lk) {
		if err := call(t.Context()); !errors.Is(err, fetchonce.ErrUnavailable) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s = %v, want ErrUnavailable and connection refused", name, err)
		}
	}
}
