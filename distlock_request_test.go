package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/contexttest"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// longLease makes a lease outlast the test, so that no wait ends because a lease does.
func longLease(opt *lockOptions) {
	opt.Lease, opt.RedisTimeout = 10*time.Minute, 10*time.Second
}

// returns runs f and closes done when f has returned. The test fails if that takes a minute.
func returns(t *testing.T, what string, f func()) (done chan struct{}) {
	t.Helper()
	done = make(chan struct{})
	go func() { defer close(done); f() }()
	t.Cleanup(func() {
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Error(what, "never returned")
		}
	})
	return done
}

func isClosed(done chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// The request of a Release is held back, the locker is closed, and then the request arrives.
// Close waits for it. The lock is free after that.
func TestCloseWaitsForARelease(t *testing.T) {
	for name, waiters := range map[string]int{"alone": 0, "with a waiter": 1} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				rdb := r.Client()
				g := testkit.NewGate(rdb)
				lk := testkit.LockerOf(t, rdb, longLease)
				began := time.Now()
				first := testkit.Taken(t, r, lk)
				for range waiters {
					testkit.Take(t.Context(), t, r, lk)
				}
				r.Until("they wait", func() bool { return lk.Waiting("it") == waiters })
				r.Until("local hand-offs have ended", func() bool { return time.Since(began) > 20*time.Millisecond })
				g.Shut()
				released := returns(t, "Release", func() { first.Release(nil) })
				<-g.Stopped
				arrive := g.Free()
				closed := returns(t, "Close", func() { _ = lk.Close() })
				r.Until("the context has ended", func() bool { return first.Ctx.Err() != nil })
				r.Settle()
				if isClosed(closed) {
					t.Error("Close returned before the request was answered")
				}
				arrive()
				<-released
				<-closed
				if err := testkit.NewLocker(t, r).TryDo(t.Context(), "it", testkit.Nothing); err != nil {
					t.Errorf("after Close, TryDo = %v", err)
				}
			})
		})
	}
}

// The caller leaves while its request is held back. The lease that the request is granted is
// released after the request, not before.
func TestReleaseDoesNotOvertakeItsRequest(t *testing.T) {
	for name, acquire := range map[string]func(*fetchonce.Locker, context.Context, string) (context.Context, *fetchonce.Lease, error){
		"Acquire": (*fetchonce.Locker).Acquire, "TryAcquire": (*fetchonce.Locker).TryAcquire,
	} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				rdb := r.Client()
				g := testkit.NewGate(rdb)
				lk := testkit.LockerOf(t, rdb, longLease)
				g.Shut()
				ctx, cancel := context.WithCancelCause(t.Context())
				var err error
				left := returns(t, name, func() { _, _, err = acquire(lk, ctx, "it") })
				<-g.Stopped
				arrive := g.Free()
				cancel(errMine)
				<-left
				if !errors.Is(err, errMine) {
					t.Errorf("%s = %v, want the cause of the end of the context", name, err)
				}
				r.Settle()
				arrive()
				began := time.Now()
				other := testkit.NewLocker(t, r)
				r.Until("the lock is free", func() bool { return other.TryDo(t.Context(), "it", testkit.Nothing) == nil })
				if took := time.Since(began); r.Fake() && took > time.Second {
					t.Errorf("the lock was free after %v", took)
				}
				r.Until("no name is in use", func() bool { return lk.Names() == 0 })
			})
		})
	}
}

// 200 locks, each with a waiter, are released during Close. Afterwards all are free.
func TestCloseDuringReleasesFreesEveryLock(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := testkit.NewLocker(t, r, longLease)
		var leases []*fetchonce.Lease
		began := time.Now()
		for i := range 200 {
			name := fmt.Sprint("name", i)
			_, ls, err := lk.Acquire(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			leases = append(leases, ls)
			returns(t, "Acquire", func() {
				if _, ls, err := lk.Acquire(t.Context(), name); err == nil {
					_ = ls.Release()
				} else if err != fetchonce.ErrClosed {
					t.Errorf("Acquire = %v, want ErrClosed", err)
				}
			})
		}
		r.Until("they wait", func() bool { return lk.Waiting("name199") == 1 })
		r.Until("local hand-offs have ended", func() bool { return time.Since(began) > 20*time.Millisecond })
		for i, ls := range leases {
			returns(t, "Release", func() {
				if i > 100 {
					runtime.Gosched() // so that some come after Close
				}
				if err := ls.Release(); err != nil {
					t.Errorf("Release = %v", err)
				}
			})
		}
		_ = lk.Close()
		other := testkit.NewLocker(t, r)
		for i := range 200 {
			if err := other.TryDo(t.Context(), fmt.Sprint("name", i), testkit.Nothing); err != nil {
				t.Errorf("after Close, TryDo of name %d = %v", i, err)
			}
		}
	})
}

// 1,000 calls fail in an outage. They leave few goroutines, and none for a call that sent
// nothing.
func TestOutageOfLocksIsBounded(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := testkit.NewLocker(t, r, func(opt *lockOptions) { opt.Lease, opt.RedisTimeout = 10*time.Minute, 100*time.Millisecond })
		before := runtime.NumGoroutine()
		fail := func(n int) {
			t.Helper()
			done := make(chan error)
			for i := range n {
				go func() { done <- lk.Do(t.Context(), fmt.Sprint("name", i), testkit.Nothing) }()
			}
			for range n {
				if err := <-done; err == nil {
					t.Error("Do without Redis succeeded")
				}
			}
		}
		r.Kill()
		fail(500)
		known := !isCluster(r.Client()) // a cluster client tries nodes until RedisTimeout, so it may have sent something
		r.Until("the calls that sent nothing leave nothing", func() bool {
			return (lk.Leftovers() == 0 || !known) && runtime.NumGoroutine() < before+100
		})
		r.Restart()
		r.Until("it works again", func() bool { return lk.Do(t.Context(), "it", testkit.Nothing) == nil })
		r.Pause()
		fail(500)
		r.Until("few goroutines are left", func() bool { return runtime.NumGoroutine() < before+200 })
		r.Resume()
		r.Until("nothing is left", func() bool { return lk.Leftovers() == 0 && lk.Names() == 0 })
	})
}

// A lock that Redis refuses for good leaves nothing in Redis.
func TestRefusedLockLeavesNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := testkit.NewLocker(t, r, longLease)
		testkit.Admin(r).Set(t.Context(), "test:l:{it}", "mine", 0)
		var ours *fetchonce.Error
		if err := lk.Do(t.Context(), "it", testkit.Nothing); !errors.As(err, &ours) {
			t.Errorf("Do = %v, want an *Error", err)
		}
		if err := lk.TryDo(t.Context(), "it", testkit.Nothing); !errors.As(err, &ours) {
			t.Errorf("TryDo = %v, want an *Error", err)
		}
		if n := lk.Leftovers(); n > 0 {
			t.Errorf("%d requests wait for their cleanup", n)
		}
	})
}

// A context ends just as its caller is granted the lock. The caller receives the cause.
func TestEndedContextNeverHasTheLock(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := testkit.NewLocker(t, r)
		for range 50 {
			first := testkit.Taken(t, r, lk)
			inner, cancel := context.WithCancelCause(t.Context())
			var once sync.Once
			ctx := &contexttest.Context{Context: inner, Called: func() {
				if lk.Waiting("it") == 1 { // the caller is about to wait
					once.Do(func() {
						first.Release(nil)
						cancel(errMine)
					})
				}
			}}
			if _, _, err := lk.Acquire(ctx, "it"); !errors.Is(err, fetchonce.ErrLocked) || !errors.Is(err, errMine) {
				t.Fatalf("Acquire = %v, want ErrLocked and the cause of the end of the context", err)
			}
			r.Until("no name is in use", func() bool { return lk.Names() == 0 })
		}
	})
}

// The reply arrives after the lease has ended. The call fails, and not with ErrLockLost.
func TestReplyAfterTheLeaseEndedIsAnError(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		if !r.Fake() {
			return // needs the bubble's clock
		}
		rdb := r.Client()
		lk := testkit.LockerOf(t, rdb, func(opt *lockOptions) { opt.Lease, opt.RedisTimeout = time.Second, 10*time.Second })
		redistest.WireOf(rdb).Pause()
		var err error
		done := returns(t, "TryAcquire", func() { _, _, err = lk.TryAcquire(t.Context(), "it") })
		time.Sleep(2 * time.Second)
		redistest.WireOf(rdb).Resume()
		<-done
		var ours *fetchonce.Error
		if !errors.As(err, &ours) || errors.Is(err, fetchonce.ErrLockLost) {
			t.Errorf("TryAcquire = %v, want an *Error and not ErrLockLost", err)
		}
	})
}

// losses are ways in which Redis loses a lease without the holder's knowledge. Each receives
// the lock's string from before the lease.
var losses = map[string]func(t *testing.T, r backend, before string){
	"a failover to a replica that lacks the lease": func(t *testing.T, r backend, before string) {
		testkit.Admin(r).Set(t.Context(), "test:l:{it}", before, 0)
	},
	"DEL": func(t *testing.T, r backend, _ string) {
		testkit.Admin(r).Del(t.Context(), "test:l:{it}")
	},
	"the server's clock steps forward": func(t *testing.T, r backend, _ string) { // instead of the clock, the lease's end changes
		state := testkit.Admin(r).Get(t.Context(), "test:l:{it}").Val()
		testkit.Admin(r).Set(t.Context(), "test:l:{it}", regexp.MustCompile(`\d+/\d+$`).ReplaceAllString(state, "1"), 0)
	},
}

// Release returns ErrLockLost if another process has acquired the lock, also when the same
// request queues a waiter of this process.
func TestReleaseOfALostLockReturnsErrLockLost(t *testing.T) {
	for name, lose := range losses {
		for _, again := range []bool{false, true} {
			what := name
			if again {
				what += ", and another waits here"
			}
			t.Run(what, func(t *testing.T) {
				redistest.Each(t, func(t *testing.T, r backend) {
					lk, other := testkit.NewLocker(t, r), testkit.NewLocker(t, r)
					testkit.Taken(t, r, lk).Release(nil)
					before := testkit.Admin(r).Get(t.Context(), "test:l:{it}").Val()
					if before == "" {
						before = "lock 1"
					}
					holder := testkit.Taken(t, r, lk)
					lose(t, r, before)
					thief := testkit.Taken(t, r, other)
					var next *testkit.Taker
					if again {
						next = testkit.Take(t.Context(), t, r, lk)
						r.Until("it waits", func() bool { return lk.Waiting("it") == 1 })
					}
					holder.Release(fetchonce.ErrLockLost)
					thief.Release(nil)
					if again {
						next.Has()
						next.Release(nil)
					}
				})
			})
		}
	}
}

func wantEndedError(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, fetchonce.ErrLocked) || !errors.Is(err, errMine) {
		t.Errorf("%s = %v, want ErrLocked and the cause of the end of the context", what, err)
	} else if text := err.Error(); strings.Contains(text, "\n") || !strings.Contains(text, `"it"`) {
		t.Errorf("%s = %q, want one line that names the lock", what, text)
	}
}

func TestEndedContextIsErrLockedAndItsCause(t *testing.T) {
	calls := map[string]func(ctx context.Context, lk *fetchonce.Locker) error{
		"Do":    func(ctx context.Context, lk *fetchonce.Locker) error { return lk.Do(ctx, "it", testkit.Nothing) },
		"TryDo": func(ctx context.Context, lk *fetchonce.Locker) error { return lk.TryDo(ctx, "it", testkit.Nothing) },
		"Acquire": func(ctx context.Context, lk *fetchonce.Locker) error {
			_, _, err := lk.Acquire(ctx, "it")
			return err
		},
		"TryAcquire": func(ctx context.Context, lk *fetchonce.Locker) error {
			_, _, err := lk.TryAcquire(ctx, "it")
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				lk := testkit.NewLocker(t, r)
				ctx, cancel := context.WithCancelCause(t.Context())
				cancel(errMine)
				wantEndedError(t, name+" with a context that has ended", call(ctx, lk))
			})
			redistest.Each(t, func(t *testing.T, r backend) {
				rdb := r.Client()
				g := testkit.NewGate(rdb)
				lk := testkit.LockerOf(t, rdb)
				g.Shut()
				ctx, cancel := context.WithCancelCause(t.Context())
				var err error
				done := returns(t, name, func() { err = call(ctx, lk) })
				<-g.Stopped
				cancel(errMine)
				<-done
				g.Open()
				wantEndedError(t, name+" with a context that ends", err)
			})
		})
	}
}

func TestACallWaitsForMaxWait(t *testing.T) {
	for name, sameProcess := range map[string]bool{"same process": true, "other process": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := redistest.Bubble(t).Backend()
				const wait = 2 * time.Second
				here := testkit.NewLocker(t, r, func(opt *lockOptions) { opt.MaxWait = wait })
				there := here
				if !sameProcess {
					there = testkit.NewLocker(t, r)
				}
				_, held, err := there.Acquire(t.Context(), "it")
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				err = here.Do(t.Context(), "it", func(context.Context) error { return errors.New("called") })
				if took := time.Since(began); err != fetchonce.ErrLocked || took != wait {
					t.Errorf("Do returned %v after %v, want ErrLocked after %v", err, took, wait)
				}
				ctx, cancel := context.WithTimeout(t.Context(), wait/2)
				defer cancel()
				if _, _, err = here.Acquire(ctx, "it"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, fetchonce.ErrLocked) {
					t.Errorf("a caller whose context ended first got %v", err)
				}
				if err = held.Release(); err != nil {
					t.Error(err)
				}
				// MaxWait does not limit the hold.
				err = here.Do(t.Context(), "it", func(ctx context.Context) error {
					time.Sleep(time.Minute)
					return ctx.Err()
				})
				if err != nil {
					t.Errorf("Do of a free lock returned %v", err)
				}
			})
		})
	}
}

// Locks of two lockers are nested in both orders, and Redis hangs until the outer leases end.
// All calls return.
func TestNestedLocksSurviveAHangingRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		short := func(opt *lockOptions) { opt.Lease, opt.RedisTimeout = 60*time.Millisecond, 20*time.Millisecond }
		lockers := []*fetchonce.Locker{testkit.NewLocker(t, r, short), testkit.NewLocker(t, r, short)}
		for range 10 {
			nest(t, r, lockers)
		}
	})
}

func nest(t *testing.T, r backend, lockers []*fetchonce.Locker) {
	t.Helper()
	var outer []context.Context
	for i, lk := range lockers {
		ctx, ls, err := lk.Acquire(t.Context(), fmt.Sprint("outer", i))
		if err != nil { // on a busy machine, Redis may miss the timeout
			return
		}
		defer func() { _ = ls.Release() }()
		outer = append(outer, ctx)
	}
	r.Pause()
	var nested sync.WaitGroup
	for i := range 40 {
		ctx, lk := outer[i%2], lockers[(i/2)%2]
		nested.Go(func() {
			for end := time.Now().Add(70 * time.Millisecond); time.Now().Before(end); {
				if _, ls, err := lk.Acquire(ctx, fmt.Sprint("inner", i)); err == nil {
					_ = ls.Release()
				} else if r.Fake() {
					time.Sleep(time.Millisecond) // an ended context fails without taking time
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { nested.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("calls hang")
	}
	r.Resume()
}
