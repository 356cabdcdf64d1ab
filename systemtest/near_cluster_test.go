package systemtest_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// follow makes a cluster client follow redirections.
func follow(opt *redis.ClusterOptions) { opt.MaxRedirects = 8 }

// command sends a command to a node and returns the reply.
func command(t *testing.T, node *redistest.Process, args ...any) string {
	t.Helper()
	rdb := node.Client()
	defer rdb.Close()
	got, err := rdb.Do(t.Context(), args...).Text()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return got
}

// nodeOf returns the node that has a key.
func nodeOf(t testing.TB, rdb *redis.ClusterClient, nodes []*redistest.Process, key string) *redistest.Process {
	t.Helper()
	master, err := rdb.MasterForKey(t.Context(), "test:v:{"+key+"}")
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		if node.Addr() == master.Options().Addr {
			return node
		}
	}
	t.Fatalf("no node has the key %q", key)
	return nil
}

// joinReplica adds a node as a replica of a master. It returns when the replica has all data of
// the master, and all masters know the replica.
func joinReplica(t *testing.T, c *redistest.Masters, master *redistest.Process) *redistest.Process {
	t.Helper()
	replica := c.Join()
	command(t, master, "config", "set", "repl-diskless-sync-delay", "0")
	id := command(t, master, "cluster", "myid")
	command(t, replica, "cluster", "replicate", id)
	c.Backend().Until("the replica is known and connected", func() bool {
		for _, node := range c.Nodes() {
			if !strings.Contains(command(t, node, "cluster", "nodes"), "slave "+id) {
				return false
			}
		}
		return strings.Contains(command(t, replica, "info", "replication"), "master_link_status:up")
	})
	return replica
}

// A slot moves to a new node, and the process cannot subscribe there. It keeps no near entries of
// that node's keys until it can.
func TestNearCacheKeepsNoEntryOfAnUntrackedNode(t *testing.T) {
	c := redistest.Cluster(t)
	nodes := c.Nodes()
	for _, node := range nodes {
		command(t, node, "acl", "setuser", "tracker", "on", ">secret", "~*", "&*", "+@all")
	}
	rdb := c.Client(follow, func(opt *redis.ClusterOptions) { opt.Username, opt.Password = "tracker", "secret" })
	l, other := testkit.LoaderOf(t, rdb, testkit.WithNear), testkit.LoaderOf(t, c.Client(follow))
	r := c.Backend()
	testkit.Set(t, other, "k", "old")
	testkit.WarmNear(t, r, l, "k", "old")

	joined := c.Join()
	command(t, joined, "acl", "setuser", "tracker", "on", ">secret", "~*", "&*", "+@all", "-subscribe")
	beginMove(t, "k", nodeOf(t, rdb, nodes, "k"), joined, nodes).finish()
	for i := range 10 {
		value := "new " + strconv.Itoa(i)
		testkit.Set(t, other, "k", value)
		for range 2 {
			if got, from := testkit.Source(t, l, "k"); got != value || from == fetchonce.SourceNear {
				t.Fatalf("got %q from %v, want %q from the node without a subscription", got, from, value)
			}
			if got, err := l.GetMany(t.Context(), []string{"k"}, fetchMany); err != nil || got["k"] != value {
				t.Fatalf("GetMany = %v, %v; want %q", got, err, value)
			}
		}
	}

	command(t, joined, "acl", "setuser", "tracker", "+subscribe")
	testkit.WarmNear(t, r, l, "k", "new 9")
	testkit.Set(t, other, "k", "newer")
	r.Until("the near entry is gone", func() bool {
		got, err := l.Peek(t.Context(), "k")
		return err == nil && got.Value == "newer"
	})
}

// A master is replaced by its replica, in a planned failover or after a crash. Later changes
// remove near entries, and no earlier entry is used.
func TestNearCacheFollowsAPromotedReplica(t *testing.T) {
	for name, promote := range map[string]func(t *testing.T, master, replica *redistest.Process){
		"planned": func(t *testing.T, master, replica *redistest.Process) {
			command(t, replica, "cluster", "failover")
		},
		"after a crash": func(t *testing.T, master, replica *redistest.Process) {
			master.Kill()
			command(t, replica, "cluster", "failover", "takeover")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			c := redistest.Cluster(t)
			rdb := c.Client(follow)
			writer := c.Client(follow)
			l, other := testkit.LoaderOf(t, rdb, testkit.WithNear), testkit.LoaderOf(t, writer)
			r := c.Backend()
			testkit.Set(t, other, "k", "old")
			master := nodeOf(t, rdb, c.Nodes(), "k")
			replica := joinReplica(t, c, master)
			testkit.WarmNear(t, r, l, "k", "old")

			promote(t, master, replica)
			r.Until("the replica is promoted", func() bool {
				return strings.HasPrefix(command(t, replica, "info", "replication"), "# Replication\r\nrole:master")
			})
			r.Until("the new master accepts a Set", func() bool {
				writer.ReloadState(t.Context()) // go-redis would do so after ten seconds
				return other.Set(t.Context(), "k", "new 0") == nil
			})
			for i := range 5 {
				value := "new " + strconv.Itoa(i)
				testkit.Set(t, other, "k", value)
				r.Until("Peek returns "+value, func() bool {
					got, err := l.Peek(t.Context(), "k")
					return err == nil && got.Value == value
				})
				testkit.WarmNear(t, r, l, "k", value)
			}
		})
	}
}
