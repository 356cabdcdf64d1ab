package protocol_test

import (
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestReleaseNotifiesTheWaiters(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter := newProcess(t, r, "holder"), newProcess(t, r, "waiter")
		owner, fence := holder.lease()
		waiter.wait()
		if ours, err := waiter.Release(t.Context(), leaseOf("waiter.1", fence)); ours || err != nil {
			t.Errorf("Release by a waiter = %v, %v; want false, nil", ours, err)
		}
		waiter.wantNoNotification()
		if ours, err := holder.Release(t.Context(), leaseOf(owner, fence)); !ours || err != nil {
			t.Errorf("Release = %v, %v; want true, nil", ours, err)
		}
		waiter.wantNotified(protocol.KindRetry, fence, "")
		holder.wantNoNotification()
		if ours, err := holder.Release(t.Context(), leaseOf(owner, fence)); ours || err != nil {
			t.Errorf("Release of what is released = %v, %v; want false, nil", ours, err)
		}
		waiter.lease()
		holder.must(holder.rdb.Del(t.Context(), key.Meta()).Err())
		holder.must(holder.rdb.Set(t.Context(), key.Meta(), "x", ttl).Err())
		if ours, err := holder.Release(t.Context(), leaseOf(owner, fence)); ours || err != nil {
			t.Errorf("Release of foreign data = %v, %v; want false, nil", ours, err)
		}
	})
}

func TestFailureIsSharedWithTheWaiters(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter := newProcess(t, r, "holder"), newProcess(t, r, "waiter")
		failure := protocol.Failure{Class: protocol.FailedFetch, Text: "no route to host"}
		owner, fence := holder.lease()
		waiter.wait()
		if ours, err := waiter.ReleaseFailed(t.Context(), leaseOf("waiter.1", fence), failure, protocol.Sharing{Lasts: ttl}); ours || err != nil {
			t.Errorf("ReleaseFailed by a waiter = %v, %v; want false, nil", ours, err)
		}
		waiter.wantNoNotification()
		if ours, err := holder.ReleaseFailed(t.Context(), leaseOf(owner, fence), failure, protocol.Sharing{}); !ours || err != nil {
			t.Errorf("ReleaseFailed = %v, %v; want true, nil", ours, err)
		}
		waiter.wantNotified(protocol.KindFailure, fence, failure.Encode())
		holder.wantNoNotification()
		waiter.lease() // it is not shared with later callers
	})
}

func TestFailureIsSharedForErrorTTL(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, other := newProcess(t, r, "holder"), newProcess(t, r, "other")
		share := 20 * time.Second
		if !r.Fake() {
			share = 200 * time.Millisecond
		}
		failure := protocol.Failure{Class: protocol.FetchTimeout, Text: "Zürich"}
		owner, fence := holder.lease()
		if ours, err := holder.ReleaseFailed(t.Context(), leaseOf(owner, fence), failure, protocol.Sharing{Lasts: share}); !ours || err != nil {
			t.Errorf("ReleaseFailed = %v, %v; want true, nil", ours, err)
		}
		holder.wantEnd(key.Meta(), share)
		a := other.acquire(other.owner(), nil)
		if a.State != protocol.Failed || a.Failure != failure || a.Left <= 0 || a.Left > share {
			t.Errorf("Acquire = %+v, want the failure, for at most %v", a, share)
		}
		if ours, err := holder.Renew(t.Context(), leaseOf(owner, 0), lease); ours || err != nil {
			t.Errorf("Renew of a failed lease = %v, %v; want false, nil", ours, err)
		}
		if f := holder.fill(owner, fence, seal(fence, 1), ttl); f.Stored {
			t.Error("Fill after a failure has stored something")
		}
		if r.Fake() {
			time.Sleep(share)
		}
		r.Until("the failure has ended", func() bool { return !other.exists(key.Meta()) })
		if _, next := other.lease(); next <= fence {
			t.Errorf("the next fence is %d, want more than %d", next, fence)
		}
	})
}

func TestBackoffIsForCallersWithAStaleValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		failure := protocol.Failure{Class: protocol.FailedFetch, Text: "no"}
		old := seal(1, 1)
		p.must(p.rdb.Set(t.Context(), key.Value, old, ttl).Err())
		stale := &protocol.PassOver{Head: old, Stale: true}
		owner := p.owner()
		a := p.acquire(owner, stale)
		if ours, err := p.ReleaseFailed(t.Context(), leaseOf(owner, a.Fence), failure, protocol.Sharing{Lasts: lease, StaleOnly: true}); !ours || err != nil {
			t.Errorf("ReleaseFailed = %v, %v; want true, nil", ours, err)
		}
		if a := p.acquire(p.owner(), stale); a.State != protocol.Failed || a.Failure != failure {
			t.Errorf("Acquire with a stale value = %+v, want the failure", a)
		}
		if a := p.acquire(p.owner(), nil); a.State != protocol.Stored {
			t.Errorf("Acquire without a stale value = %+v, want the stored value", a)
		}
		owner = p.owner()
		b := p.acquire(owner, &protocol.PassOver{Head: old})
		if b.State != protocol.Leased || b.Fence <= a.Fence {
			t.Errorf("Acquire over an unusable value = %+v, want a lease with a fence above %d", b, a.Fence)
		}
		// The backoff has no effect on this lease.
		p.wantEnd(key.Meta(), lease)
		if c := p.acquire(p.owner(), stale); c.State != protocol.Wait || c.Fence != b.Fence {
			t.Errorf("Acquire while another fetches = %+v, want to wait for %d", c, b.Fence)
		}
		if f := p.fill(owner, b.Fence, seal(b.Fence, 1), ttl); !f.Stored || p.exists(key.Meta()) {
			t.Errorf("Fill = %+v, the lease is there: %v; want stored, false", f, p.exists(key.Meta()))
		}
	})
}

func TestRenewedLeaseLastsFromNow(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p, other := newClient(t, r, "p"), newClient(t, r, "other")
		owner, _ := p.lease()
		if r.Fake() {
			time.Sleep(lease / 2)
			p.wantEnd(key.Meta(), lease/2)
		}
		if ours, err := p.Renew(t.Context(), leaseOf(owner, 0), 2*lease); !ours || err != nil {
			t.Errorf("Renew = %v, %v; want true, nil", ours, err)
		}
		if left := p.rdb.PTTL(t.Context(), key.Meta()).Val(); left <= lease || left > 2*lease {
			t.Errorf("it lasts %v, want %v", left, 2*lease)
		}
		if ours, err := other.Renew(t.Context(), leaseOf("other.1", 0), lease); ours || err != nil {
			t.Errorf("Renew by another = %v, %v; want false, nil", ours, err)
		}
		if left := p.rdb.PTTL(t.Context(), key.Meta()).Val(); left <= lease {
			t.Errorf("after another's Renew it lasts %v", left)
		}
		p.must(p.rdb.Del(t.Context(), key.Meta()).Err())
		if ours, err := p.Renew(t.Context(), leaseOf(owner, 0), lease); ours || err != nil || p.exists(key.Meta()) {
			t.Errorf("Renew of an ended lease = %v, %v; want false, nil, and no lease", ours, err)
		}
		p.must(p.rdb.Set(t.Context(), key.Meta(), owner, ttl).Err())
		if ours, err := p.Renew(t.Context(), leaseOf(owner, 0), lease); ours || err != nil {
			t.Errorf("Renew of foreign data = %v, %v; want false, nil", ours, err)
		}
	})
}
