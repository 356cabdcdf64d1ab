package systemtest_test

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// follow has a client of a cluster go where its nodes send it.
func follow(opt *redis.ClusterOptions) { opt.MaxRedirects = 8 }

// tell sends a node a command.
func tell(t *testing.T, node *redistest.Process, args ...any) string {
	t.Helper()
	rdb := node.Client()
	defer rdb.Close()
	got, err := rdb.Do(t.Context(), args...).Text()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return got
}

// nodeOf returns which of the nodes has a key.
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
	t.Fatal("no node has it")
	return nil
}

// move gives a key's slot, with all that is in it, to another node. What is to happen
// meanwhile does when all names are there and the slot is not.
func move(t *testing.T, key string, from, to *redistest.Process, all []*redistest.Process, meanwhile ...func()) {
	t.Helper()
	rdb := from.Client()
	defer rdb.Close()
	slot := int(rdb.ClusterKeySlot(t.Context(), key).Val())
	target, source := tell(t, to, "cluster", "myid"), tell(t, from, "cluster", "myid")
	tell(t, to, "cluster", "setslot", slot, "importing", source)
	tell(t, from, "cluster", "setslot", slot, "migrating", target)
	for _, name := range rdb.ClusterGetKeysInSlot(t.Context(), slot, 100).Val() {
		host, port, _ := net.SplitHostPort(to.Addr())
		if err := rdb.Migrate(t.Context(), host, port, name, 0, 10*time.Second).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, do := range meanwhile {
		do()
	}
	for _, node := range append([]*redistest.Process{to, from}, all...) {
		tell(t, node, "cluster", "setslot", slot, "node", target)
	}
}

// joinReplica adds a node as a replica of a master. It returns when the replica has all data
// of the master, and the voting masters know it.
func joinReplica(t *testing.T, c *redistest.Masters, master *redistest.Process) *redistest.Process {
	t.Helper()
	replica := c.Join()
	tell(t, master, "config", "set", "repl-diskless-sync-delay", "0")
	id := tell(t, master, "cluster", "myid")
	tell(t, replica, "cluster", "replicate", id)
	c.Backend().Until("the replica has all, and is known", func() bool {
		for _, node := range c.Nodes() {
			if !strings.Contains(tell(t, node, "cluster", "nodes"), "slave "+id) {
				return false
			}
		}
		return strings.Contains(tell(t, replica, "info", "replication"), "master_link_status:up")
	})
	return replica
}

// A slot moves to a new node, which this process does not track yet. The process keeps no
// near entries of that node's keys until it does.
func TestNearCacheKeepsNoEntryOfAnUntrackedNode(t *testing.T) {
	c := redistest.Cluster(t)
	nodes := c.Nodes()
	for _, node := range nodes {
		tell(t, node, "acl", "setuser", "listener", "on", ">secret", "~*", "&*", "+@all")
	}
	rdb := c.Client(follow, func(opt *redis.ClusterOptions) { opt.Username, opt.Password = "listener", "secret" })
	l, other := testkit.LoaderOf(t, rdb, testkit.WithNear), testkit.LoaderOf(t, c.Client(follow))
	r := c.Backend()
	testkit.Set(t, other, "k", "old")
	testkit.WarmNear(t, r, l, "k", "old")

	joined := c.Join()
	tell(t, joined, "acl", "setuser", "listener", "on", ">secret", "~*", "&*", "+@all", "-subscribe") // no client can subscribe there
	move(t, "k", nodeOf(t, rdb, nodes, "k"), joined, nodes)
	for i := range 10 {
		value := "new " + strconv.Itoa(i)
		testkit.Set(t, other, "k", value)
		for range 2 {
			if got, from := testkit.Source(t, l, "k"); got != value || from == fetchonce.SourceNear {
				t.Fatalf("got %q from %v, want %q from the node that nobody listens to", got, from, value)
			}
			if got, err := l.GetMany(t.Context(), []string{"k"}, fetchMany); err != nil || got["k"] != value {
				t.Fatalf("GetMany = %v, %v; want %q", got, err, value)
			}
		}
	}

	tell(t, joined, "acl", "setuser", "listener", "+subscribe")
	testkit.WarmNear(t, r, l, "k", "new 9")
	testkit.Set(t, other, "k", "newer")
	r.Until("the copy is gone", func() bool {
		got, err := l.Peek(t.Context(), "k")
		return err == nil && got.Value == "newer"
	})
}

// A master is replaced by its replica, in a planned failover or after a crash. Later changes
// remove near entries, and no earlier entry is used.
func TestNearCacheFollowsAPromotedReplica(t *testing.T) {
	for name, promote := range map[string]func(t *testing.T, master, replica *redistest.Process){
		"planned": func(t *testing.T, master, replica *redistest.Process) {
			tell(t, replica, "cluster", "failover")
		},
		"after a crash": func(t *testing.T, master, replica *redistest.Process) {
			master.Kill()
			tell(t, replica, "cluster", "failover", "takeover")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
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
			r.Until("it is promoted", func() bool {
				return strings.HasPrefix(tell(t, replica, "info", "replication"), "# Replication\r\nrole:master")
			})
			r.Until("it takes a change", func() bool {
				writer.ReloadState(t.Context()) // go-redis itself would do that after ten seconds
				return other.Set(t.Context(), "k", "new 0") == nil
			})
			for i := range 5 {
				value := "new " + strconv.Itoa(i)
				testkit.Set(t, other, "k", value)
				r.Until(value+" is seen", func() bool {
					got, err := l.Peek(t.Context(), "k")
					return err == nil && got.Value == value
				})
				testkit.WarmNear(t, r, l, "k", value)
			}
		})
	}
}
