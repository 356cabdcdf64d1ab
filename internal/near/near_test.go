package near_test

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

const values, changes = "p:v:{", "p:i"

// open returns a cache of the client's process.
func open(t testing.TB, rdb redis.UniversalClient) *near.Cache[string] {
	t.Helper()
	h := near.NewHub(rdb, "process")
	c := near.New[string](h, near.Config{Values: values, Changes: changes, Entries: 100, Report: func(bool, error) {}})
	t.Cleanup(func() {
		c.Close()
		h.Close()
	})
	return c
}

// put makes an entry as soon as the cache is trusted.
func put(t testing.TB, r redistest.Backend, c *near.Cache[string], tag string) {
	t.Helper()
	r.Until("an entry is made", func() bool { return c.Put(ticketOf(c, tag), tag, "v", time.Hour) })
}

func ticketOf(c *near.Cache[string], key string) near.Ticket { return c.NewTicket(key, values+key+"}") }

func has(c *near.Cache[string], tag string) bool {
	_, ok := c.Get(tag)
	return ok
}

func do(t *testing.T, cmd interface{ Err() error }) {
	t.Helper()
	if err := cmd.Err(); err != nil {
		t.Fatal(err)
	}
}

// A value is read, it changes, and then Put is called with the old value.
func TestChangeAfterTheTicketPreventsTheEntry(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		c := open(t, rdb)
		put(t, r, c, "k")
		ticket := ticketOf(c, "k")
		do(t, rdb.Set(t.Context(), values+"k}", "new", 0))
		r.Until("the entry is dropped", func() bool { return !has(c, "k") })
		if c.Put(ticket, "k", "old", time.Hour) || has(c, "k") {
			t.Error("an old value was put after its invalidation")
		}
		if !c.Put(ticketOf(c, "k"), "k", "new", time.Hour) || !has(c, "k") {
			t.Error("the new value was not put")
		}
	})
}

func TestFlushAfterTheTicketPreventsTheEntry(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		c := open(t, rdb)
		put(t, r, c, "k")
		ticket := ticketOf(c, "k")
		if cluster, ok := rdb.(*redis.ClusterClient); ok {
			if err := cluster.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() }); err != nil {
				t.Fatal(err)
			}
		} else {
			do(t, rdb.FlushAll(t.Context()))
		}
		r.Until("the entry is dropped", func() bool { return !has(c, "k") })
		if c.Put(ticket, "k", "old", time.Hour) {
			t.Error("an old value was put after FLUSHALL")
		}
	})
}

// The tracking connection stays open without a message.
func TestEntriesEndThreeSecondsAfterTheServerHangs(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		c := open(t, r.Client())
		put(t, r, c, "k")
		r.Pause()
		paused := time.Now()
		for has(c, "k") {
			if time.Since(paused) > 3200*time.Millisecond {
				t.Fatal("an entry is returned 3 s after the server began to hang")
			}
			time.Sleep(time.Millisecond)
		}
		r.Resume()
		put(t, r, c, "k")
	})
}

func TestEntriesEndWithTheServer(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		c := open(t, r.Client())
		put(t, r, c, "k")
		ticket := ticketOf(c, "k")
		r.Kill()
		r.Until("the entry is dropped", func() bool { return !has(c, "k") })
		r.Restart()
		put(t, r, c, "other")
		if has(c, "k") || c.Put(ticket, "k", "old", time.Hour) {
			t.Error("an entry has outlived its server")
		}
	})
}

func TestEvictionDropsTheEntry(t *testing.T) {
	r := redistest.Server(t, "--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru").Backend()
	rdb := r.Client()
	c := open(t, rdb)
	do(t, rdb.Set(t.Context(), values+"k}", "v", 0))
	put(t, r, c, "k")
	big := string(make([]byte, 10_000))
	others := 0
	r.Until("the server has evicted it", func() bool {
		others++
		do(t, rdb.Set(t.Context(), "other:"+strconv.Itoa(others), big, 0))
		return rdb.Exists(t.Context(), values+"k}").Val() == 0
	})
	r.Until("the entry is dropped", func() bool { return !has(c, "k") })
}

func TestCachesOfAClientShareATrackingConnection(t *testing.T) {
	r := redistest.Server(t)
	rdb := r.Client()
	h := near.NewHub(rdb, "process")
	defer h.Close()
	a := near.New[string](h, near.Config{Values: "a:v:{", Changes: "a:i", Entries: 10, Report: func(bool, error) {}})
	defer a.Close()
	b := near.New[string](h, near.Config{Values: "b:v:{", Changes: "b:i", Entries: 10, Report: func(bool, error) {}})
	defer b.Close()
	put(t, r.Backend(), a, "k")
	put(t, r.Backend(), b, "k")
	do(t, rdb.Set(t.Context(), "a:v:{k}", "new", 0))
	r.Backend().Until("the entry is dropped", func() bool { return !has(a, "k") })
	if !has(b, "k") {
		t.Error("a change in one namespace dropped an entry of another")
	}
	if n := strings.Count(rdb.ClientList(t.Context()).Val(), " sub=1 "); n != 1 {
		t.Errorf("there are %d tracking connections, want 1", n)
	}
}

func TestHubWithoutCachesSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		h := near.NewHub(rdb, "process")
		h.Invalidate(values + "k}")
		time.Sleep(time.Minute)
		if sent := redistest.WireOf(rdb).Commands(); len(sent) > 0 {
			t.Errorf("it sent %v", sent)
		}
		h.Close()
	})
}

// If the server refuses CLIENT TRACKING, the cache reports that, and receives what scripts
// publish to the channel of changes.
func TestRefusedTrackingFallsBackToPublishedChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t).Backend()
		rdb := r.Client()
		var refused atomic.Bool
		h := near.NewHub(rdb, "process")
		defer h.Close()
		c := near.New[string](h, near.Config{Values: values, Changes: changes, Entries: 10, Report: func(no bool, _ error) { refused.Store(refused.Load() || no) }})
		defer c.Close()
		put(t, r, c, "k")
		if !refused.Load() {
			t.Error("the refusal was not reported")
		}
		do(t, rdb.Publish(t.Context(), changes, values+"k}"))
		r.Settle()
		if has(c, "k") {
			t.Error("an entry has outlived the change of its value")
		}

		put(t, r, c, "k")
		time.Sleep(time.Minute - time.Second)
		if !has(c, "k") {
			t.Error("an entry ended without a fault")
		}
		r.Pause()
		time.Sleep(3 * time.Second)
		if has(c, "k") {
			t.Error("an entry is returned without heartbeats")
		}
		r.Resume()
		put(t, r, c, "k")
	})
}

func TestEntryEndsWithItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t).Backend()
		c := open(t, r.Client())
		for _, life := range []time.Duration{10 * time.Millisecond, 500 * time.Millisecond, 10 * time.Second} {
			put(t, r, c, "k")
			if !c.Put(ticketOf(c, "k"), "k", "v", life) {
				t.Fatal("not put")
			}
			time.Sleep(life - min(life/2, 200*time.Millisecond))
			if !has(c, "k") {
				t.Errorf("an entry for %v ended early", life)
			}
			time.Sleep(min(life/2, 200*time.Millisecond))
			if has(c, "k") {
				t.Errorf("an entry for %v did not end", life)
			}
		}
	})
}

// The present tracking connection does not cover the namespace of a new cache. Its entries
// are untrusted until the next connection is up.
func TestNewNamespaceIsUntrustedUntilItIsTracked(t *testing.T) {
	var refuse atomic.Bool
	r := redistest.Server(t)
	rdb := r.Client(func(opt *redis.Options) {
		dial := redis.NewDialer(opt)
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if refuse.Load() {
				return nil, net.ErrClosed
			}
			return dial(ctx, network, addr)
		}
	})
	h := near.NewHub(rdb, "process")
	defer h.Close()
	a := near.New[string](h, near.Config{Values: "a:v:{", Changes: "a:i", Entries: 10, Report: func(bool, error) {}})
	defer a.Close()
	put(t, r.Backend(), a, "k")
	refuse.Store(true) // no new connection
	b := near.New[string](h, near.Config{Values: "b:v:{", Changes: "b:i", Entries: 10, Report: func(bool, error) {}})
	defer b.Close()
	if b.Put(ticketOf(b, "k"), "k", "v", time.Hour) {
		t.Error("an entry was made in a namespace that is not tracked")
	}
	refuse.Store(false)
	put(t, r.Backend(), b, "k")
	do(t, rdb.Set(t.Context(), "b:v:{k}", "new", 0))
	r.Backend().Until("the entry is dropped", func() bool { return !has(b, "k") })
}

// BenchmarkHit compares a hit by the time of the last tick with one that reads the clock.
func BenchmarkHit(b *testing.B) {
	r := redistest.Server(b).Backend()
	c := open(b, r.Client())
	for name, life := range map[string]time.Duration{"tick": time.Hour, "clock": time.Second - 1} {
		put(b, r, c, "k")
		c.Put(ticketOf(c, "k"), "k", "v", life)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if !has(c, "k") {
					c.Put(ticketOf(c, "k"), "k", "v", life)
				}
			}
		})
	}
}
