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

// longLease makes the end of a lease no way out for a test that waits.
func longLease(opt *lockOptions) {
	opt.Lease, opt.RedisTimeout = 10*time.Minute, 10*time.Second
}

// returns waits until f has returned.
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

// The request that gives a lease back and asks for another is stopped on its way, the
// locker is closed, and only then the request arrives: nothing is left of it, and Release
// returns what it came to.
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
				r.Until("the time for local hand-offs is over", func() bool { return time.Since(began) > 20*time.Millisecond })
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

// The caller leaves while its request is on its way. The request then has its answer,
// and what it was granted is given back: the release does not overtake it.
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
				r.Until("it was given back", func() bool { return other.TryDo(t.Context(), "it", testkit.Nothing) == nil })
				if took := time.Since(began); r.Fake() && took > time.Second {
					t.Errorf("it took %v to give it back", took)
				}
				r.Until("nothing goes on any more", func() bool { return lk.Names() == 0 })
			})
		})
	}
}

// 200 names, each with a waiter, are released while the locker is closed.
func TestCloseDuringReleases(t *testing.T) {
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
		r.Until("the time for local hand-offs is over", func() bool { return time.Since(began) > 20*time.Millisecond })
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

// An outage leaves no goroutine for each call that failed in it, and nothing at all for
// calls that sent nothing.
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
		known := !isCluster(r.Client()) // its client tries node after node until RedisTimeout, and what came of that is not known
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
			t.Errorf("%d requests are to be taken back", n)
		}
	})
}

// A context that has ended before its caller had the lock never has it.
func TestEndedContextNeverHasTheLock(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := testkit.NewLocker(t, r)
		for range 50 {
			first := testkit.Taken(t, r, lk)
			inner, cancel := context.WithCancelCause(t.Context())
			var once sync.Once
			ctx := &contexttest.Context{Context: inner, Called: func() {
				if lk.Waiting("it") == 1 { // the caller is about to wait: let it have the lock, and its context end
					once.Do(func() {
						first.Release(nil)
						cancel(errMine)
					})
				}
			}}
			if _, _, err := lk.Acquire(ctx, "it"); !errors.Is(err, fetchonce.ErrLocked) || !errors.Is(err, errMine) {
				t.Fatalf("Acquire = %v, want ErrLocked and the cause of the end of the context", err)
			}
			r.Until("nothing goes on any more", func() bool { return lk.Names() == 0 })
		}
	})
}

// An answer that comes after the lease has ended is no lease, and no lease was lost.
func TestAnswerAfterTheLeaseEndedIsNoLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		if !r.Fake() {
			return // the answer comes too late by the bubble's clock
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

// losses are ways in which Redis loses a lease while its holder believes in it.
// Each is given the lock's string from before the lease.
var losses = map[string]func(t *testing.T, r backend, before string){
	"a failover to a replica that lacks the lease": func(t *testing.T, r backend, before string) {
		testkit.Admin(r).Set(t.Context(), "test:l:{it}", before, 0)
	},
	"DEL": func(t *testing.T, r backend, _ string) {
		testkit.Admin(r).Del(t.Context(), "test:l:{it}")
	},
	"the server's clock steps forward": func(t *testing.T, r backend, _ string) { // no server lets its clock be set
		state := testkit.Admin(r).Get(t.Context(), "test:l:{it}").Val()
		testkit.Admin(r).Set(t.Context(), "test:l:{it}", regexp.MustCompile(`\d+/\d+$`).ReplaceAllString(state, "1"), 0)
	},
}

// Release returns ErrLockLost when another process got the lock meanwhile, also
// when it asks for another lease in the same request.
func TestReleaseOfALostLockSaysSo(t *testing.T) {
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

func TestEndedContextIsAnErrorThatSaysBoth(t *testing.T) {
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

// Two lockers, and locks of each inside those of the other, while Redis hangs until
// the outer leases end: all calls return.
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
		if err != nil { // the machine is busy, and Redis has not answered in time
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
					time.Sleep(time.Millisecond) // a context that has ended costs no time
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
