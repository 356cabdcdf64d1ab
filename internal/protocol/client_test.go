package protocol_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestGet(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		ctx := t.Context()
		if got, err := p.Get(ctx, key, 100); got != nil || err != nil {
			t.Errorf("Get of nothing = %q, %v; want nil, nil", got, err)
		}
		p.must(p.rdb.Set(ctx, key.Value, "0123456789", ttl).Err())
		for limit, want := range map[int]string{100: "0123456789", 10: "0123456789", 9: "0123456789", 8: "012345678", 0: "0"} {
			if got, err := p.Get(ctx, key, limit); string(got) != want || err != nil {
				t.Errorf("Get with limit %d = %q, %v; want %q, nil", limit, got, err, want)
			}
		}
		binary := "\x00\r\n$5\xff"
		p.must(p.rdb.Set(ctx, key.Value, binary, ttl).Err())
		if got, err := p.Get(ctx, key, 100); string(got) != binary || err != nil {
			t.Errorf("Get = %q, %v; want %q, nil", got, err, binary)
		}
		p.must(p.rdb.Del(ctx, key.Value).Err())
		p.must(p.rdb.RPush(ctx, key.Value, "x").Err())
		p.must(p.rdb.PExpire(ctx, key.Value, ttl).Err())
		if got, err := p.Get(ctx, key, 100); got != nil || !errors.Is(err, protocol.ErrType) {
			t.Errorf("Get of a list = %q, %v; want %v", got, err, protocol.ErrType)
		}
	})
}

func TestFillStoresAndEndsTheLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter := newProcess(t, r, "holder"), newProcess(t, r, "waiter")
		owner, fence := holder.lease()
		waiter.wait()
		sealed := seal(fence, 100)
		if f := holder.fill(owner, fence, sealed, ttl); !f.Stored {
			t.Errorf("Fill = %+v, want stored", f)
		}
		if got := waiter.get(); got != string(sealed) {
			t.Errorf("the value is %q, want %q", got, sealed)
		}
		holder.wantEnd(key.Value, ttl)
		if holder.exists(key.Meta()) {
			t.Error("the lease is still there")
		}
		waiter.wantTold(protocol.KindValue, fence, string(sealed))
		waiter.wantSilence()
		holder.wantSilence()
	})
}

func TestFillReplacesWhateverIsThere(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		for name, put := range map[string]func() error{
			"a value of anybody's": func() error { return p.rdb.Set(t.Context(), key.Value, "x", 0).Err() },
			"a list":               func() error { return p.rdb.RPush(t.Context(), key.Value, "x").Err() },
		} {
			for _, size := range []int{100, protocol.StageAbove + 1} {
				owner, fence := p.lease()
				p.must(put())
				sealed := sized(fence, size)
				if f := p.fill(owner, fence, sealed, ttl); !f.Stored || p.get() != string(sealed) {
					t.Errorf("%s, value of %d bytes: Fill = %+v, and then there are %d bytes", name, size, f, len(p.get()))
				}
				p.wantEnd(key.Value, ttl)
				p.must(p.rdb.Del(t.Context(), key.Value).Err())
			}
		}
	})
}

func TestHowAValueTravels(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter := newProcess(t, r, "holder"), newProcess(t, r, "waiter")
		w := redistest.WireOf(holder.rdb)
		told := protocol.LargestNotified
		if strings.HasSuffix(t.Name(), "cluster") {
			told = protocol.LargestNotifiedCluster
		}
		for _, c := range []struct {
			size         int
			told, staged bool
		}{
			{told, true, false},
			{told + 1, false, told == protocol.StageAbove},
			{protocol.StageAbove, told == protocol.StageAbove, false},
			{protocol.StageAbove + 1, false, true},
			{1 << 20, false, true},
		} {
			owner, fence := holder.lease()
			waiter.wait()
			w.Reset()
			sealed := sized(fence, c.size)
			if f := holder.fill(owner, fence, sealed, ttl); !f.Stored {
				t.Errorf("%d bytes: Fill = %+v, want stored", c.size, f)
			}
			staged := w.Commands()[0] == "SET"
			if staged != c.staged {
				t.Errorf("%d bytes: sent as %v, staged: want %v", c.size, w.Commands(), c.staged)
			}
			if holder.exists(key.Staged(owner)) {
				t.Errorf("%d bytes: the staged value is still there", c.size)
			}
			if got, err := holder.Get(t.Context(), key, 1<<21); string(got) != string(sealed) || err != nil {
				t.Errorf("%d bytes: stored were %d, %v", c.size, len(got), err)
			}
			holder.wantEnd(key.Value, ttl)
			if c.told {
				waiter.wantTold(protocol.KindValue, fence, string(sealed))
			} else {
				waiter.wantTold(protocol.KindRetry, fence, "")
			}
			p := holder
			p.must(p.rdb.Del(t.Context(), key.Value).Err())
		}
	})
}

func TestManyWaitersAreNotifiedToRetry(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter := newProcess(t, r, "holder"), newProcess(t, r, "waiter")
		for others, want := range map[int]protocol.Kind{
			protocol.MostNotified - 1: protocol.KindValue,
			protocol.MostNotified:     protocol.KindRetry,
		} {
			owner, fence := holder.lease()
			waiter.wait()
			register(t, waiter, others)
			sealed := seal(fence, 1)
			holder.fill(owner, fence, sealed, ttl)
			body := string(sealed)
			if want == protocol.KindRetry {
				body = ""
			}
			waiter.wantTold(want, fence, body)
			holder.must(holder.Invalidate(t.Context(), key))
		}
	})
}

// register makes so many other processes wait.
func register(t *testing.T, p *process, n int) {
	t.Helper()
	run := batch.NewRouter(p.rdb).Link(0, 0)
	for i := range n {
		id := fmt.Sprint("other", i)
		c := protocol.NewClient(run, ns, id, timeout, false)
		if a, err := c.Acquire(t.Context(), key, id+".1", lease, nil); err != nil || a.State != protocol.Wait {
			t.Fatalf("Acquire by %s = %+v, %v; want to wait", id, a, err)
		}
	}
}

func TestFillWithoutTheLeaseStoresNothing(t *testing.T) {
	large := protocol.StageAbove + 1
	for name, c := range map[string]struct {
		meanwhile func(t *testing.T, p *process)
		size      int
	}{
		"the lease is over": {
			func(t *testing.T, p *process) { p.must(p.rdb.Del(t.Context(), key.Meta()).Err()) }, 100,
		},
		"the lease is over, and the value large": {
			func(t *testing.T, p *process) { p.must(p.rdb.Del(t.Context(), key.Meta()).Err()) }, large,
		},
		"another has it": {
			func(t *testing.T, p *process) {
				p.must(p.rdb.Del(t.Context(), key.Meta()).Err())
				p.lease()
			}, 100,
		},
		"another has filled it": {
			func(t *testing.T, p *process) {
				p.must(p.rdb.Del(t.Context(), key.Meta()).Err())
				owner, fence := p.lease()
				p.fill(owner, fence, []byte("another's"), ttl)
			}, 100,
		},
		"another has filled it, and the value is large": {
			func(t *testing.T, p *process) {
				p.must(p.rdb.Del(t.Context(), key.Meta()).Err())
				owner, fence := p.lease()
				p.fill(owner, fence, []byte("another's"), ttl)
			}, large,
		},
		"foreign data is in the place of the lease": {
			func(t *testing.T, p *process) { p.must(p.rdb.Set(t.Context(), key.Meta(), "x", ttl).Err()) }, 100,
		},
		"foreign data is in the place of both": {
			func(t *testing.T, p *process) {
				p.must(p.rdb.Set(t.Context(), key.Meta(), "x", ttl).Err())
				p.must(p.rdb.RPush(t.Context(), key.Value, "x").Err())
				p.must(p.rdb.PExpire(t.Context(), key.Value, ttl).Err())
			}, 100,
		},
		"the key was invalidated": {
			func(t *testing.T, p *process) { p.must(p.Invalidate(t.Context(), key)) }, 100,
		},
	} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r redistest.Backend) {
				p, other := newClient(t, r, "p"), newClient(t, r, "other")
				owner, fence := p.lease()
				c.meanwhile(t, other)
				before, _ := other.rdb.Dump(t.Context(), key.Value).Result()
				meta, _ := other.rdb.HGetAll(t.Context(), key.Meta()).Result()
				f := p.fill(owner, fence, sized(fence, c.size), ttl)
				if f.Stored {
					t.Errorf("Fill = %+v; want not stored", f)
				}
				if after, _ := other.rdb.Dump(t.Context(), key.Value).Result(); after != before {
					t.Errorf("the value changed from %q to %q", before, after)
				}
				if after, _ := other.rdb.HGetAll(t.Context(), key.Meta()).Result(); fmt.Sprint(after) != fmt.Sprint(meta) {
					t.Errorf("the other's lease changed from %v to %v", meta, after)
				}
				if p.exists(key.Staged(owner)) {
					t.Error("the staged value is still there")
				}
			})
		})
	}
}

func TestFillAgainIsNoLoss(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		for _, size := range []int{100, protocol.StageAbove + 1} {
			owner, fence := p.lease()
			sealed := sized(fence, size)
			for range 3 {
				if f := p.fill(owner, fence, sealed, ttl); !f.Stored {
					t.Errorf("%d bytes: Fill = %+v, want stored", size, f)
				}
			}
			if p.get() != string(sealed) || p.exists(key.Staged(owner)) {
				t.Errorf("%d bytes: stored %d, staged is there: %v", size, len(p.get()), p.exists(key.Staged(owner)))
			}
			p.must(p.Invalidate(t.Context(), key))
			if f := p.fill(owner, fence, sealed, ttl); f.Stored || p.get() != "" {
				t.Errorf("%d bytes: Fill after an Invalidate = %+v", size, f)
			}
		}
	})
}

func TestFillThatKeepsNothingNotifiesTheWaiters(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter := newProcess(t, r, "holder"), newProcess(t, r, "waiter")
		w := redistest.WireOf(holder.rdb)
		for _, keep := range []time.Duration{0, -time.Second, time.Microsecond} {
			for _, size := range []int{100, protocol.StageAbove + 1} {
				holder.must(holder.rdb.Set(t.Context(), key.Value, "unusable", ttl).Err())
				owner := holder.owner()
				a := holder.acquire(owner, &protocol.PassOver{Head: []byte("unusable")})
				waiter.acquire(waiter.owner(), &protocol.PassOver{Head: []byte("unusable")})
				sealed := sized(a.Fence, size)
				w.Reset()
				if f := holder.fill(owner, a.Fence, sealed, keep); !f.Stored {
					t.Errorf("ttl %v, %d bytes: Fill = %+v, want that it was ours", keep, size, f)
				}
				if holder.exists(key.Value) || holder.exists(key.Meta()) || holder.exists(key.Staged(owner)) {
					t.Errorf("ttl %v, %d bytes: there is a value: %v, a lease: %v, a staged value: %v; want none", keep, size,
						holder.exists(key.Value), holder.exists(key.Meta()), holder.exists(key.Staged(owner)))
				}
				if size == 100 {
					waiter.wantTold(protocol.KindValue, a.Fence, string(sealed))
				} else {
					waiter.wantTold(protocol.KindRetry, a.Fence, "")
				}
			}
		}
	})
}

func TestReleaseNotifiesTheWaiters(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter := newProcess(t, r, "holder"), newProcess(t, r, "waiter")
		owner, fence := holder.lease()
		waiter.wait()
		if ours, err := waiter.Release(t.Context(), leaseOf("waiter.1", fence)); ours || err != nil {
			t.Errorf("Release by a waiter = %v, %v; want false, nil", ours, err)
		}
		waiter.wantSilence()
		if ours, err := holder.Release(t.Context(), leaseOf(owner, fence)); !ours || err != nil {
			t.Errorf("Release = %v, %v; want true, nil", ours, err)
		}
		waiter.wantTold(protocol.KindRetry, fence, "")
		holder.wantSilence()
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
		waiter.wantSilence()
		if ours, err := holder.ReleaseFailed(t.Context(), leaseOf(owner, fence), failure, protocol.Sharing{}); !ours || err != nil {
			t.Errorf("ReleaseFailed = %v, %v; want true, nil", ours, err)
		}
		waiter.wantTold(protocol.KindFailure, fence, failure.Encode())
		holder.wantSilence()
		waiter.lease() // it is not shared with those who come later
	})
}

func TestFailureIsSharedForSoLong(t *testing.T) {
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
		r.Until("the failure is over", func() bool { return !other.exists(key.Meta()) })
		if _, next := other.lease(); next <= fence {
			t.Errorf("the next fence is %d, want more than %d", next, fence)
		}
	})
}

// A pause after a failed refresh is for those who can do without the fresh value.
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
			t.Errorf("Acquire with an old value = %+v, want the failure", a)
		}
		if a := p.acquire(p.owner(), nil); a.State != protocol.Stored {
			t.Errorf("Acquire that looks for a value = %+v, want it", a)
		}
		owner = p.owner()
		b := p.acquire(owner, &protocol.PassOver{Head: old})
		if b.State != protocol.Leased || b.Fence <= a.Fence {
			t.Errorf("Acquire over a value that cannot be used = %+v, want a lease with a fence above %d", b, a.Fence)
		}
		// From now on it is a lease like any other.
		p.wantEnd(key.Meta(), lease)
		if c := p.acquire(p.owner(), stale); c.State != protocol.Wait || c.Fence != b.Fence {
			t.Errorf("Acquire while another fetches = %+v, want to wait for %d", c, b.Fence)
		}
		if f := p.fill(owner, b.Fence, seal(b.Fence, 1), ttl); !f.Stored || p.exists(key.Meta()) {
			t.Errorf("Fill = %+v, the lease is there: %v; want stored, false", f, p.exists(key.Meta()))
		}
	})
}

func TestRenewCountsFromNow(t *testing.T) {
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
			t.Errorf("Renew of what is over = %v, %v; want false, nil, and no lease", ours, err)
		}
		p.must(p.rdb.Set(t.Context(), key.Meta(), owner, ttl).Err())
		if ours, err := p.Renew(t.Context(), leaseOf(owner, 0), lease); ours || err != nil {
			t.Errorf("Renew of foreign data = %v, %v; want false, nil", ours, err)
		}
	})
}

func TestInvalidateEndsTheLeaseAndNotifiesAll(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter, other := newProcess(t, r, "holder"), newProcess(t, r, "waiter"), newProcess(t, r, "other")
		old := seal(1, 1)
		holder.must(holder.rdb.Set(t.Context(), key.Value, old, ttl).Err())
		over := &protocol.PassOver{Head: old}
		owner := holder.owner()
		a := holder.acquire(owner, over)
		if b := waiter.acquire(waiter.owner(), over); a.State != protocol.Leased || b.State != protocol.Wait {
			t.Fatalf("Acquire = %+v, and by another = %+v", a, b)
		}
		other.must(other.Invalidate(t.Context(), key))
		if other.exists(key.Value) || other.exists(key.Meta()) {
			t.Errorf("there is a value: %v, a lease: %v; want neither", other.exists(key.Value), other.exists(key.Meta()))
		}
		waiter.wantTold(protocol.KindRetry, protocol.AnyFence, "")
		holder.wantTold(protocol.KindLost, 0, owner)
		if f := holder.fill(owner, a.Fence, seal(a.Fence, 1), ttl); f.Stored || other.exists(key.Value) {
			t.Errorf("Fill of what was fetched before = %+v, want nothing stored", f)
		}
		other.must(other.Invalidate(t.Context(), key)) // there is nothing
		for _, p := range []*process{holder, waiter, other} {
			p.wantSilence()
		}
	})
}

func TestInvalidateOfForeignData(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		p.must(p.rdb.RPush(t.Context(), key.Value, "x").Err())
		p.must(p.rdb.Set(t.Context(), key.Meta(), "x", 0).Err())
		p.must(p.Invalidate(t.Context(), key))
		if p.exists(key.Value) {
			t.Error("the value is still there")
		}
		p.must(p.rdb.Del(t.Context(), key.Meta()).Err())
		// Owners that are none, and a failure in the place of a lease.
		p.must(p.rdb.HSet(t.Context(), key.Meta(), "o", "", "w", "", "", "").Err())
		p.must(p.Invalidate(t.Context(), key))
		p.must(p.rdb.HSet(t.Context(), key.Meta(), "o", "no number", "e", "failure").Err())
		p.must(p.Invalidate(t.Context(), key))
		if p.exists(key.Meta()) {
			t.Error("the lease is still there")
		}
	})
}

func TestSetStampsTheValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		last := int64(0)
		for _, size := range []int{envelope.Size, 100, protocol.StageAbove, protocol.StageAbove + 1, 1 << 19} {
			sealed := sized(42, size)
			before := p.now()
			owner := p.owner()
			p.must(p.Set(t.Context(), key, owner, sealed, ttl))
			after := p.now()
			stored := p.get()
			h, err := envelope.Open([]byte(stored), key.Digest())
			if err != nil || len(h.Payload) != size-envelope.Size {
				t.Fatalf("%d bytes: stored are %d, %v", size, len(h.Payload), err)
			}
			if h.Created < before.UnixMilli() || h.Created > after.UnixMilli() {
				t.Errorf("%d bytes: created %d, want between %d and %d", size, h.Created, before.UnixMilli(), after.UnixMilli())
			}
			if h.Fence <= last || h.Fence < before.UnixMicro() {
				t.Errorf("%d bytes: fence %d after %d, at %d", size, h.Fence, last, before.UnixMicro())
			}
			last = h.Fence
			if h.Fresh != ttl || h.Keep != ttl {
				t.Errorf("%d bytes: the rest of the header is %+v", size, h)
			}
			p.wantEnd(key.Value, ttl)
			if p.exists(key.Staged(owner)) {
				t.Errorf("%d bytes: the staged value is still there", size)
			}
		}
	})
}

func TestSetEndsTheLeaseAndNotifiesAll(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter, other := newProcess(t, r, "holder"), newProcess(t, r, "waiter"), newProcess(t, r, "other")
		for _, size := range []int{100, protocol.StageAbove + 1} {
			owner, fence := holder.lease()
			waiter.wait()
			other.must(other.Set(t.Context(), key, other.owner(), sized(0, size), ttl))
			stored := other.get()
			h, err := envelope.Open([]byte(stored), key.Digest())
			if err != nil || h.Fence <= fence {
				t.Errorf("%d bytes: stored with fence %d, %v; want more than %d, that of the lease", size, h.Fence, err, fence)
			}
			holder.wantTold(protocol.KindLost, 0, owner)
			if size == 100 {
				waiter.wantTold(protocol.KindValue, h.Fence, stored)
			} else {
				waiter.wantTold(protocol.KindRetry, protocol.AnyFence, "")
			}
			if f := holder.fill(owner, fence, seal(fence, 1), ttl); f.Stored || other.get() != stored {
				t.Errorf("%d bytes: Fill of what was fetched before = %+v, want nothing stored", size, f)
			}
			for _, p := range []*process{holder, waiter, other} {
				p.wantSilence()
			}
			other.must(other.Invalidate(t.Context(), key))
		}
	})
}

func TestSetReplacesForeignData(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		for name, put := range map[string]func() error{
			"a list for a value":  func() error { return p.rdb.RPush(t.Context(), key.Value, "x").Err() },
			"a string for a meta": func() error { return p.rdb.Set(t.Context(), key.Meta(), "x", 0).Err() },
			"a string for marks":  func() error { return p.rdb.Set(t.Context(), key.Marks(), "x", ttl).Err() },
			"a hostile fence":     func() error { return p.rdb.HSet(t.Context(), key.Meta(), "o", "x.1", "f", "9007199254740000").Err() },
			"no fence":            func() error { return p.rdb.HSet(t.Context(), key.Meta(), "o", "x.1", "f", "nan").Err() },
			"an infinite fence":   func() error { return p.rdb.HSet(t.Context(), key.Meta(), "o", "x.1", "f", "1e999").Err() },
			"a fence in a value":  func() error { return p.rdb.Set(t.Context(), key.Value, seal(1<<62, 1), 0).Err() },
			"a negative fence":    func() error { return p.rdb.Set(t.Context(), key.Value, seal(-1, 1), 0).Err() },
			"marks of nobody":     func() error { return p.rdb.HSet(t.Context(), key.Marks(), "x", "soon", "y", "").Err() },
		} {
			for _, size := range []int{100, protocol.StageAbove + 1} {
				p.must(put())
				p.must(p.Set(t.Context(), key, p.owner(), sized(0, size), ttl))
				h, err := envelope.Open([]byte(p.get()), key.Digest())
				if now := p.now(); err != nil || h.Fence > now.Add(time.Hour).UnixMicro() || h.Fence < now.Add(-time.Hour).UnixMicro() {
					t.Errorf("%s, %d bytes: stored %v with fence %d, at %d", name, size, err, h.Fence, now.UnixMicro())
				}
				p.wantEnd(key.Value, ttl)
				p.must(p.rdb.Del(t.Context(), key.Value, key.Meta(), key.Marks()).Err())
			}
		}
	})
}

// Set counts on from what is there, however the clock stands.
func TestSetsFenceRisesWhileTheClockStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		c := protocol.NewClient(batch.NewRouter(r.Client()).Link(0, 0), ns, "p", timeout, false)
		last := int64(0)
		set := func() {
			t.Helper()
			if err := c.Set(t.Context(), key, "p.1", seal(0, 1), ttl); err != nil {
				t.Fatal(err)
			}
			b, err := c.Get(t.Context(), key, 1000)
			if err != nil {
				t.Fatal(err)
			}
			h, err := envelope.Open(b, key.Digest())
			if err != nil || h.Fence <= last {
				t.Errorf("fence %d, %v; want more than %d", h.Fence, err, last)
			}
			last = h.Fence
		}
		set()
		set()
		r.SetTime(time.Now().Add(-time.Second)) // and while it steps back
		set()
		r.HSet(key.Meta(), "o", "x.1", "f", fmt.Sprint(last+5))
		last += 5
		set()
	})
}
