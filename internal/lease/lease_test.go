package lease_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/lease"
)

const length = 30 * time.Second // renewed each 10 s; the deadline is after 28.5 s

const deadline = length - length/20

var errLost = errors.New("lost")

// A server answers renewals and records their times.
type server struct {
	start  time.Time
	answer func(ctx context.Context, n int) (bool, error) // the n-th renewal

	mu      sync.Mutex
	renewed []time.Duration // since start
}

type someKey struct{}

var errDown = errors.New("no answer from Redis")

func yes(context.Context, int) (bool, error) { return true, nil }

func no(context.Context, int) (bool, error) { return false, nil }

func down(context.Context, int) (bool, error) { return false, errDown }

func newServer(answer func(ctx context.Context, n int) (bool, error)) *server {
	return &server{start: time.Now(), answer: answer}
}

func (s *server) renew(ctx context.Context) (bool, error) {
	s.mu.Lock()
	s.renewed = append(s.renewed, time.Since(s.start))
	n := len(s.renewed)
	s.mu.Unlock()
	return s.answer(ctx, n)
}

// keep keeps a lease whose request was sent now.
func (s *server) keep(t *testing.T) (context.Context, *lease.Keeper) {
	t.Helper()
	return lease.Keep(t.Context(), time.Now(), length, errLost, s.renew)
}

// wantRenewed checks the renewals once all goroutines are idle.
func (s *server) wantRenewed(t *testing.T, at ...time.Duration) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.renewed, at) {
		t.Errorf("renewed at %v, want %v", s.renewed, at)
	}
}

func wantAlive(t *testing.T, ctx context.Context, k *lease.Keeper) {
	t.Helper()
	if err := ctx.Err(); err != nil || !k.Held() {
		t.Errorf("the context says %v (cause %v), Held %v; want it alive", err, context.Cause(ctx), k.Held())
	}
}

// wantLost waits for the end of ctx and checks its time and cause.
func wantLost(t *testing.T, ctx context.Context, k *lease.Keeper, start time.Time, after time.Duration) {
	t.Helper()
	<-ctx.Done()
	if took := time.Since(start); took != after {
		t.Errorf("the context ended after %v, want %v", took, after)
	}
	if err, cause := ctx.Err(), context.Cause(ctx); err != context.Canceled || cause != errLost {
		t.Errorf("the context says %v, cause %v; want %v, %v", err, cause, context.Canceled, errLost)
	}
	if k.Held() {
		t.Error("Held = true after the end of the context")
	}
}

func TestLeaseIsRenewedAfterEachThird(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(yes)
		ctx, k := s.keep(t)
		defer k.Stop()
		time.Sleep(10*time.Second - 1)
		s.wantRenewed(t)
		time.Sleep(time.Nanosecond)
		s.wantRenewed(t, 10*time.Second)
		time.Sleep(110 * time.Second)
		s.wantRenewed(t, times(10*time.Second, 12)...)
		wantAlive(t, ctx, k)
	})
}

// times returns the first n multiples of d.
func times(d time.Duration, n int) []time.Duration {
	var all []time.Duration
	for i := range n {
		all = append(all, time.Duration(i+1)*d)
	}
	return all
}

func TestShortWorkCostsNoRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(yes)
		ctx, k := s.keep(t)
		time.Sleep(9 * time.Second)
		wantAlive(t, ctx, k)
		k.Stop()
		time.Sleep(time.Hour)
		s.wantRenewed(t)
	})
}

func TestDeadlineCountsFromBeforeTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		time.Sleep(8 * time.Second) // the request took that long
		s := newServer(down)
		ctx, k := lease.Keep(t.Context(), start, length, errLost, s.renew)
		defer k.Stop()
		time.Sleep(2 * time.Second)
		s.wantRenewed(t, 2*time.Second) // a third of the lease after the request was sent
		wantLost(t, ctx, k, start, deadline)
	})
}

func TestRenewalCountsFromBeforeItWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(func(_ context.Context, n int) (bool, error) {
			if n > 1 {
				return false, errDown
			}
			time.Sleep(6 * time.Second)
			return true, nil
		})
		ctx, k := s.keep(t)
		defer k.Stop()
		time.Sleep(20 * time.Second)
		s.wantRenewed(t, 10*time.Second, 20*time.Second) // the second a third after the first was sent, not answered
		wantLost(t, ctx, k, s.start, 10*time.Second+deadline)
	})
}

func TestAnswerAfterTheDeadlineGivesNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		time.Sleep(29 * time.Second)
		ctx, k := lease.Keep(t.Context(), start, length, errLost, newServer(yes).renew)
		defer k.Stop()
		if k.Held() || ctx.Err() == nil {
			t.Fatal("an ended lease is held")
		}
		wantLost(t, ctx, k, start, 29*time.Second)
	})
}

func TestFailedRenewalIsTriedAgainUntilTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(down)
		ctx, k := s.keep(t)
		defer k.Stop()
		time.Sleep(28 * time.Second)
		wantAlive(t, ctx, k)
		wantLost(t, ctx, k, s.start, deadline)
		time.Sleep(time.Hour)
		s.wantRenewed(t, 10*time.Second, 13*time.Second, 16*time.Second, 19*time.Second, 22*time.Second, 25*time.Second, 28*time.Second)
	})
}

func TestFailedRenewalIsForgottenAfterOneThatWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(func(_ context.Context, n int) (bool, error) {
			if n <= 2 {
				return false, errDown
			}
			return true, nil
		})
		ctx, k := s.keep(t)
		defer k.Stop()
		time.Sleep(time.Minute)
		s.wantRenewed(t, 10*time.Second, 13*time.Second, 16*time.Second, 26*time.Second, 36*time.Second, 46*time.Second, 56*time.Second)
		wantAlive(t, ctx, k)
	})
}

func TestRefusedRenewalEndsTheContextAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(no)
		ctx, k := s.keep(t)
		defer k.Stop()
		wantLost(t, ctx, k, s.start, 10*time.Second)
		time.Sleep(time.Hour)
		s.wantRenewed(t, 10*time.Second)
	})
}

// An error does not say whether the lease is lost.
func TestFailedRenewalDoesNotEndTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(down)
		ctx, k := s.keep(t)
		defer k.Stop()
		time.Sleep(11 * time.Second)
		s.wantRenewed(t, 10*time.Second)
		wantAlive(t, ctx, k)
	})
}

func TestContextEndsAtTheDeadlineWhileARenewalHangs(t *testing.T) {
	for name, hang := range map[string]func(ctx context.Context, n int) (bool, error){
		"until its context ends": func(ctx context.Context, _ int) (bool, error) { <-ctx.Done(); return false, ctx.Err() },
		"and then says yes":      func(context.Context, int) (bool, error) { time.Sleep(time.Minute); return true, nil },
		"and then says no":       func(context.Context, int) (bool, error) { time.Sleep(time.Minute); return false, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(hang)
				ctx, k := s.keep(t)
				defer k.Stop()
				wantLost(t, ctx, k, s.start, deadline)
				time.Sleep(time.Hour) // the late answer changes nothing
				s.wantRenewed(t, 10*time.Second)
				wantLost(t, ctx, k, s.start, deadline+time.Hour)
			})
		})
	}
}

func TestLostEndsTheContextAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(yes)
		ctx, k := s.keep(t)
		time.Sleep(time.Second)
		k.Lost()
		k.Lost()
		wantLost(t, ctx, k, s.start, time.Second)
		k.Stop() // does not change the cause
		if cause := context.Cause(ctx); cause != errLost {
			t.Errorf("cause = %v after Stop, want %v", cause, errLost)
		}
		time.Sleep(time.Hour)
		s.wantRenewed(t)
	})
}

func TestContextIsAChildOfItsParent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		abandoned := errors.New("abandoned")
		type key struct{}
		parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), key{}, "v"))
		ctx, k := lease.Keep(parent, time.Now(), length, errLost, newServer(yes).renew)
		defer k.Stop()
		if ctx.Value(key{}) != "v" {
			t.Errorf("value = %v, want v", ctx.Value(key{}))
		}
		cancel(abandoned)
		synctest.Wait()
		if err, cause := ctx.Err(), context.Cause(ctx); err == nil || cause != abandoned {
			t.Errorf("the context says %v, cause %v; want the parent's end", err, cause)
		}
	})
}

func TestDerivedContextsEndToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(no)
		ctx, k := s.keep(t)
		defer k.Stop()
		child, cancel := context.WithCancel(ctx)
		defer cancel()
		grandchild, cancelGrandchild := context.WithTimeout(context.WithValue(child, someKey{}, 2), time.Hour)
		defer cancelGrandchild()
		ran := make(chan time.Duration, 1)
		context.AfterFunc(ctx, func() { ran <- time.Since(s.start) })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for name, ctx := range map[string]context.Context{"child": child, "grandchild": grandchild} {
			select {
			case <-ctx.Done():
				if cause := context.Cause(ctx); cause != errLost {
					t.Errorf("%s: cause %v, want %v", name, cause, errLost)
				}
			default:
				t.Errorf("the %s continues without a lease", name)
			}
		}
		select {
		case at := <-ran:
			if at != 10*time.Second {
				t.Errorf("AfterFunc ran after %v, want 10s", at)
			}
		default:
			t.Error("AfterFunc did not run")
		}
	})
}

// A process that was stopped for longer than its lease resumes before its timers fire. Err
// and Done of the context report the end all the same.
func TestContextEndsBeforeItsTimerFires(t *testing.T) {
	for name, hasEnded := range map[string]func(ctx context.Context) bool{
		"Err": func(ctx context.Context) bool { return ctx.Err() != nil },
		"Done": func(ctx context.Context) bool {
			select {
			case <-ctx.Done():
				return true
			default:
				return false
			}
		},
		"Cause": func(ctx context.Context) bool { return context.Cause(ctx) == errLost },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The timers are due, but the runtime has no time to fire them before the check.
				for range 100 {
					ctx, k := lease.Keep(t.Context(), time.Now().Add(-length), length, errLost, newServer(down).renew)
					if !hasEnded(ctx) {
						t.Fatal("the context has not ended after the end of the lease")
					}
					k.Stop()
				}
			})
		})
	}
}

func TestKeepersAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newServer(no), newServer(yes)
		ctxA, ka := a.keep(t)
		ctxB, kb := b.keep(t)
		defer ka.Stop()
		defer kb.Stop()
		wantLost(t, ctxA, ka, a.start, 10*time.Second)
		time.Sleep(time.Minute)
		wantAlive(t, ctxB, kb)
	})
}
