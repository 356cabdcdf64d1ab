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

// A master dies before it has replicated a lease. The holder loses the lease, and another process
// fetches. The value that the holder fetches is not stored.
func TestLeaseIsLostInAFailover(t *testing.T) {
	c := redistest.Cluster(t)
	r := c.Backend()
	rdb, holders := c.Client(follow), c.Client(follow)
	holder := testkit.LoaderOf(t, holders, testkit.ShortLease(r))
	other := testkit.LoaderOf(t, rdb, testkit.ShortLease(r))
	testkit.Set(t, other, "k", "stored") // both clients connect to the node
	testkit.WantKept(t, holder, "stored")
	master := nodeOf(t, rdb, c.Nodes(), "k")
	replica := joinReplica(t, c, master)
	if err := other.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}

	r.Until("the Delete has reached the replica", func() bool {
		return infoField(command(t, replica, "info", "replication"), "slave_repl_offset") ==
			infoField(command(t, master, "info", "replication"), "master_repl_offset")
	})
	command(t, replica, "config", "set", "masterauth", "wrong") // so that it cannot reconnect
	if err := replica.Client().ClientKillByFilter(t.Context(), "type", "master").Err(); err != nil {
		t.Fatal(err)
	}
	r.Until("the replica is disconnected", func() bool {
		return strings.Contains(command(t, replica, "info", "replication"), "master_link_status:down")
	})
	wantTakenOver(t, holder, other, func() {
		master.Kill()
		command(t, replica, "cluster", "failover", "takeover")
		r.Until("the new master accepts a SET", func() bool {
			rdb.ReloadState(t.Context()) // go-redis would do so after ten seconds
			holders.ReloadState(t.Context())
			return rdb.Set(t.Context(), "test:x:{k}", "x", time.Minute).Err() == nil &&
				holders.Set(t.Context(), "test:x:{k}", "x", time.Minute).Err() == nil
		})
	})
}

// infoField returns a field of a reply to INFO, or "".
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// The slot of a key moves to another node while a process fetches the key and another waits. FILL
// fails until the move has ended, and is repeated. Both processes receive the value of one fetch.
func TestValueIsStoredAfterItsSlotMoved(t *testing.T) {
	h := newHalfMoved(t)
	rdb := h.masters.Client(follow)
	holder, other := testkit.LoaderOf(t, rdb), testkit.LoaderOf(t, h.masters.Client(follow))
	o := testkit.NewOrigin(t)
	here := testkit.Get(t, t.Context(), holder, "k", o)
	fetch := o.Next()
	there := testkit.Get(t, t.Context(), other, "k", o)
	h.r.Until("the other waits in Redis", func() bool { return rdb.HLen(t.Context(), "test:m:{k}").Val() > 2 })

	sent := testkit.Scripts(rdb)
	h.begin("k")
	h.moveAll()
	fetch.Returns("v")
	h.r.Until("FILL is sent to both nodes, and again", func() bool { return testkit.Scripts(rdb) >= sent+3 })
	h.finish()
	here.Want("v")
	there.Want("v")
	testkit.WantKept(t, holder, "v")
	o.Want(1)
}

// The program uses all connections of the pool for other things. A Get waits for a connection for
// RedisTimeout. Then it fetches without a lease or returns an error, as its policy says. When a
// connection is free again, Redis is used again.
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
			if err := conn.Set(t.Context(), "test:x:{x}", "x", time.Minute).Err(); err != nil { // takes the only connection
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
				t.Errorf("Delete = %v, want os.ErrDeadlineExceeded", err)
			}

			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			wantWorking(t, r, l, other)
		})
	}
}
