package batch_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// send sends a command to a node.
func send(t *testing.T, node *redistest.Process, args ...any) any {
	t.Helper()
	rdb := node.Client()
	defer func() { _ = rdb.Close() }()
	got, err := rdb.Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return got
}

// halfMoved moves a key, but not its slot, from its node to another one. complete moves the slot.
func halfMoved(t *testing.T, c *redistest.Masters, key string) (complete func()) {
	t.Helper()
	nodes := c.Nodes()
	master, err := c.Client().MasterForKey(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	from, to := nodes[0], nodes[1]
	for i, node := range nodes {
		if node.Addr() == master.Options().Addr {
			from, to = node, nodes[(i+1)%len(nodes)]
		}
	}
	slot, target := send(t, from, "cluster", "keyslot", key), send(t, to, "cluster", "myid")
	send(t, to, "cluster", "setslot", slot, "importing", send(t, from, "cluster", "myid"))
	send(t, from, "cluster", "setslot", slot, "migrating", target)
	host, port, _ := net.SplitHostPort(to.Addr())
	send(t, from, "migrate", host, port, key, 0, 10_000)
	return func() {
		for _, node := range []*redistest.Process{to, from, nodes[0], nodes[1], nodes[2]} {
			send(t, node, "cluster", "setslot", slot, "node", target)
		}
	}
}

// The Router sends through the clients of nodes, which follow no redirection themselves.
func TestRouterFollowsRedirections(t *testing.T) {
	c := redistest.Cluster(t)
	r := batch.NewRouter(c.Client())
	if err := r.Link(0, 0).Do(t.Context(), within, set("k", "v")); err != nil {
		t.Fatal(err)
	}
	wantAll := func(when string) {
		t.Helper()
		cmd, again, script := getRange("k", 10), get("k"), redis.NewCmd(t.Context(), "eval", `return redis.call("GET", KEYS[1])`, 1, "k")
		if err := r.Link(0, 0).Read(t.Context(), within, cmd); err != nil || cmd.Val() != "v" {
			t.Errorf("%s: Read = %q, %v", when, cmd.Val(), err)
		}
		if err := r.Link(0, 0).Do(t.Context(), within, again, script); err != nil || again.Val() != "v" || script.Val() != "v" {
			t.Errorf("%s: Do = %q, %v, %v", when, again.Val(), script.Val(), err)
		}
		some := []redis.Cmder{get("a"), get("k"), get("b"), get("c")}
		errs := r.Link(0, 0).Each(t.Context(), within, some)
		if errs[1] != nil || some[1].(*redis.StringCmd).Val() != "v" || !errors.Is(errs[0], redis.Nil) {
			t.Errorf("%s: Each = %v, errors %v", when, some, errs)
		}
	}
	wantAll("before the move")
	complete := halfMoved(t, c, "k")
	wantAll("ASK")
	complete()
	wantAll("MOVED")
	r.Close(io.EOF)
	wantNotSent(t, "after Close", r.Link(0, 0).Do(t.Context(), within, get("k")), true)
}

// The error proves NotSent: go-redis makes one attempt to dial a node.
func TestClusterWithoutNodes(t *testing.T) {
	c := redistest.Cluster(t)
	warm, cold := batch.NewRouter(c.Client()), batch.NewRouter(c.Plain())
	defer warm.Close(io.EOF)
	if err := warm.Link(0, 0).Do(t.Context(), within, set("k", "v")); err != nil {
		t.Fatal(err)
	}
	c.Kill()
	wantNotSent(t, "of a node that was known", warm.Link(0, 0).Do(t.Context(), within, get("k")), true)
	wantNotSent(t, "of no known node", cold.Link(0, 0).Do(t.Context(), within, get("k")), true)
	if errs := cold.Link(0, 0).Each(t.Context(), within, []redis.Cmder{get("k"), get("l")}); errs[0] == nil || errs[1] == nil {
		t.Errorf("Each without nodes = %v", errs)
	}
	cold.Close(io.EOF)
	if err := cold.Link(0, 0).Do(t.Context(), within, get("k")); !errors.Is(err, io.EOF) {
		t.Errorf("Do of a Router that was closed cold = %v, want %v", err, io.EOF)
	}
}

// A caller waits for the topology until its time limit at most.
func TestColdRouterInFrontOfAClusterThatHangs(t *testing.T) {
	c := redistest.Cluster(t)
	r := batch.NewRouter(c.Client(func(opt *redis.ClusterOptions) { opt.ReadTimeout = time.Hour }))
	c.Pause()
	defer c.Resume()
	if err := r.Link(0, 0).Do(t.Context(), 300*time.Millisecond, get("k")); !errors.Is(err, batch.ErrTimeout) {
		t.Errorf("Do = %v, want %v", err, batch.ErrTimeout)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := route(ctx, r)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Do = %v, want %v", err, context.Canceled)
	}
	ended = route(t.Context(), r)
	r.Close(io.EOF)
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("Do = %v, want %v", err, io.EOF)
	}
}

// route calls a Router's Do on a goroutine of its own.
func route(ctx context.Context, r *batch.Router) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- r.Link(0, 0).Do(ctx, time.Hour, get("k")) }()
	return ended
}

func BenchmarkRouter(b *testing.B) {
	c := redistest.Cluster(b)
	rdb := c.Client()
	r := batch.NewRouter(rdb)
	if err := r.Link(0, 0).Do(b.Context(), within, set("k", "v")); err != nil {
		b.Fatal(err)
	}
	b.Run("master for a key", func(b *testing.B) {
		for b.Loop() {
			_, _ = rdb.MasterForKey(b.Context(), "prefix:v:{some key}")
		}
	})
	b.Run("a read", func(b *testing.B) {
		for b.Loop() {
			if err := r.Link(0, 0).Read(b.Context(), within, getRange("k", 10)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("a bare read", func(b *testing.B) {
		for b.Loop() {
			if err := rdb.GetRange(b.Context(), "k", 0, 10).Err(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
