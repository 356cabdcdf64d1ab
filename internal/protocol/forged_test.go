package protocol_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// clear deletes all names of the key.
func (p *process) clear() {
	p.t.Helper()
	p.must(p.rdb.Del(p.t.Context(), key.Value, key.Meta(), key.Marks()).Err())
}

// forge writes fields of a hash, with a TTL, or without one if lasts is 0.
func (p *process) forge(name string, lasts time.Duration, fields ...any) {
	p.t.Helper()
	p.must(p.rdb.HSet(p.t.Context(), name, fields...).Err())
	if lasts > 0 {
		p.must(p.rdb.PExpire(p.t.Context(), name, lasts).Err())
	}
}

// types calls do for each Redis type that fetchonce does not use for a name, with a key of that type
// and no TTL.
func (p *process) types(name string, hashIsOurs bool, do func(what string)) {
	p.t.Helper()
	ctx := p.t.Context()
	for what, write := range map[string]func() error{
		"a string": func() error { return p.rdb.Set(ctx, name, "foreign", 0).Err() },
		"a list":   func() error { return p.rdb.RPush(ctx, name, "foreign").Err() },
		"a set":    func() error { return p.rdb.SAdd(ctx, name, "foreign").Err() },
		"a zset":   func() error { return p.rdb.ZAdd(ctx, name, redis.Z{Member: "foreign"}).Err() },
		"a hash":   func() error { return p.rdb.HSet(ctx, name, "foreign", "1").Err() },
	} {
		if hashIsOurs == (what == "a hash") || !hashIsOurs && what == "a string" {
			continue
		}
		p.clear()
		p.must(write())
		do(what)
	}
	p.clear()
}

func TestForgedLeaseEndsWithinALease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		p.forge(key.Meta(), year, "o", "foreign.1", "f", "1")
		if a := p.wait(); a.Left <= 0 || a.Left > lease {
			t.Errorf("Acquire = %+v, want to wait for at most %v", a, lease)
		}
		p.wantEnd(key.Meta(), lease)
		if r.Fake() {
			time.Sleep(lease)
			p.lease()
		}
	})
}

func TestLeaseOfAProcessWithALongerLeaseIsNotShortened(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, reader := newClient(t, r, "holder"), newClient(t, r, "reader")
		if _, err := holder.Acquire(t.Context(), key, "holder.1", protocol.LongestLease, nil); err != nil {
			t.Fatal(err)
		}
		reader.wait()
		if left := reader.rdb.PTTL(t.Context(), key.Meta()).Val(); left <= lease {
			t.Errorf("a lease of %v lasts %v after an ACQUIRE of another process", protocol.LongestLease, left)
		}
	})
}

func TestForgedFailureCountsForErrorTTL(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		old := seal(1, 1)
		stale := &protocol.PassOver{Head: old, Stale: true}
		for name, c := range map[string]struct {
			errorTTL, backoff time.Duration
			text              string
			staleOnly         bool
			over              *protocol.PassOver
			want              time.Duration // 0: it does not count
		}{
			"ErrorTTL is off":             {0, time.Second, "enever", false, nil, 0},
			"with ErrorTTL":               {5 * time.Second, 0, "enever", false, nil, 5 * time.Second},
			"a long text":                 {5 * time.Second, 0, "e" + strings.Repeat("x", protocol.LongestFailure), false, nil, 5 * time.Second},
			"a text that is too long":     {5 * time.Second, 0, "e" + strings.Repeat("x", protocol.LongestFailure+1), false, nil, 0},
			"a text of 1 MiB":             {5 * time.Second, 0, strings.Repeat("x", 1<<20), false, nil, 0},
			"an empty one":                {5 * time.Second, 0, "", false, nil, 0},
			"a backoff":                   {5 * time.Second, time.Second, "enever", true, nil, 0},
			"a backoff and a stale value": {0, 3 * time.Second, "enever", true, stale, 3 * time.Second},
			"a failure and a stale value": {5 * time.Second, 3 * time.Second, "enever", false, stale, 5 * time.Second},
		} {
			for _, lasts := range []time.Duration{0, year} {
				p.clear()
				p.ErrorTTL, p.Backoff = c.errorTTL, c.backoff
				if c.over != nil {
					p.must(p.rdb.Set(t.Context(), key.Value, old, ttl).Err())
				}
				p.forge(key.Meta(), lasts, "f", "1", "e", c.text)
				if c.staleOnly {
					p.must(p.rdb.HSet(t.Context(), key.Meta(), "b", "1").Err())
				}
				a := p.acquire(p.owner(), c.over)
				if c.want == 0 && a.State != protocol.Leased || c.want > 0 && (a.State != protocol.Failed || a.Left <= 0 || a.Left > c.want) {
					t.Errorf("%s, for %v: Acquire = state %d for %v, want a failure for at most %v", name, lasts, a.State, a.Left, c.want)
				}
				if a.State == protocol.Failed {
					p.wantEnd(key.Meta(), c.want)
				}
			}
		}
		p.clear()
	})
}

func TestForeignTypesDoNotStopAnUpdate(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		for _, name := range []string{key.Value, key.Meta(), key.Marks()} {
			p.types(name, name != key.Value, func(what string) {
				if name != key.Value {
					p.must(p.rdb.Set(t.Context(), key.Value, seal(1, 1), ttl).Err())
				}
				if err := p.Mark(t.Context(), key, "m", lease); err != nil || p.exists(key.Value) {
					t.Errorf("Mark with %s at %s = %v, the value is there: %v", what, name, err, p.exists(key.Value))
				}
				p.wantEnd(key.Marks(), lease)
				if n := p.rdb.HLen(t.Context(), key.Marks()).Val(); n != 1 {
					t.Errorf("%s at %s: %d marks", what, name, n)
				}
			})
			p.types(name, name != key.Value, func(what string) {
				if err := p.Unmark(t.Context(), key, "m"); err != nil || p.exists(key.Value) || p.exists(key.Marks()) {
					t.Errorf("Unmark with %s at %s = %v", what, name, err)
				}
			})
		}
	})
}

func TestForeignTypesDoNotStopASet(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		for _, name := range []string{key.Value, key.Meta(), key.Marks()} {
			p.types(name, name != key.Value, func(what string) {
				if err := p.Set(t.Context(), key, p.owner(), seal(0, 1), ttl); err != nil || p.get() == "" {
					t.Errorf("Set with %s at %s = %v", what, name, err)
				}
				if p.exists(key.Meta()) || p.exists(key.Marks()) {
					t.Errorf("Set has left %s at %s", what, name)
				}
			})
		}
	})
}

func TestForeignValueIsReplaced(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		p.types(key.Value, false, func(what string) {
			for _, over := range []*protocol.PassOver{nil, {}} {
				owner := p.owner()
				a := p.acquire(owner, over)
				if a.State != protocol.Leased || p.exists(key.Value) {
					t.Fatalf("Acquire over %s = %+v, the value is there: %v; want a lease, false", what, a, p.exists(key.Value))
				}
				if f := p.fill(owner, a.Fence, seal(a.Fence, 1), ttl); !f.Stored || p.get() == "" {
					t.Errorf("Fill after %s = %+v", what, f)
				}
				p.must(p.rdb.Del(t.Context(), key.Value).Err())
				p.must(p.rdb.RPush(t.Context(), key.Value, "x").Err())
			}
		})
	})
}

// Marks end within LongestLease. One that lasts longer is forged.
func TestForgedMarksDoNotStopStoring(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		stored := func() bool {
			t.Helper()
			owner, fence := p.lease()
			p.fill(owner, fence, seal(fence, 1), ttl)
			return p.exists(key.Value)
		}
		in := func(d time.Duration) string { return strconv.FormatInt(p.now().Add(d).UnixMilli(), 10) }
		for name, ends := range map[string]string{
			"in a year": in(year), "in an hour": in(time.Hour), "never": "9999999999999999", "no number": "x", "huge": strings.Repeat("9", 1<<20),
			"infinite": "inf", "ended": in(-time.Second), "negative": "-1", "hexadecimal": "0xffffffffffff", "empty": "",
		} {
			p.clear()
			p.forge(key.Marks(), 0, "m", ends)
			if !stored() {
				t.Errorf("a mark that ends %s: nothing is stored", name)
			}
			if p.exists(key.Marks()) {
				t.Errorf("a mark that ends %s: it is still there", name)
			}
			p.clear()
			p.forge(key.Marks(), 0, "m", ends)
			p.must(p.Set(t.Context(), key, p.owner(), seal(0, 1), time.Hour))
			p.wantEnd(key.Value, time.Hour)
			if p.rdb.PTTL(t.Context(), key.Value).Val() <= protocol.LongestLease {
				t.Errorf("a mark that ends %s: a Set is kept for a moment", name)
			}
		}
		p.clear()
		p.forge(key.Marks(), 0, "m", in(protocol.LongestLease-time.Second))
		if stored() {
			t.Error("stored while a mark lasts")
		}
		if r.Fake() {
			time.Sleep(protocol.LongestLease)
			if !stored() {
				t.Error("a mark that has ended: nothing is stored")
			}
		}
		p.clear()
	})
}

func TestMarksThatHaveEndedAreRemoved(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		now := p.now()
		for i := range 100 {
			ends := now.Add(-time.Duration(i) * time.Second)
			if i%2 == 0 {
				ends = now.Add(year)
			}
			p.forge(key.Marks(), year, fmt.Sprint("dead.", i), strconv.FormatInt(ends.UnixMilli(), 10))
		}
		p.must(p.Mark(t.Context(), key, "a", lease))
		p.must(p.Mark(t.Context(), key, "b", lease))
		if n := p.rdb.HLen(t.Context(), key.Marks()).Val(); n != 2 {
			t.Errorf("%d marks are there, want the 2 that last", n)
		}
		if left := p.rdb.PTTL(t.Context(), key.Marks()).Val(); left > protocol.LongestLease {
			t.Errorf("the marks last %v", left)
		}
	})
}

func TestManyForgedMarks(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		forge := func() {
			fields := make([]any, 0, 4000)
			for i := range 2000 {
				fields = append(fields, fmt.Sprint("m.", i), strconv.FormatInt(p.now().Add(year).UnixMilli(), 10))
			}
			p.forge(key.Marks(), year, fields...)
		}
		forge()
		owner, fence := p.lease() // they are not read: the key may be written at its source
		p.fill(owner, fence, seal(fence, 1), ttl)
		p.wantEnd(key.Marks(), protocol.LongestLease)
		if r.Fake() {
			time.Sleep(protocol.LongestLease)
			owner, fence = p.lease()
			if p.fill(owner, fence, seal(fence, 1), ttl); !p.exists(key.Value) {
				t.Error("nothing is stored after the marks have ended")
			}
		}
		forge()
		p.must(p.Mark(t.Context(), key, "m", lease))
		if n := p.rdb.HLen(t.Context(), key.Marks()).Val(); n != 1 {
			t.Errorf("%d marks are there, want the one that lasts", n)
		}
	})
}

// If a lease has more waiters than ACQUIRE registers, they are forged.
func TestForgedWaitersAreNotNotified(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p, waiter := newClient(t, r, "p"), newProcess(t, r, "waiter")
		for name, end := range map[string]func(owner string, fence int64){
			"fill": func(owner string, fence int64) {
				if f := p.fill(owner, fence, seal(fence, 1), ttl); !f.Stored {
					t.Errorf("Fill = %+v", f)
				}
			},
			"release": func(owner string, fence int64) {
				if ours, err := p.Release(t.Context(), leaseOf(owner, fence)); !ours || err != nil {
					t.Errorf("Release = %v, %v", ours, err)
				}
			},
			"invalidate": func(string, int64) { p.must(p.Invalidate(t.Context(), key)) },
			"set":        func(string, int64) { p.must(p.Set(t.Context(), key, "p.0", seal(0, 1), ttl)) },
		} {
			p.clear()
			owner, fence := p.lease()
			waiter.wait()
			fields := make([]any, 0, 2*protocol.MostWaiters)
			for i := range protocol.MostWaiters + 2 {
				fields = append(fields, fmt.Sprint("w", i), "1")
			}
			p.forge(key.Meta(), 0, fields...)
			end(owner, fence)
			waiter.wantNoNotification()
			if p.exists(key.Meta()) {
				t.Errorf("%s: the lease is still there", name)
			}
		}
	})
}

// ACQUIRE waits for a fence that is at most 5 s ahead of the clock, and ignores one that is further
// ahead. So the next fence is always the time of the clock.
func TestForgedFenceDoesNotMoveTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		p := newClient(t, r.Backend(), "p")
		for _, d := range []time.Duration{time.Millisecond, time.Second, 5 * time.Second, 6 * time.Second, 12 * time.Hour, 24 * time.Hour, year} {
			forged := time.Now().Add(d).UnixMicro()
			value := seal(forged, 1)
			for name, forge := range map[string]func() *protocol.PassOver{
				"a value": func() *protocol.PassOver {
					p.must(p.rdb.Set(t.Context(), key.Value, value, 0).Err())
					return &protocol.PassOver{Head: value}
				},
				"a failure": func() *protocol.PassOver {
					p.forge(key.Meta(), 0, "e", "enever", "f", strconv.FormatInt(forged, 10))
					return nil
				},
			} {
				p.clear()
				p.ErrorTTL = 0
				over := forge()
				a := p.acquire(p.owner(), over)
				if a.State == protocol.Wait {
					if a.Left > 5*time.Second || a.Fence != 0 {
						t.Errorf("%s %v ahead: Acquire = %+v, want to wait for at most 5s", name, d, a)
					}
					time.Sleep(a.Left)
					a = p.acquire(p.owner(), over)
				}
				now := time.Now().UnixMicro()
				if a.State != protocol.Leased || a.Fence < now || a.Fence > now+1001 || d <= 5*time.Second && a.Fence <= forged && forged <= now {
					t.Errorf("%s %v ahead: Acquire = %+v, want a lease with a fence of %d", name, d, a, now)
				}
				forged = time.Now().Add(d).UnixMicro()
				value = seal(forged, 1)
			}
		}
		p.clear()
	})
}

// The lease has our owner, and a forged fence that is old or missing.
func TestForgedFenceOfAnOwnLeaseIsReplaced(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		for _, fence := range []string{"", "5", "x", strconv.FormatInt(p.now().Add(year).UnixMicro(), 10)} {
			p.clear()
			p.forge(key.Meta(), 0, "o", "p.1", "f", fence)
			before := p.now().UnixMicro()
			if a := p.acquire("p.1", nil); a.State != protocol.Leased || a.Fence < before || a.Fence > p.now().UnixMicro() {
				t.Errorf("fence %q: Acquire = %+v, want a lease with a fence of now", fence, a)
			}
			p.wantEnd(key.Meta(), lease)
		}
	})
}

// If the server refuses to read the lease, ACQUIRE returns an error: there may be no lease to wait for.
func TestRefusedReadIsAnError(t *testing.T) {
	s := redistest.Server(t)
	admin := s.Client()
	for _, refused := range []string{"hmget", "hvals", "hgetall", "strlen"} {
		args := []any{"acl", "setuser", "limited", "on", ">secret", "~*", "&*", "+@all", "-" + refused}
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
		rdb := s.Client(func(opt *redis.Options) { opt.Username, opt.Password = "limited", "secret" })
		c := protocol.NewClient(batch.NewRouter(rdb).Link(0, 0), ns, "p", timeout, false)
		p := newClient(t, s.Backend(), "admin")
		p.clear()
		p.must(p.rdb.Set(t.Context(), key.Value, "junk", ttl).Err())
		p.must(p.Mark(t.Context(), ns.Key("other"), "m", lease))
		p.forge(key.Marks(), lease, "m", strconv.FormatInt(p.now().Add(lease).UnixMilli(), 10))
		over := &protocol.PassOver{Head: []byte("junk")}
		if refused == "strlen" {
			over = nil
		}
		a, err := c.Acquire(t.Context(), key, "p.1", lease, over)
		if refused == "hgetall" && err == nil {
			p.forge(key.Meta(), 0, "wx", "1")
			_, err = c.Release(t.Context(), leaseOf("p.1", a.Fence))
		}
		if err == nil || !strings.Contains(err.Error(), "can't run this command") && !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("without the right to %s: %+v, %v; want an error of rights", refused, a, err)
		}
	}
}

// The server's clock decides whether a segment has ended.
func TestEndedValueIsPassedOver(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		for name, c := range map[string]struct {
			created time.Time
			size    int
			want    protocol.State
		}{
			"it has ended":         {p.now().Add(-ttl - time.Second), 1, protocol.Leased},
			"it has not":           {p.now().Add(-ttl + time.Minute/2), 1, protocol.Stored},
			"it is of the future":  {p.now().Add(time.Hour), 1, protocol.Stored},
			"large, and has ended": {p.now().Add(-ttl - time.Second), protocol.StageAbove, protocol.Leased},
			"large, and has not":   {p.now().Add(-ttl + time.Minute/2), protocol.StageAbove, protocol.Large},
		} {
			p.clear()
			value := sealAt(c.created, c.size)
			p.must(p.rdb.Set(t.Context(), key.Value, value, 0).Err())
			a := p.acquire(p.owner(), &protocol.PassOver{Head: value, Ended: c.created.Add(ttl).UnixMilli()})
			if a.State != c.want || a.Now.IsZero() {
				t.Errorf("%s: Acquire = state %d at %v, want %d and the server's time", name, a.State, a.Now, c.want)
			}
		}
		p.clear()
	})
}
