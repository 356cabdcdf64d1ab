package systemtest_test

import (
	"errors"
	"testing"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A full Redis refuses new locks. Held locks are renewed, released and handed off to waiters.
func TestFullRedisLosesNoHeldLock(t *testing.T) {
	r := redistest.Server(t, "--maxmemory-policy", "noeviction").Backend()
	admin := r.Plain()
	lk, other := testkit.NewLocker(t, r, testkit.ShortLockLease(r)), testkit.NewLocker(t, r, testkit.ShortLockLease(r))
	holder := testkit.Taken(t, r, lk)
	waiter := testkit.Queued(t.Context(), t, r, other, 1)
	setMaxMemory(t, admin, "1")
	state, renewals := "", 0
	r.Until("the lease is renewed several times", func() bool {
		if now := admin.Get(t.Context(), "test:l:{it}").Val(); now != state {
			state = now
			renewals++
		}
		return renewals > 6 || holder.Ctx.Err() != nil // two leases
	})
	if holder.Ctx.Err() != nil {
		t.Error("the lock was lost in a full Redis")
	}
	holder.Release(nil)
	waiter.Has()
	waiter.Release(nil)
	var ours *fetchonce.Error
	if err := lk.Do(t.Context(), "another", testkit.Nothing); !errors.As(err, &ours) {
		t.Errorf("Do of a new lock in a full Redis = %v, want an *Error", err)
	}
	setMaxMemory(t, admin, "0")
	if err := lk.Do(t.Context(), "it", testkit.Nothing); err != nil {
		t.Error(err)
	}
}

// A full Redis does not store the fetched value. All callers in all processes receive it.
func TestFullRedisLosesNoFetchedValue(t *testing.T) {
	r := redistest.Server(t, "--maxmemory-policy", "noeviction").Backend()
	admin := r.Plain()
	holder, other := testkit.NewLoader(t, r), testkit.NewLoader(t, r)
	o := testkit.NewOrigin(t)
	here := testkit.Get(t, t.Context(), holder, "k", o)
	c := o.Next()
	there := testkit.Get(t, t.Context(), other, "k", o)
	testkit.AwaitWaiters(t, r, "k", 1)
	setMaxMemory(t, admin, "1")
	c.Returns("v")
	here.Want("v")
	there.Want("v")
	o.Want(1)
	if err := other.Delete(t.Context(), "k"); err != nil {
		t.Error("Delete in a full Redis:", err)
	}
	setMaxMemory(t, admin, "0")
	again := testkit.Get(t, t.Context(), other, "k", o)
	o.Next().Returns("v") // the lease is free, and nothing is stored
	again.Want("v")
	testkit.WantKept(t, holder, "v")
}
