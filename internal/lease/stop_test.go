package lease_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/lease"
)

func TestStopDoesNotLoseTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(yes)
		ctx, k := s.keep(t)
		k.Stop()
		k.Stop()
		k.Lost() // after Stop, it does nothing
		if cause := context.Cause(ctx); cause != context.Canceled {
			t.Errorf("cause after Stop = %v, want %v", cause, context.Canceled)
		}
		if k.Held() {
			t.Error("Held = true after Stop")
		}
	})
}

func TestStopWaitsForARunningRenewal(t *testing.T) {
	for name, answer := range map[string]struct {
		ours bool
		err  error
	}{
		"that says yes": {true, nil},
		"that says no":  {false, nil},
		"that fails":    {false, errDown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ended bool
				s := newServer(func(ctx context.Context, _ int) (bool, error) {
					<-ctx.Done() // Stop ends it
					time.Sleep(3 * time.Second)
					ended = true
					return answer.ours, answer.err
				})
				ctx, k := s.keep(t)
				time.Sleep(12 * time.Second)
				k.Stop()
				if took := time.Since(s.start); !ended || took != 15*time.Second {
					t.Errorf("Stop returned after %v, renewal over %v; want 15s, true", took, ended)
				}
				if cause := context.Cause(ctx); cause != context.Canceled {
					t.Errorf("cause = %v, want %v", cause, context.Canceled)
				}
				time.Sleep(time.Hour)
				s.wantRenewed(t, 10*time.Second) // and never again
			})
		})
	}
}

// With all methods called at once, Stop returns, and no renewal begins after it.
func TestConcurrentUseOfAKeeper(t *testing.T) {
	const short = time.Millisecond
	var all sync.WaitGroup
	for i := range 300 {
		all.Go(func() {
			var stopped atomic.Bool
			ctx, k := lease.Keep(t.Context(), time.Now(), short, errLost, func(ctx context.Context) (bool, error) {
				if stopped.Load() {
					t.Error("a renewal began after Stop")
				}
				return i%3 != 0, ctx.Err()
			})
			child, cancel := context.WithCancel(ctx)
			defer cancel()
			var users sync.WaitGroup
			users.Go(func() { <-child.Done() })
			users.Go(func() {
				for ctx.Err() == nil {
					k.Held()
				}
			})
			users.Go(func() {
				if i%2 == 0 {
					k.Lost()
				}
			})
			if i%5 == 0 {
				<-ctx.Done()
			}
			k.Stop()
			stopped.Store(true)
			users.Wait()
		})
	}
	all.Wait()
}

// The renewal that runs during Stop is refused.
func TestStopReportsARefusedRenewal(t *testing.T) {
	for name, answer := range map[string]bool{"lost": false, "ours": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				arrives := make(chan struct{})
				s := newServer(func(context.Context, int) (bool, error) { <-arrives; return answer, nil })
				_, k := s.keep(t)
				time.Sleep(length / 2)
				held := make(chan bool)
				go func() { held <- k.Stop() }()
				synctest.Wait()
				close(arrives)
				if got := <-held; got != answer {
					t.Errorf("Stop = %v, want %v", got, answer)
				}
				if k.Stop() {
					t.Error("a second Stop = true")
				}
			})
		})
	}
}
