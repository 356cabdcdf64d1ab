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

// withinSeconds is a RedisTimeout that a healthy node keeps on a busy machine, and
// that ends while a test runs.
func withinSeconds(opt *options) {
	opt.RedisTimeout, opt.OnRedisDown = 5*time.Second, fetchonce.FailClosed
}

// patient has a client wait longer for a node that hangs than RedisTimeout.
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
				t.Errorf("%s of %s, which a healthy node has: %v", what, key, err)
			}
		})
	}
	all.Wait()
}

// One of three masters hangs. While many callers ask for its keys and locks, nothing
// fails that the others have.
//
//test:long
func TestHungNodeDoesNotDelayKeysOfOtherNodes(t *testing.T) {
	for name, client := range map[string]func(*redistest.Masters) *redis.ClusterClient{
		"our options":        func(c *redistest.Masters) *redis.ClusterClient { return c.Client(patient) },
		"go-redis' defaults": func(c *redistest.Masters) *redis.ClusterClient { return c.Plain(patient) },
	} {
		t.Run(name, func(t *testing.T) {
			c := redistest.Cluster(t)
			nodes := c.Nodes()
			rdb := client(c)
			ill := nodes[1]
			is := func(n *redistest.Process) bool { return n == ill }
			isNot := func(n *redistest.Process) bool { return n != ill }
			theirs, ours := keysOf(t, rdb, nodes, 30, is), keysOf(t, rdb, nodes, 40, isNot)
			l, lk := testkit.LoaderOf(t, rdb, withinSeconds), testkit.LockerOf(t, rdb, testkit.PatientLocker)
			fetch := func(context.Context, string) (string, error) { return "fetched", nil }
			for _, key := range append(theirs, ours...) {
				testkit.Set(t, l, key, "v")
			}

			ill.Pause()
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			defer all.Wait()
			defer ill.Resume()
			defer cancel()
			for _, key := range theirs {
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
			ended := time.Now().Add(6 * time.Second) // so long that all which the ill node can occupy is occupied
			for round := 0; round < 3 || time.Now().Before(ended); round++ {
				healthy(t, l, lk, ours)
			}
		})
	}
}

// healthy uses keys and locks of healthy nodes in every way.
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
		t.Errorf("GetMany of keys that healthy nodes have: %v", err)
	}
}

// A process that starts while a node hangs finds out which nodes there are.
func TestNewProcessFindsTheNodesWhileOneHangs(t *testing.T) {
	c := redistest.Cluster(t)
	nodes := c.Nodes()
	ours := keysOf(t, c.Client(), nodes, 10, func(n *redistest.Process) bool { return n != nodes[0] })
	nodes[0].Pause()
	defer nodes[0].Resume()
	for range 5 { // go-redis asks them in a random order
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
	tell(t, replica, "cluster", "failover", "takeover")
	r.Until("the replica that was promoted is asked", func() bool { return l.Set(t.Context(), "k", "new") == nil })
}
