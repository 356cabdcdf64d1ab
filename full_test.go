package fetchonce_test

import (
	"errors"
	"testing"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// A full Redis refuses new locks. Locks that are held are renewed, given back, and
// handed to the process that waits.
func TestFullRedisCostsNoLock(t *testing.T) {
	r := redistest.Server(t, "--maxmemory-policy", "noeviction").Backend()
	admin := r.Plain()
	lk, other := newLocker(t, r, shortLockLease(r)), newLocker(t, r, shortLockLease(r))
	holder := taken(t, r, lk)
	waiter := queued(t.Context(), t, r, other, 1)
	setMaxMemory(t, admin, "1")
	state, renewals := "", 0
	r.Until("the lease is renewed several times", func() bool {
		if now := admin.Get(t.Context(), "test:l:{it}").Val(); now != state {
			state = now
			renewals++
		}
		return renewals > 6 || holder.ctx.Err() != nil // a lease is three renewals long
	})
	if holder.ctx.Err() != nil {
		t.Error("the lock was lost in a full Redis")
	}
	holder.release(nil)
	waiter.has()
	waiter.release(nil)
	var ours *fetchonce.Error
	if err := lk.Do(t.Context(), "another", nothing); !errors.As(err, &ours) {
		t.Errorf("Do of a new lock in a full Redis = %v, want an *Error", err)
	}
	setMaxMemory(t, admin, "0")
	if err := lk.Do(t.Context(), "it", nothing); err != nil {
		t.Error(err)
	}
}

// A full Redis does not store what was fetched. The callers in all processes get it.
func TestFullRedisCostsNoFetch(t *testing.T) {
	r := redistest.Server(t, "--maxmemory-policy", "noeviction").Backend()
	admin := r.Plain()
	holder, other := newLoader(t, r), newLoader(t, r)
	o := newOrigin(t)
	here := get(t, t.Context(), holder, "k", o)
	c := o.next()
	there := get(t, t.Context(), other, "k", o)
	awaitWaiters(t, r, "k", 1)
	setMaxMemory(t, admin, "1")
	c.returns("v")
	here.want("v")
	there.want("v")
	o.want(1)
	if err := other.Delete(t.Context(), "k"); err != nil {
		t.Error("Delete in a full Redis:", err)
	}
	setMaxMemory(t, admin, "0")
	again := get(t, t.Context(), other, "k", o)
	o.next().returns("v") // the lease is free, and nothing is stored
	again.want("v")
	wantKept(t, holder, "v")
}
