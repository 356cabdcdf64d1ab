package redistest_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestClusterHasThreeMasters(t *testing.T) {
	m := redistest.Cluster(t)
	for _, rdb := range []*redis.ClusterClient{m.Client(), m.Plain()} {
		// go-redis recommends CLUSTER SHARDS instead, which needs Redis 7.
		slots, err := rdb.Do(t.Context(), "CLUSTER", "SLOTS").Slice()
		if err != nil {
			t.Fatal(err)
		}
		sum := int64(0)
		for _, s := range slots {
			s := s.([]any) // first, last, nodes...
			sum += s[1].(int64) - s[0].(int64) + 1
		}
		if len(slots) != 3 || sum != 16384 {
			t.Errorf("%d slots in %d ranges, want 16384 in 3", sum, len(slots))
		}
		for i := range 100 {
			if err := rdb.Set(t.Context(), strconv.Itoa(i), "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		var addrs []string
		if err := rdb.ForEachMaster(t.Context(), func(ctx ctx, node *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			addrs = append(addrs, node.Options().Addr)
			if n := node.DBSize(ctx).Val(); n < 20 {
				t.Errorf("node %s has %d keys of 100", node.Options().Addr, n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(addrs)
		want := m.Addrs()
		slices.Sort(want)
		if !slices.Equal(addrs, want) {
			t.Errorf("masters %q, want %q", addrs, want)
		}
	}
}

func TestClusterIsHandedOnIfItIsAsItWas(t *testing.T) {
	var before []string // the addresses of the previous test
	for _, test := range []struct {
		name     string
		handedOn bool
		do       func(m *redistest.Masters)
	}{
		{"used", true, func(m *redistest.Masters) {
			rdb := m.Client()
			rdb.Set(t.Context(), "k", "v", 0)
			_, _ = rdb.Subscribe(t.Context(), "forgotten").Receive(t.Context())
			redistest.WireOf(rdb).Pause()
		}},
		{"paused", true, func(m *redistest.Masters) { m.Pause() }},
		{"paused, resumed", true, func(m *redistest.Masters) { m.Pause(); m.Resume() }},
		{"killed", false, func(m *redistest.Masters) { m.Kill() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			var addrs []string
			idle := 0
			t.Run("", func(t *testing.T) {
				m := redistest.Cluster(t)
				idle = redistest.IdleClusters()
				addrs = m.Addrs()
				if before != nil && !slices.Equal(addrs, before) {
					t.Errorf("nodes %q, want those of the last test: %q", addrs, before)
				}
				if n, err := m.Client().Exists(t.Context(), "k").Result(); n != 0 || err != nil {
					t.Errorf("Exists = %d, %v; want 0, nil", n, err)
				}
				redistest.Until(t, "nobody is subscribed any more", func() bool {
					var n atomic.Int32
					err := m.Client().ForEachMaster(t.Context(), func(ctx ctx, node *redis.Client) error {
						channels, err := node.PubSubChannels(ctx, "*").Result()
						n.Add(int32(len(channels)))
						return err
					})
					return err == nil && n.Load() == 0
				})
				test.do(m)
			})
			if addrs == nil {
				t.Skip("no cluster")
			}
			if got := redistest.IdleClusters() > idle; got != test.handedOn {
				t.Errorf("handed on: %v, want %v", got, test.handedOn)
			}
			before = addrs
			if !test.handedOn {
				before = nil
				for _, addr := range addrs {
					if !refused(addr) {
						t.Errorf("the node at %s still runs", addr)
					}
				}
			}
		})
	}
}

// TestNodesOfACluster checks many rules in one test, because each start of a node
// takes two seconds.
func TestNodesOfACluster(t *testing.T) {
	t.Parallel()
	var addrs []string
	t.Run("", func(t *testing.T) {
		m := redistest.Cluster(t)
		addrs = m.Addrs()
		testNodes(t, m)
	})
	// The test called Nodes, so no later test may use the cluster.
	for _, addr := range addrs {
		if !refused(addr) {
			t.Errorf("after the test, the node at %s still runs", addr)
		}
	}
}

func testNodes(t *testing.T, m *redistest.Masters) {
	t.Helper()
	addrs := m.Addrs()
	nodes := m.Nodes()
	rdb := m.Client()
	keys := keysOf(t, rdb)
	set := func(key string) error {
		return hurried(t, func(ctx ctx) error { return rdb.Set(ctx, key, "v", 0).Err() })
	}
	for i, key := range keys {
		if err := set(key); err != nil {
			t.Fatalf("Set on node %d = %v, want nil", i, err)
		}
		if got := nodes[i].Client().Get(t.Context(), key).Val(); got != "v" {
			t.Errorf("node %d does not have its key", i)
		}
	}
	if err := nodes[0].Client().Get(t.Context(), keys[1]).Err(); !redis.HasErrorPrefix(err, "MOVED") {
		t.Errorf("Get of another node's key = %v, want MOVED", err)
	}

	nodes[1].Pause()
	if err := set(keys[1]); !isTimeout(err) {
		t.Errorf("Set on the paused node = %v, want a timeout", err)
	}
	if err := set(keys[0]); err != nil {
		t.Errorf("Set on another = %v, want nil", err)
	}
	nodes[1].Resume()

	nodes[2].Kill()
	if err := set(keys[2]); err == nil || isRedisError(err) {
		t.Errorf("Set on the dead node = %v, want an error of the network", err)
	}
	if err := set(keys[0]); err != nil {
		t.Errorf("Set on another = %v, want nil", err)
	}
	nodes[2].Restart()
	m.Ready()
	if got, err := rdb.Exists(t.Context(), keys[2]).Result(); got != 0 || err != nil {
		t.Errorf("Exists on the restarted node = %d, %v; want 0, nil", got, err)
	}
	if got := rdb.Get(t.Context(), keys[0]).Val(); got != "v" {
		t.Error("another has lost its key")
	}

	// Restart two nodes that run and one that does not.
	nodes[2].Kill()
	m.Restart()
	if got := m.Addrs(); !slices.Equal(got, addrs) {
		t.Errorf("after Restart, nodes %q, want %q", got, addrs)
	}
	for i, key := range keys {
		if got, err := m.Client().Exists(t.Context(), key).Result(); got != 0 || err != nil {
			t.Errorf("after Restart, Exists on node %d = %d, %v; want 0, nil", i, got, err)
		}
	}
}

// keysOf returns a key of each node.
func keysOf(t *testing.T, rdb *redis.ClusterClient) (keys [3]string) {
	t.Helper()
	for i := range 100 {
		key := strconv.Itoa(i)
		slot, err := rdb.ClusterKeySlot(t.Context(), key).Result()
		if err != nil {
			t.Fatal(err)
		}
		keys[slot*3/16384] = key
	}
	return keys
}

func TestClusterEndsWithTheBinary(t *testing.T) {
	const isChild = "REDISTEST_IS_CHILD"
	if os.Getenv(isChild) != "" {
		fmt.Println("ADDRS", redistest.Cluster(t).Addrs())
		self, _ := os.FindProcess(os.Getpid()) // cannot fail for a running process
		_ = self.Kill()
		select {}
	}
	t.Parallel()
	redistest.Server(t) // skips without a redis-server
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestClusterEndsWithTheBinary$")
	cmd.Env = append(os.Environ(), isChild+"=1", "TMPDIR="+dir)
	out, _ := cmd.Output() // The child kills itself, so this always fails.
	_, list, _ := strings.Cut(string(out), "ADDRS [")
	list, _, _ = strings.Cut(list, "]")
	addrs := strings.Fields(list)
	if len(addrs) != 3 {
		t.Fatalf("it says %q, want the addresses of three nodes", out)
	}
	redistest.Until(t, "its nodes end", func() bool {
		return !slices.ContainsFunc(addrs, func(addr string) bool { return !refused(addr) })
	})
	redistest.Until(t, "its directory goes", func() bool {
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0
	})
}
