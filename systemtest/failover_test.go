package systemtest_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A master dies before it replicates a lease. Its holder loses the lease, another process
// takes over, and the value that the first one fetches is not stored.
func TestLeaseIsLostInAFailover(t *testing.T) {
	c := redistest.Cluster(t)
	r := c.Backend()
	rdb, holders := c.Client(follow), c.Client(follow)
	holder := testkit.LoaderOf(t, holders, testkit.ShortLease(r))
	other := testkit.LoaderOf(t, rdb, testkit.ShortLease(r))
	testkit.Set(t, other, "k", "stored") // both have been there
	testkit.WantKept(t, holder, "stored")
	master := nodeOf(t, rdb, c.Nodes(), "k")
	replica := joinReplica(t, c, master)
	if err := other.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}

	r.Until("the Delete has reached the replica", func() bool {
		return infoField(tell(t, replica, "info", "replication"), "slave_repl_offset") ==
			infoField(tell(t, master, "info", "replication"), "master_repl_offset")
	})
	tell(t, replica, "config", "set", "masterauth", "wrong") // when it connects again
	if err := replica.Client().ClientKillByFilter(t.Context(), "type", "master").Err(); err != nil {
		t.Fatal(err)
	}
	r.Until("the replica hears nothing any more", func() bool {
		return strings.Contains(tell(t, replica, "info", "replication"), "master_link_status:down")
	})
	wantTakenOver(t, holder, other, func() {
		master.Kill()
		tell(t, replica, "cluster", "failover", "takeover")
		r.Until("it takes a change", func() bool {
			rdb.ReloadState(t.Context()) // go-redis itself would do that after ten seconds
			holders.ReloadState(t.Context())
			return rdb.Set(t.Context(), "test:x:{k}", "x", time.Minute).Err() == nil &&
				holders.Set(t.Context(), "test:x:{k}", "x", time.Minute).Err() == nil
		})
	})
}

// infoField returns a field of what INFO says, or "".
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// The slot of a key moves to another node, with all that is in it, while a process
// fetches the key and another waits. What is fetched is stored there once the move
// is over: until then some of the key's names are here and some there. One fetch is
// enough for both.
func TestValueIsStoredAfterItsSlotMoved(t *testing.T) {
	c := redistest.Cluster(t)
	r := c.Backend()
	nodes := c.Nodes()
	rdb := c.Client(follow)
	holder, other := testkit.LoaderOf(t, rdb), testkit.LoaderOf(t, c.Client(follow))
	from := nodeOf(t, rdb, nodes, "k")
	to := nodes[0]
	if to == from {
		to = nodes[1]
	}
	o := testkit.NewOrigin(t)
	here := testkit.Get(t, t.Context(), holder, "k", o)
	fetch := o.Next()
	there := testkit.Get(t, t.Context(), other, "k", o)
	r.Until("the other waits in Redis", func() bool { return rdb.HLen(t.Context(), "test:m:{k}").Val() > 2 })

	sent := testkit.Scripts(rdb)
	move(t, "k", from, to, nodes, func() {
		fetch.Returns("v")
		r.Until("FILL is sent to both nodes, and again", func() bool { return testkit.Scripts(rdb) >= sent+3 })
	})
	here.Want("v")
	there.Want("v")
	testkit.WantKept(t, holder, "v")
	o.Want(1)
}

// All connections of the pool are used up by others, for ever. A Get waits no longer
// for one than RedisTimeout: then it fetches by itself, or returns an error, as its
// policy says. When a connection is free again, all is well.
func TestUsedUpPoolFollowsThePolicy(t *testing.T) {
	for name, policy := range map[string]fetchonce.Policy{"FailOpen": fetchonce.FailOpen, "FailClosed": fetchonce.FailClosed} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Server(t)
			r := server.Backend()
			rdb := server.Client(func(opt *redis.Options) { opt.PoolSize, opt.PipelinePoolSize, opt.PoolTimeout = 1, -1, time.Hour })
			l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(policy))
			other := testkit.NewLoader(t, r)
			conn := rdb.Conn()
			defer conn.Close()
			if err := conn.Set(t.Context(), "test:x:{x}", "x", time.Minute).Err(); err != nil { // it has the only one
				t.Fatal(err)
			}

			var all []*testkit.Getter
			fetch := func(context.Context, string) (string, error) { return "unleased", nil }
			for range 100 {
				all = append(all, testkit.GetWith(t, t.Context(), l, "k", fetch))
			}
			for _, g := range all {
				if policy == fetchonce.FailOpen {
					g.Want("unleased")
				} else {
					testkit.WantRedisDown(t, g.Outcome())
				}
			}
			if err := l.Delete(t.Context(), "k"); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Delete = %v, want that its time was over", err)
			}

			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			wantWorking(t, r, l, other)
		})
	}
}
