package protocol_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

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
		waiter.wantNotified(protocol.KindValue, fence, string(sealed))
		waiter.wantNoNotification()
		holder.wantNoNotification()
	})
}

func TestFillReplacesAnyValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		for name, put := range map[string]func() error{
			"a foreign value": func() error { return p.rdb.Set(t.Context(), key.Value, "x", 0).Err() },
			"a list":          func() error { return p.rdb.RPush(t.Context(), key.Value, "x").Err() },
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

func TestLargeValuesAreStagedAndNotNotified(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		holder, waiter := newProcess(t, r, "holder"), newProcess(t, r, "waiter")
		w := redistest.WireOf(holder.rdb)
		largest := protocol.LargestNotified
		if strings.HasSuffix(t.Name(), "cluster") {
			largest = protocol.LargestNotifiedCluster
		}
		for _, c := range []struct {
			size             int
			notified, staged bool
		}{
			{largest, true, false},
			{largest + 1, false, largest == protocol.StageAbove},
			{protocol.StageAbove, largest == protocol.StageAbove, false},
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
			if c.notified {
				waiter.wantNotified(protocol.KindValue, fence, string(sealed))
			} else {
				waiter.wantNotified(protocol.KindRetry, fence, "")
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
			waiter.wantNotified(want, fence, body)
			holder.must(holder.Invalidate(t.Context(), key))
		}
	})
}

// register registers n other processes as waiters.
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
		"the lease has ended": {
			func(t *testing.T, p *process) { p.must(p.rdb.Del(t.Context(), key.Meta()).Err()) }, 100,
		},
		"the lease has ended, and the value is large": {
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

func TestFillSentAgainReportsStored(t *testing.T) {
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

func TestFillWithoutTTLNotifiesTheWaitersAndStoresNothing(t *testing.T) {
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
					t.Errorf("ttl %v, %d bytes: Fill = %+v, want stored: the lease was ours", keep, size, f)
				}
				if holder.exists(key.Value) || holder.exists(key.Meta()) || holder.exists(key.Staged(owner)) {
					t.Errorf("ttl %v, %d bytes: there is a value: %v, a lease: %v, a staged value: %v; want none", keep, size,
						holder.exists(key.Value), holder.exists(key.Meta()), holder.exists(key.Staged(owner)))
				}
				if size == 100 {
					waiter.wantNotified(protocol.KindValue, a.Fence, string(sealed))
				} else {
					waiter.wantNotified(protocol.KindRetry, a.Fence, "")
				}
			}
		}
	})
}
