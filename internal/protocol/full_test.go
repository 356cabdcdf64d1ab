package protocol_test

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// A fullRedis is a server that evicts nothing. fill and empty set its maxmemory.
type fullRedis struct {
	t *testing.T
	redistest.Backend
	rdb redis.UniversalClient
}

func newFullRedis(t *testing.T) fullRedis {
	t.Helper()
	r := redistest.Server(t, "--maxmemory-policy", "noeviction").Backend()
	return fullRedis{t: t, Backend: r, rdb: r.Client()}
}

func (f fullRedis) maxMemory(bytes string) {
	f.t.Helper()
	if err := f.rdb.ConfigSet(f.t.Context(), "maxmemory", bytes).Err(); err != nil {
		f.t.Fatal(err)
	}
}

func (f fullRedis) fill()  { f.maxMemory("1") }
func (f fullRedis) empty() { f.maxMemory("0") }

func wantFull(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "OOM command not allowed") { // Redis 6.2 says ERR and the script first
		t.Errorf("%s: %v, want OOM", what, err)
	}
}

// A lockProcess is a process that uses one lock.
type lockProcess struct {
	*process
	lock protocol.Lock
}

func (p lockProcess) request(owner string) protocol.LockRequest {
	return protocol.LockRequest{Owner: owner, Lease: lease, Slots: 1}
}

func (p lockProcess) requestLock(w protocol.LockRequest) protocol.LockAnswer {
	p.t.Helper()
	a, err := p.AcquireLock(p.t.Context(), p.lock, w)
	if err != nil {
		p.t.Fatalf("AcquireLock of %s: %v", w.Owner, err)
	}
	return a
}

func (p lockProcess) wantHeld(w protocol.LockRequest) protocol.LockAnswer {
	p.t.Helper()
	a := p.requestLock(w)
	if !a.Held {
		p.t.Fatalf("AcquireLock of %s = %+v, want the lease", w.Owner, a)
	}
	return a
}

func (p lockProcess) wantQueued(w protocol.LockRequest) protocol.LockAnswer {
	p.t.Helper()
	a := p.requestLock(w)
	if a.Held || a.Ticket == "0" {
		p.t.Fatalf("AcquireLock of %s = %+v, want a place in the queue", w.Owner, a)
	}
	return a
}

func (p lockProcess) wantReleased(owner string) {
	p.t.Helper()
	if ours, err := p.ReleaseLock(p.t.Context(), p.lock, p.request(owner)); !ours || err != nil {
		p.t.Errorf("ReleaseLock of %s = %v, %v; want true", owner, ours, err)
	}
}

func TestLocksInAFullRedis(t *testing.T) {
	r := newFullRedis(t)
	lockOf := func(t *testing.T) lockProcess {
		t.Cleanup(r.empty)
		return lockProcess{newClient(t, r, "p"), ns.Lock(t.Name())}
	}
	t.Run("a new lock is refused", func(t *testing.T) {
		p := lockOf(t)
		r.fill()
		_, err := p.AcquireLock(t.Context(), p.lock, p.request("p.1"))
		wantFull(t, "AcquireLock", err)
		if p.exists(p.lock.Names()[0]) {
			t.Error("a lock that was refused is there")
		}
	})
	t.Run("a new waiter is refused", func(t *testing.T) {
		p := lockOf(t)
		p.wantHeld(p.request("p.1"))
		r.fill()
		_, err := p.AcquireLock(t.Context(), p.lock, p.request("p.2"))
		wantFull(t, "AcquireLock", err)
	})
	t.Run("renew", func(t *testing.T) {
		p := lockOf(t)
		name := p.lock.Names()[0]
		p.wantHeld(p.request("p.1"))
		p.must(p.rdb.PExpire(t.Context(), name, time.Second).Err())
		r.fill()
		if ours, err := p.RenewLock(t.Context(), p.lock, p.request("p.1")); !ours || err != nil {
			t.Errorf("RenewLock = %v, %v; want true", ours, err)
		}
		if left := p.rdb.PTTL(t.Context(), name).Val(); left <= lease {
			t.Errorf("after a renewal the lock lasts %v", left)
		}
	})
	t.Run("release", func(t *testing.T) {
		p := lockOf(t)
		before := p.wantHeld(p.request("p.1"))
		r.fill()
		p.wantReleased("p.1")
		r.empty()
		if after := p.wantHeld(p.request("p.2")); after.Fence < before.Fence+protocol.LockFences {
			t.Errorf("the fences are %d and then %d", before.Fence, after.Fence)
		}
	})
	t.Run("request a lease again", func(t *testing.T) {
		p := lockOf(t)
		p.wantHeld(p.request("p.1"))
		r.fill()
		p.wantHeld(p.request("p.1"))
	})
	t.Run("hand-off and confirmation", func(t *testing.T) {
		p := lockOf(t)
		p.wantHeld(p.request("p.1"))
		p.wantQueued(p.request("p.2"))
		place := p.wantQueued(p.request("p.3"))
		r.fill()
		p.wantReleased("p.1")
		p.wantHeld(p.request("p.2"))
		again := p.request("p.3")
		again.Ticket = place.Ticket
		if still := p.wantQueued(again); still.Ticket != place.Ticket {
			t.Errorf("a waiter that sends its request again moves from ticket %s to %s", place.Ticket, still.Ticket)
		}
		p.wantReleased("p.2")
		p.wantHeld(again)
		p.wantReleased("p.3")
	})
	t.Run("release and join the queue", func(t *testing.T) {
		p := lockOf(t)
		p.wantHeld(p.request("p.1"))
		p.wantQueued(p.request("p.2"))
		r.fill()
		w := p.request("p.3")
		w.Release = "p.1"
		if a := p.wantQueued(w); !a.Released {
			t.Error("the lease was not released")
		}
		p.wantHeld(p.request("p.2"))
		p.wantReleased("p.2")
		w.Release = ""
		p.wantHeld(w)
		w = p.request("p.4") // also without a waiter
		w.Release = "p.3"
		if a := p.wantHeld(w); !a.Released {
			t.Error("the lease was not released")
		}
	})
	t.Run("leave the queue", func(t *testing.T) {
		p := lockOf(t)
		p.wantHeld(p.request("p.1"))
		p.wantQueued(p.request("p.2"))
		r.fill()
		if ours, err := p.ReleaseLock(t.Context(), p.lock, p.request("p.2")); ours || err != nil {
			t.Errorf("ReleaseLock of a waiter = %v, %v", ours, err)
		}
		p.wantReleased("p.1")
	})
}

func TestLeasesInAFullRedis(t *testing.T) {
	r := newFullRedis(t)
	setup := func(t *testing.T) (holder, waiter *process) {
		t.Cleanup(r.empty)
		holder, waiter = newProcess(t, r, "holder"), newProcess(t, r, "waiter")
		holder.clear()
		return holder, waiter
	}
	t.Run("wait and renew", func(t *testing.T) {
		holder, waiter := setup(t)
		owner, _ := holder.lease()
		r.fill()
		waiter.wait()
		if ours, err := holder.Renew(t.Context(), leaseOf(owner, 0), lease); !ours || err != nil {
			t.Errorf("Renew = %v, %v", ours, err)
		}
	})
	t.Run("share a failure", func(t *testing.T) {
		holder, waiter := setup(t)
		owner, fence := holder.lease()
		waiter.wait()
		r.fill()
		failure := protocol.Failure{Class: protocol.FailedFetch, Text: "no"}
		if ours, err := holder.ReleaseFailed(t.Context(), leaseOf(owner, fence), failure, protocol.Sharing{Lasts: ttl}); !ours || err != nil {
			t.Errorf("ReleaseFailed = %v, %v", ours, err)
		}
		waiter.wantNotified(protocol.KindFailure, fence, failure.Encode())
		if a := waiter.acquire("waiter.1", nil); a.State != protocol.Failed {
			t.Errorf("Acquire = %+v, want the failure", a)
		}
	})
	for name, size := range map[string]int{"a small value": 100, "a large value": protocol.StageAbove + 1} {
		t.Run("fill with "+name, func(t *testing.T) {
			holder, waiter := setup(t)
			owner, fence := holder.lease()
			waiter.wait()
			sealed := sized(fence, size)
			r.fill()
			filled := holder.fill(owner, fence, sealed, ttl)
			if !filled.Stored {
				t.Errorf("Fill = %+v, want stored: the waiters are notified", filled)
			}
			wantFull(t, "Fill", filled.Refused)
			if size > protocol.StageAbove {
				waiter.wantNotified(protocol.KindRetry, fence, "")
			} else {
				waiter.wantNotified(protocol.KindValue, fence, string(sealed))
			}
			r.empty()
			if holder.get() != "" {
				t.Error("a full Redis has stored the value")
			}
			waiter.lease() // it is free
		})
	}
	t.Run("invalidate", func(t *testing.T) {
		holder, waiter := setup(t)
		owner, fence := holder.lease()
		holder.fill(owner, fence, seal(fence, 1), ttl)
		r.fill()
		holder.must(holder.Invalidate(t.Context(), key))
		if waiter.get() != "" {
			t.Error("a deleted value is there")
		}
	})
	t.Run("set, renew and remove a mark", func(t *testing.T) {
		holder, waiter := setup(t)
		owner, fence := holder.lease()
		holder.fill(owner, fence, seal(fence, 1), ttl)
		r.fill()
		holder.must(holder.Mark(t.Context(), key, "m", time.Second))
		if waiter.get() != "" {
			t.Error("a value from before an Update is there")
		}
		holder.must(holder.Mark(t.Context(), key, "m", ttl))
		if left := holder.rdb.PTTL(t.Context(), key.Marks()).Val(); left <= time.Second {
			t.Errorf("a renewed mark lasts %v", left)
		}
		holder.must(holder.Unmark(t.Context(), key, "m"))
		if holder.exists(key.Marks()) {
			t.Error("the mark is still there")
		}
	})
	t.Run("a Set is refused", func(t *testing.T) {
		for _, size := range []int{100, protocol.StageAbove + 1} {
			holder, waiter := setup(t)
			owner, fence := holder.lease()
			old := string(seal(fence, 1))
			holder.fill(owner, fence, []byte(old), ttl)
			r.fill()
			wantFull(t, "Set", holder.Set(t.Context(), key, holder.owner(), sized(0, size), ttl))
			r.empty()
			if got := waiter.get(); got != old {
				t.Errorf("a Set that was refused has left %d bytes", len(got))
			}
		}
	})
}
