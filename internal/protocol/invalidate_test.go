package protocol_test

import (
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

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
		waiter.wantNotified(protocol.KindRetry, protocol.AnyFence, "")
		holder.wantNotified(protocol.KindLost, 0, owner)
		if f := holder.fill(owner, a.Fence, seal(a.Fence, 1), ttl); f.Stored || other.exists(key.Value) {
			t.Errorf("Fill of what was fetched before = %+v, want nothing stored", f)
		}
		other.must(other.Invalidate(t.Context(), key)) // nothing is stored
		for _, p := range []*process{holder, waiter, other} {
			p.wantNoNotification()
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
		// Invalid owners, and a failure in the hash of the lease.
		p.must(p.rdb.HSet(t.Context(), key.Meta(), "o", "", "w", "", "", "").Err())
		p.must(p.Invalidate(t.Context(), key))
		p.must(p.rdb.HSet(t.Context(), key.Meta(), "o", "no number", "e", "failure").Err())
		p.must(p.Invalidate(t.Context(), key))
		if p.exists(key.Meta()) {
			t.Error("the lease is still there")
		}
	})
}

func TestMarkEndsTheLeaseBeforeIt(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter, writer := newProcess(t, r, "holder"), newProcess(t, r, "waiter"), newClient(t, r, "writer")
		owner, fence := holder.lease()
		waiter.wait()
		writer.must(writer.Mark(t.Context(), key, "m", ttl))
		writer.wantEnd(key.Marks(), ttl)
		holder.wantNotified(protocol.KindLost, 0, owner)
		waiter.wantNotified(protocol.KindRetry, protocol.AnyFence, "")
		if f := holder.fill(owner, fence, seal(fence, 1), ttl); f.Stored || holder.exists(key.Value) {
			t.Errorf("Fill of what was fetched before = %+v, want nothing stored", f)
		}
		writer.must(writer.Unmark(t.Context(), key, "m"))
		if writer.exists(key.Marks()) {
			t.Error("the mark is still there")
		}
	})
}

func TestValueFetchedDuringAMarkIsNotStored(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter, writer := newProcess(t, r, "holder"), newProcess(t, r, "waiter"), newClient(t, r, "writer")
		for _, size := range []int{100, protocol.StageAbove + 1} {
			for name, end := range map[string]func(){
				"filled during the mark": func() {},
				"filled after it":        func() { writer.must(writer.rdb.Del(t.Context(), key.Marks()).Err()) }, // the writer died
			} {
				writer.must(writer.rdb.Set(t.Context(), key.Value, "old", ttl).Err())
				writer.must(writer.Mark(t.Context(), key, "m", ttl))
				if writer.exists(key.Value) {
					t.Errorf("%s: the old value is still there", name)
				}
				owner, fence := holder.lease()
				waiter.wait()
				end()
				sealed := sized(fence, size)
				if f := holder.fill(owner, fence, sealed, ttl); !f.Stored {
					t.Errorf("%s: Fill = %+v, want stored: the lease was ours", name, f)
				}
				if holder.exists(key.Value) || holder.exists(key.Meta()) || holder.exists(key.Staged(owner)) {
					t.Errorf("%s, %d bytes: stored: %v, lease: %v, staged: %v; want none", name, size,
						holder.exists(key.Value), holder.exists(key.Meta()), holder.exists(key.Staged(owner)))
				}
				if size == 100 {
					waiter.wantNotified(protocol.KindValue, fence, string(sealed))
				} else {
					waiter.wantNotified(protocol.KindRetry, fence, "")
				}
				writer.must(writer.Unmark(t.Context(), key, "m"))
			}
		}
		owner, fence := holder.lease() // later leases store their values again
		if f := holder.fill(owner, fence, seal(fence, 1), ttl); !f.Stored || !holder.exists(key.Value) {
			t.Errorf("Fill after the mark = %+v, a value: %v; want both", f, holder.exists(key.Value))
		}
	})
}

func TestUnmarkEndsALeaseOfTheMark(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, writer := newProcess(t, r, "holder"), newClient(t, r, "writer")
		writer.must(writer.Mark(t.Context(), key, "m", ttl))
		owner, fence := holder.lease()
		writer.must(writer.Unmark(t.Context(), key, "m"))
		holder.wantNotified(protocol.KindLost, 0, owner)
		if f := holder.fill(owner, fence, seal(fence, 1), ttl); f.Stored || holder.exists(key.Value) {
			t.Errorf("Fill = %+v, want nothing stored", f)
		}
		writer.must(writer.Unmark(t.Context(), key, "m")) // once more is no harm
	})
}

func TestEachMarkHasItsOwnEnd(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		stored := func() bool {
			t.Helper()
			owner, fence := p.lease()
			p.fill(owner, fence, seal(fence, 1), ttl)
			is := p.exists(key.Value)
			p.must(p.rdb.Del(t.Context(), key.Value).Err())
			return is
		}
		p.must(p.Mark(t.Context(), key, "a", protocol.LongestLease))
		p.must(p.Mark(t.Context(), key, "b", lease)) // does not shorten the other
		p.wantEnd(key.Marks(), protocol.LongestLease)
		p.must(p.Unmark(t.Context(), key, "a"))
		if stored() {
			t.Error("stored while one writes still")
		}
		p.must(p.Unmark(t.Context(), key, "b"))
		if !stored() {
			t.Error("not stored although there is no mark")
		}
		short := 10 * time.Second
		if !r.Fake() {
			short = 50 * time.Millisecond
		}
		p.must(p.Mark(t.Context(), key, "a", short))
		if r.Fake() {
			time.Sleep(short - time.Millisecond)
			p.must(p.Mark(t.Context(), key, "a", short)) // renewed
			time.Sleep(short - time.Millisecond)
			if stored() {
				t.Error("stored although the mark was renewed")
			}
			time.Sleep(time.Millisecond)
		}
		r.Until("the mark has ended", stored)
		// A mark that has ended does not count, even if another mark keeps the key.
		p.must(p.Mark(t.Context(), key, "a", short))
		p.must(p.Mark(t.Context(), key, "b", protocol.LongestLease))
		p.must(p.Unmark(t.Context(), key, "b"))
		if r.Fake() {
			if stored() {
				t.Error("stored while one writes still")
			}
			time.Sleep(short)
		}
		r.Until("the mark has ended, in a key that has not", stored)
	})
}

func TestRenewedMarkInvalidatesNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		p.must(p.Mark(t.Context(), key, "m", ttl))
		p.must(p.Set(t.Context(), key, p.owner(), seal(0, 1), time.Hour)) // what the writer wrote
		p.wantEnd(key.Value, ttl)                                         // if the writer dies, it goes with the mark
		p.must(p.Mark(t.Context(), key, "m", ttl))
		if !p.exists(key.Value) {
			t.Error("the value was forgotten when the mark was renewed")
		}
		p.must(p.Unmark(t.Context(), key, "m"))
		if p.exists(key.Value) {
			t.Error("the value is still there after the mark")
		}
		p.must(p.Set(t.Context(), key, p.owner(), seal(0, 1), time.Hour))
		p.wantEnd(key.Value, time.Hour)
	})
}
