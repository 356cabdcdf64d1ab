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
func open(t *testing.T, rdb redis.UniversalClient) *near.Cache[string] {
	t.Helper()
	h := near.Open(rdb, "process")
	c := near.New[string](h, values, changes, 100, func(bool, error) {}, nil)
	t.Cleanup(func() {
		c.Close()
		h.Close()
	})
	return c
}

// keep has the cache keep a copy, as soon as it may.
func keep(t *testing.T, r redistest.Backend, c *near.Cache[string], tag string) {
	t.Helper()
	r.Until("a copy may be kept", func() bool { return c.Keep(ask(c, tag), tag, "copy", time.Hour) })
}

func ask(c *near.Cache[string], key string) near.Ticket { return c.Ask(key, values+key+"}") }

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

// A value was read, then it changed, and then what was read came to be kept: it
// is not.
func TestChangeAfterAskForbidsTheCopy(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		c := open(t, rdb)
		keep(t, r, c, "k")
		ticket := ask(c, "k")
		do(t, rdb.Set(t.Context(), values+"k}", "new", 0))
		r.Until("the change is heard of", func() bool { return !has(c, "k") })
		if c.Keep(ticket, "k", "old", time.Hour) || has(c, "k") {
			t.Error("an old value was kept after its change was heard of")
		}
		if !c.Keep(ask(c, "k"), "k", "new", time.Hour) || !has(c, "k") {
			t.Error("the new value was not kept")
		}
	})
}

// The same with FLUSHALL, which names no key.
func TestFlushAfterAskForbidsTheCopy(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		c := open(t, rdb)
		keep(t, r, c, "k")
		ticket := ask(c, "k")
		if cluster, ok := rdb.(*redis.ClusterClient); ok {
			if err := cluster.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() }); err != nil {
				t.Fatal(err)
			}
		} else {
			do(t, rdb.FlushAll(t.Context()))
		}
		r.Until("it is heard of", func() bool { return !has(c, "k") })
		if c.Keep(ticket, "k", "old", time.Hour) {
			t.Error("an old value was kept after FLUSHALL")
		}
	})
}

// The connection hangs, or its server does: nothing comes, not even an end.
func TestCopiesEndWhenTheServerHangs(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		c := open(t, r.Client())
		keep(t, r, c, "k")
		r.Pause()
		paused := time.Now()
		for has(c, "k") {
			if time.Since(paused) > 3200*time.Millisecond {
				t.Fatal("a copy is used 3 s after the server began to hang")
			}
			time.Sleep(time.Millisecond)
		}
		r.Resume()
		keep(t, r, c, "k")
	})
}

// A copy of before the server ended is not used after it is back.
func TestCopiesEndWithTheServer(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		c := open(t, r.Client())
		keep(t, r, c, "k")
		ticket := ask(c, "k")
		r.Kill()
		r.Until("the loss is seen", func() bool { return !has(c, "k") })
		r.Restart()
		keep(t, r, c, "other")
		if has(c, "k") || c.Keep(ticket, "k", "old", time.Hour) {
			t.Error("a copy has outlived its server")
		}
	})
}

func TestEvictionIsHeardOf(t *testing.T) {
	r := redistest.Server(t, "--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru").Backend()
	rdb := r.Client()
	c := open(t, rdb)
	do(t, rdb.Set(t.Context(), values+"k}", "v", 0))
	keep(t, r, c, "k")
	big := string(make([]byte, 10_000))
	others := 0
	r.Until("the server has evicted it", func() bool {
		others++
		do(t, rdb.Set(t.Context(), "other:"+strconv.Itoa(others), big, 0))
		return rdb.Exists(t.Context(), values+"k}").Val() == 0
	})
	r.Until("the eviction is heard of", func() bool { return !has(c, "k") })
}

// Two caches of one client share its connection, and each hears of its own.
func TestCachesOfAClientShareAConnection(t *testing.T) {
	r := redistest.Server(t)
	rdb := r.Client()
	h := near.Open(rdb, "process")
	defer h.Close()
	a := near.New[string](h, "a:v:{", "a:i", 10, func(bool, error) {}, nil)
	defer a.Close()
	b := near.New[string](h, "b:v:{", "b:i", 10, func(bool, error) {}, nil)
	defer b.Close()
	keep(t, r.Backend(), a, "k")
	keep(t, r.Backend(), b, "k")
	do(t, rdb.Set(t.Context(), "a:v:{k}", "new", 0))
	r.Backend().Until("the change is heard of", func() bool { return !has(a, "k") })
	if !has(b, "k") {
		t.Error("a change of one namespace dropped a copy of another")
	}
	if n := strings.Count(rdb.ClientList(t.Context()).Val(), " sub=1 "); n != 1 {
		t.Errorf("there are %d connections that listen, want 1", n)
	}
}

// Who has no copies costs nothing.
func TestHubWithoutCachesSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		h := near.Open(rdb, "process")
		h.Changed(values + "k}")
		time.Sleep(time.Minute)
		if sent := redistest.WireOf(rdb).Commands(); len(sent) > 0 {
			t.Errorf("it sent %v", sent)
		}
		h.Close()
	})
}

// Without CLIENT TRACKING the process is told of that, and hears what is said on
// the channel of changes.
func TestRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t).Backend()
		rdb := r.Client()
		var refused atomic.Bool
		h := near.Open(rdb, "process")
		defer h.Close()
		c := near.New[string](h, values, changes, 10, func(no bool, _ error) { refused.Store(refused.Load() || no) }, nil)
		defer c.Close()
		keep(t, r, c, "k")
		if !refused.Load() {
			t.Error("nobody was told that the server refuses")
		}
		do(t, rdb.Publish(t.Context(), changes, values+"k}"))
		r.Settle()
		if has(c, "k") {
			t.Error("a copy has outlived the change of its value")
		}

		keep(t, r, c, "k")
		time.Sleep(time.Minute - time.Second)
		if !has(c, "k") {
			t.Error("a copy ended though all is well")
		}
		r.Pause()
		time.Sleep(3 * time.Second)
		if has(c, "k") {
			t.Error("a copy is used while nothing is heard")
		}
		r.Resume()
		keep(t, r, c, "k")
	})
}

func TestCopyHasALife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t).Backend()
		c := open(t, r.Client())
		for _, life := range []time.Duration{10 * time.Millisecond, 500 * time.Millisecond, 10 * time.Second} {
			keep(t, r, c, "k")
			if !c.Keep(ask(c, "k"), "k", "copy", life) {
				t.Fatal("not kept")
			}
			time.Sleep(life - min(life/2, 200*time.Millisecond))
			if !has(c, "k") {
				t.Errorf("a copy for %v ended early", life)
			}
			time.Sleep(min(life/2, 200*time.Millisecond))
			if has(c, "k") {
				t.Errorf("a copy for %v did not end", life)
			}
		}
	})
}

// A cache that joins a hub is of a namespace that nobody listens to yet. Nothing
// vouches for its copies until that is so.
func TestNewNamespaceIsNotVouchedForBeforeItIsHeard(t *testing.T) {
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
	h := near.Open(rdb, "process")
	defer h.Close()
	a := near.New[string](h, "a:v:{", "a:i", 10, func(bool, error) {}, nil)
	defer a.Close()
	keep(t, r.Backend(), a, "k")
	refuse.Store(true) // no other connection
	b := near.New[string](h, "b:v:{", "b:i", 10, func(bool, error) {}, nil)
	defer b.Close()
	if b.Keep(ask(b, "k"), "k", "copy", time.Hour) {
		t.Error("a copy was kept of what nobody listens to")
	}
	refuse.Store(false)
	keep(t, r.Backend(), b, "k")
	do(t, rdb.Set(t.Context(), "b:v:{k}", "new", 0))
	r.Backend().Until("the change is heard of", func() bool { return !has(b, "k") })
}
