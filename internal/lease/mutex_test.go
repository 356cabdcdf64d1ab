package lease_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/contexttest"
	"github.com/fetchonce/fetchonce/internal/lease"
)

// The keeper calls no method of its parent context under its mutex: the parent may be the
// context of another lease, which calls the keeper when it ends.
func TestContextMayCallTheKeeper(t *testing.T) {
	for name, end := range map[string]func(k *lease.Keeper){
		"Lost":     (*lease.Keeper).Lost,
		"Stop":     func(k *lease.Keeper) { k.Stop() },
		"End":      func(k *lease.Keeper) { k.End(errLost) },
		"deadline": func(*lease.Keeper) { time.Sleep(deadline) },
		"renewal":  func(*lease.Keeper) { time.Sleep(length / 2) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answer := down
				if name == "renewal" {
					answer = no
				}
				var keeper atomic.Pointer[lease.Keeper]
				var calls, held atomic.Int32
				parent := &contexttest.Context{Context: t.Context(), Called: func() {
					if k := keeper.Load(); k != nil {
						calls.Add(1)
						if !k.IsFree() {
							held.Add(1)
						}
					}
				}}
				ctx, k := lease.Keep(parent, time.Now(), length, errLost, newServer(answer).renew)
				keeper.Store(k)
				end(k)
				<-ctx.Done()
				synctest.Wait()
				if calls.Load() == 0 || held.Load() > 0 {
					t.Errorf("of %d calls of the parent's methods, %d were made under the keeper's mutex", calls.Load(), held.Load())
				}
				k.Stop()
			})
		})
	}
}
