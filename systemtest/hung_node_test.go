package systemtest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// withinSeconds sets a RedisTimeout that is long enough for a healthy node on a busy machine, and
// short enough for a test.
func withinSeconds(opt *options) {
	opt.RedisTimeout, opt.OnRedisDown = 5*time.Second, fetchonce.FailClosed
}

// patient makes a client wait for a hung node for longer than RedisTimeout.
func patient(opt *redis.ClusterOptions) { opt.ReadTimeout = time.Minute }

// keysOf returns n keys of the nodes for which ok holds.
func keysOf(t testing.TB, rdb *redis.ClusterClient, nodes []*redistest.Process, n int, ok func(*redistest.Process) bool) []string {
	t.Helper()
	var keys []string
	for i := 0; len(keys) < n; i++ {
		if key := fmt.Sprint("k", i); ok(nodeOf(t, rdb, nodes, key)) {
			keys = append(keys, key)
		}
	}
	return keys
}

// each calls a function for all keys at once, and fails the test for each error.
func each(t *testing.T, what string, keys []string, do func(key string) error) {
	t.Helper()
	var all sync.WaitGroup
	for _, key := range keys {
		all.Go(func() {
			if err := do(key); err != nil {
				t.Errorf("%s of %s, a key of a healthy node: %v", what, key, err)
			}
		})
	}
	all.Wait()
}

// One of three masters hangs, and many callers use its keys and locks. No call for a key of the
// other masters fails.
//
//test:long
func TestHungNodeDoesNotDelayKeysOfOtherNodes(t *testing.T) {
	for name, client := range map[string]func(*redistest.Masters) *redis.ClusterClient{
		"test options":       func(c *redistest.Masters) *redis.ClusterClient { return c.Client(patient) },
		"go-redis' defaults": func(c *redistest.Masters) *redis.ClusterClient { return c.Plain(patient) },
	} {
		t.Run(name, func(t *testing.T) {
			c := redistest.Cluster(t)
			nodes := c.Nodes()
			rdb := client(c)
			hung := nodes[1]
			onHung := keysOf(t, rdb, nodes, 30, func(n *redistest.Process) bool { return n == hung })
			onOthers := keysOf(t, rdb, nodes, 40, func(n *redistest.Process) bool { return n != hung })
			l, lk := testkit.LoaderOf(t, rdb, withinSeconds), testkit.LockerOf(t, rdb, testkit.PatientLocker)
			fetch := func(context.Context, string) (string, error) { return "fetched", nil }
			for _, key := range append(onHung, onOthers...) {
				testkit.Set(t, l, key, "v")
			}

			hung.Pause()
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			defer all.Wait()
			defer hung.Resume()
			defer cancel()
			for _, key := range onHung {
				all.Go(func() {
					for ctx.Err() == nil {
						_, _ = l.Get(ctx, key, fetch)
					}
				})
				all.Go(func() {
					for ctx.Err() == nil {
						_ = lk.Do(ctx, key, func(context.Context) error { return nil })
					}
				})
			}
			ended := time.Now().Add(6 * time.Second) // until the callers of the hung node hold all that they can hold
			for round := 0; round < 3 || time.Now().Before(ended); round++ {
				healthy(t, l, lk, onOthers)
			}
		})
	}
}

// healthy calls every method with keys of healthy nodes.
func healthy(t *testing.T, l loader, lk *fetchonce.Locker, keys []string) {
	t.Helper()
	fetch := func(context.Context, string) (string, error) { return "v", nil }
	hits := func(key string) error { _, err := l.Get(t.Context(), key, fetch); return err }
	each(t, "a Get", keys, hits)
	each(t, "a Delete", keys, func(key string) error { return l.Delete(t.Context(), key) })
	each(t, "a miss", keys, hits)
	each(t, "a Set", keys, func(key string) error { return l.Set(t.Context(), key, "v") })
	each(t, "a large Set", keys, func(key string) error { return l.Set(t.Context(), key, strings.Repeat("v", 20_000)) })
	each(t, "an Update", keys, func(key string) error {
		return l.Update(t.Context(), key, func(context.Context) error { return nil })
	})
	each(t, "a lock", keys, func(key string) error {
		return lk.Do(t.Context(), key, func(context.Context) error { return nil })
	})
	if _, err := l.GetMany(t.Context(), keys, fetchMany); err != nil {
		t.Errorf("GetMany of keys of healthy nodes: %v", err)
	}
}

// A process that starts while a node hangs loads the topology from the other nodes.
func TestNewProcessFindsTheNodesWhileOneHangs(t *testing.T) {
	c := redistest.Cluster(t)
	nodes := c.Nodes()
	ours := keysOf(t, c.Client(), nodes, 10, func(n *redistest.Process) bool { return n != nodes[0] })
	nodes[0].Pause()
	defer nodes[0].Resume()
	for range 5 { // go-redis tries nodes in a random order
		healthy(t, testkit.LoaderOf(t, c.Plain(), func(opt *options) { opt.RedisTimeout = 20 * time.Second }), testkit.LockerOf(t, c.Plain(), testkit.PatientLocker), ours)
	}
}

// A master dies and its replica is promoted. Only the library reloads the client's topology.
func TestDeadMasterIsReplacedByItsReplica(t *testing.T) {
	c := redistest.Cluster(t)
	r := c.Backend()
	rdb := c.Client()
	l := testkit.LoaderOf(t, rdb, withinSeconds)
	testkit.Set(t, l, "k", "v")
	master := nodeOf(t, rdb, c.Nodes(), "k")
	replica := joinReplica(t, c, master)
	master.Kill()
	command(t, replica, "cluster", "failover", "takeover")
	r.Until("commands reach the promoted replica", func() bool { return l.Set(t.Context(), "k", "new") == nil })
}
