package protocol_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestAcquireReadsTheValueAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		for size, want := range map[int]protocol.State{
			1: protocol.Stored, protocol.StageAbove: protocol.Stored, protocol.StageAbove + 1: protocol.Large, 1 << 20: protocol.Large,
		} {
			value := strings.Repeat("x", size)
			p.must(p.rdb.Set(t.Context(), key.Value, value, ttl).Err())
			if want == protocol.Large {
				value = ""
			}
			if a := p.acquire(p.owner(), nil); a.State != want || string(a.Value) != value {
				t.Errorf("%d bytes: Acquire = state %d with %d bytes, want %d with %d", size, a.State, len(a.Value), want, len(value))
			}
			if p.exists(key.Meta()) {
				t.Errorf("%d bytes: a lease was taken", size)
			}
		}
	})
}

func TestAcquireReturnsTheValueDuringALease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		p.must(p.rdb.Set(t.Context(), key.Value, "old", ttl).Err())
		if a := p.acquire(p.owner(), &protocol.PassOver{Head: []byte("old"), Stale: true}); a.State != protocol.Leased {
			t.Fatalf("Acquire = %+v, want the lease", a)
		}
		if a := p.acquire(p.owner(), nil); a.State != protocol.Stored || string(a.Value) != "old" {
			t.Errorf("Acquire = %+v, want the old value", a)
		}
	})
}

func TestOneProcessHasTheLeaseAndOthersWait(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p, other := newClient(t, r, "p"), newClient(t, r, "other")
		before := p.now()
		owner := p.owner()
		a := p.acquire(owner, nil)
		after := p.now()
		if a.State != protocol.Leased || a.Fence < before.UnixMicro() || a.Fence > after.UnixMicro() {
			t.Errorf("Acquire = %+v, want a lease with a fence from %d to %d", a, before.UnixMicro(), after.UnixMicro())
		}
		if a.Now.Before(before) || a.Now.After(after) {
			t.Errorf("the server's time was %v, want from %v to %v", a.Now, before, after)
		}
		p.wantEnd(key.Meta(), lease)
		if r.Fake() {
			time.Sleep(time.Second)
		}
		for range 2 { // and once more: nothing changes
			before = p.now()
			b := other.wait()
			if b.Fence != a.Fence || b.Left <= 0 || b.Left > lease || r.Fake() && b.Left != lease-time.Second {
				t.Errorf("Acquire by another = %+v, want to wait for %d, at most as long as that lasts", b, a.Fence)
			}
			if b.Now.Before(before) || b.Now.After(p.now()) {
				t.Errorf("the server's time was %v, want about %v", b.Now, before)
			}
		}
		want := map[string]string{"o": owner, "f": fmt.Sprint(a.Fence), "wother": "1"}
		if meta := p.rdb.HGetAll(t.Context(), key.Meta()).Val(); fmt.Sprint(meta) != fmt.Sprint(want) {
			t.Errorf("meta = %v, want %v", meta, want)
		}
	})
}

func TestAcquireSentAgainReturnsTheSameLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		owner, fence := p.lease()
		if r.Fake() {
			time.Sleep(time.Second)
		}
		a := p.acquire(owner, nil)
		if a.State != protocol.Leased || a.Fence != fence || !a.Now.IsZero() {
			t.Errorf("Acquire again = %+v, want the lease with fence %d, and no time", a, fence)
		}
		if r.Fake() {
			p.wantEnd(key.Meta(), lease-time.Second) // it lasts from the first request
		}
		if n := p.rdb.HLen(t.Context(), key.Meta()).Val(); n != 2 {
			t.Errorf("meta has %d fields, want 2: the holder does not wait for itself", n)
		}
		if a := p.acquire(p.owner(), nil); a.State != protocol.Wait {
			t.Errorf("another Acquire of the same process = %+v, want to wait", a)
		}
	})
}

func TestLeaseWithoutRenewalEnds(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p, other := newClient(t, r, "p"), newClient(t, r, "other")
		short := 10 * time.Second
		if !r.Fake() {
			short = 50 * time.Millisecond
		}
		a, err := p.Acquire(t.Context(), key, "p.1", short, nil)
		p.must(err)
		other.acquire(other.owner(), nil)
		if r.Fake() {
			time.Sleep(short)
		}
		r.Until("the lease is over", func() bool { return !p.exists(key.Meta()) })
		_, fence := other.lease()
		if fence <= a.Fence {
			t.Errorf("the next fence is %d, want more than %d", fence, a.Fence)
		}
		if n := p.rdb.HLen(t.Context(), key.Meta()).Val(); n != 2 {
			t.Errorf("meta has %d fields, want 2: the waiters of the old lease are gone with it", n)
		}
	})
}

func TestFencesRise(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		var fences []int64
		for i := range 200 {
			owner, fence := p.lease()
			fences = append(fences, fence)
			var err error
			switch i % 4 {
			case 0:
				_, err = p.Release(t.Context(), leaseOf(owner, fence))
			case 1:
				p.fill(owner, fence, seal(fence, 1), ttl)
				err = p.rdb.Del(t.Context(), key.Value).Err()
			case 2:
				err = p.Invalidate(t.Context(), key)
			case 3:
				err = p.rdb.Del(t.Context(), key.Meta()).Err()
			}
			p.must(err)
		}
		if !slices.IsSorted(fences) || len(slices.Compact(fences)) != 200 {
			t.Errorf("fences do not rise: %v", fences)
		}
	})
}

// The stored value has its fence, and the next fence is higher. If that would be ahead of the clock,
// because the clock was set back by some seconds, ACQUIRE makes the caller wait.
func TestFencesRiseWhileTheClockStandsStillOrStepsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		c := protocol.NewClient(batch.NewRouter(r.Client()).Link(0, 0), ns, "p", timeout, false)
		acquire := func(owner string, over *protocol.PassOver) protocol.Acquired {
			t.Helper()
			a, err := c.Acquire(t.Context(), key, owner, lease, over)
			if err != nil {
				t.Fatalf("Acquire = %v", err)
			}
			return a
		}
		a := acquire("p.1", nil)
		for i, step := range []time.Duration{0, 0, -time.Second, 0, -5 * time.Second} {
			sealed := seal(a.Fence, 1)
			if f, err := c.Fill(t.Context(), leaseOf(fmt.Sprint("p.", i+1), a.Fence), sealed, ttl); err != nil || !f.Stored {
				t.Fatalf("Fill = %+v, %v", f, err)
			}
			now := time.UnixMicro(a.Fence).Add(step)
			r.SetTime(now)
			owner, over := fmt.Sprint("p.", i+2), &protocol.PassOver{Head: sealed, Stale: i%2 == 0}
			b := acquire(owner, over)
			if step < 0 {
				if b.State != protocol.Wait || b.Fence != 0 || b.Left != -step {
					t.Fatalf("the clock went by %v: Acquire = %+v, want to wait for %v", step, b, -step)
				}
				now = now.Add(b.Left)
				r.SetTime(now)
				b = acquire(owner, over)
			}
			if b.State != protocol.Leased || b.Fence != a.Fence+1 || !b.Now.Equal(now) {
				t.Errorf("the clock went by %v: Acquire = %+v, want the fence after %d", step, b, a.Fence)
			}
			a = b
		}
	})
}

func TestFenceOfAForgedValueIsIgnored(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		day := int64(24 * time.Hour / time.Microsecond)
		now := p.now().UnixMicro()
		foreign := seal(now+time.Second.Microseconds(), 1)
		foreign[0] = 'x'
		for name, value := range map[string][]byte{
			"half a day ahead": seal(now+day/2, 1),
			"a huge one":       seal(1<<62, 1),
			"negative":         seal(-1, 1),
			"no envelope":      foreign,
			"a short one":      seal(now+time.Second.Microseconds(), 1)[:31],
		} {
			p.must(p.rdb.Set(t.Context(), key.Value, value, ttl).Err())
			owner := p.owner()
			a := p.acquire(owner, &protocol.PassOver{Head: value})
			if a.State != protocol.Leased || a.Fence < now || a.Fence > p.now().UnixMicro() {
				t.Errorf("%s: Acquire = %+v, want a lease with a fence of now", name, a)
			}
			p.must(p.Invalidate(t.Context(), key))
		}
	})
}

func TestOnlyTheValueWithTheHeadIsPassedOver(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		old, newer := seal(1, 100), seal(2, 100)
		tail := append(slices.Clone(old[:envelope.Size]), "another payload"...)
		for name, c := range map[string]struct {
			stored []byte
			head   []byte
			want   protocol.State
		}{
			"the same":                   {old, old, protocol.Leased},
			"the same, by its header":    {old, old[:envelope.Size], protocol.Leased},
			"the same header":            {tail, old, protocol.Leased},
			"newer":                      {newer, old, protocol.Stored},
			"newer, shorter than a head": {[]byte("x"), old, protocol.Stored},
			"a short one":                {[]byte("x"), []byte("x"), protocol.Leased},
			"it only begins so":          {[]byte("xy"), []byte("x"), protocol.Stored},
			"a list was there":           {old, nil, protocol.Stored},
			"it is gone":                 {nil, old, protocol.Leased},
		} {
			for _, stale := range []bool{false, true} {
				p.must(p.rdb.Del(t.Context(), key.Value, key.Meta()).Err())
				if c.stored != nil {
					p.must(p.rdb.Set(t.Context(), key.Value, c.stored, ttl).Err())
				}
				a := p.acquire(p.owner(), &protocol.PassOver{Head: c.head, Stale: stale})
				if a.State != c.want || c.want == protocol.Stored && string(a.Value) != string(c.stored) {
					t.Errorf("%s, stale %v: Acquire = %+v, want state %d", name, stale, a, c.want)
				}
			}
		}
		p.must(p.rdb.Del(t.Context(), key.Value, key.Meta()).Err())
		p.must(p.rdb.RPush(t.Context(), key.Value, "x").Err())
		p.must(p.rdb.PExpire(t.Context(), key.Value, ttl).Err())
		if a := p.acquire(p.owner(), &protocol.PassOver{}); a.State != protocol.Leased {
			t.Errorf("Acquire over a list = %+v, want the lease", a)
		}
	})
}

func TestWaitersAreBounded(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, late := newClient(t, r, "holder"), newProcess(t, r, "late")
		owner, fence := holder.lease()
		register(t, holder, protocol.MostWaiters)
		if n := holder.rdb.HLen(t.Context(), key.Meta()).Val(); n != protocol.MostWaiters+2 {
			t.Errorf("meta has %d fields, want those of %d waiters, the owner and the fence", n, protocol.MostWaiters)
		}
		if a := late.wait(); a.Fence != fence || a.Left <= 0 {
			t.Errorf("Acquire by one more = %+v, want to wait by its timer", a)
		}
		if n := holder.rdb.HLen(t.Context(), key.Meta()).Val(); n != protocol.MostWaiters+2 {
			t.Errorf("meta has %d fields, want as many as before", n)
		}
		holder.fill(owner, fence, seal(fence, 1), ttl)
		late.wantNoNotification()
	})
}

func TestForeignDataBlocksALeaseNoLongerThanALease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		length := lease
		if !r.Fake() {
			length = 100 * time.Millisecond
		}
		for name, c := range map[string]struct {
			lasts, want time.Duration
		}{
			"for ever":            {0, length},
			"for longer":          {time.Hour, length},
			"for less than that":  {length / 2, length / 2},
			"for as long as that": {length, length},
		} {
			p.must(p.rdb.Set(t.Context(), key.Meta(), "foreign", c.lasts).Err())
			a, err := p.Acquire(t.Context(), key, p.owner(), length, nil)
			if err != nil || a.State != protocol.Wait || a.Fence != 0 || a.Left <= 0 || a.Left > c.want || r.Fake() && a.Left != c.want {
				t.Errorf("%s: Acquire = %+v, %v; want to wait for %v", name, a, err, c.want)
			}
			if got := p.rdb.Get(t.Context(), key.Meta()).Val(); got != "foreign" && r.Fake() {
				t.Errorf("%s: it is now %q", name, got)
			}
			if r.Fake() {
				time.Sleep(c.want)
			}
			r.Until("the key is free", func() bool { return !p.exists(key.Meta()) })
			owner, fence := p.lease()
			if ours, err := p.Release(t.Context(), leaseOf(owner, fence)); !ours || err != nil {
				t.Errorf("%s: Release = %v, %v", name, ours, err)
			}
		}
	})
}

func TestForgedLeaseIsWaitedForNoLongerThanALease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		now := p.now().UnixMicro()
		for fence, want := range map[string]int64{
			strconv.FormatInt(now, 10): now, strconv.FormatInt(now+time.Hour.Microseconds(), 10): 0, "5": 5, "": 0, "x": 0, "nan": 0, "-5": 0, "1e999": 0, "9007199254740992": 0, "18446744073709551615": 0,
		} {
			p.must(p.rdb.HSet(t.Context(), key.Meta(), "o", "foreign", "f", fence).Err()) // without an end
			if a := p.wait(); a.Fence != want || a.Left <= 0 || a.Left > lease {
				t.Errorf("fence %q: Acquire = %+v, want to wait for %d, at most %v", fence, a, want, lease)
			}
			p.wantEnd(key.Meta(), lease)
			p.must(p.rdb.Del(t.Context(), key.Meta()).Err())
		}
		p.must(p.rdb.HSet(t.Context(), key.Meta(), "o", "foreign").Err())
		if a := p.wait(); a.Fence != 0 {
			t.Errorf("without a fence: Acquire = %+v, want to wait for 0", a)
		}
		p.must(p.rdb.Del(t.Context(), key.Meta()).Err())
		p.must(p.rdb.HSet(t.Context(), key.Meta(), "e", "enever").Err())
		if a := p.acquire(p.owner(), nil); a.State != protocol.Leased {
			t.Errorf("a failure without a fence: Acquire = %+v, want the lease", a)
		}
	})
}
