package protocol_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

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
			holder.wantNotified(protocol.KindLost, 0, owner)
			if size == 100 {
				waiter.wantNotified(protocol.KindValue, h.Fence, stored)
			} else {
				waiter.wantNotified(protocol.KindRetry, protocol.AnyFence, "")
			}
			if f := holder.fill(owner, fence, seal(fence, 1), ttl); f.Stored || other.get() != stored {
				t.Errorf("%d bytes: Fill of what was fetched before = %+v, want nothing stored", size, f)
			}
			for _, p := range []*process{holder, waiter, other} {
				p.wantNoNotification()
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
			"invalid marks":       func() error { return p.rdb.HSet(t.Context(), key.Marks(), "x", "soon", "y", "").Err() },
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

func TestFenceOfSetRisesWhileTheClockStandsStill(t *testing.T) {
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
		r.SetTime(time.Now().Add(-time.Second)) // and while the clock steps back
		set()
		r.HSet(key.Meta(), "o", "x.1", "f", fmt.Sprint(last+5))
		last += 5
		set()
	})
}
