package systemtest_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/internal/programs"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A node of a cluster forwards each PUBLISH to every other node. So scripts publish only for a
// waiter. docs/scale.md relies on this.
func TestOnlyAWaiterCostsMessagesBetweenNodes(t *testing.T) {
	c := redistest.Cluster(t)
	r := c.Backend()
	nodes := c.Nodes()
	l, other, near := testkit.NewLoader(t, r), testkit.NewLoader(t, r), testkit.NewLoader(t, r, testkit.WithNear)
	o := testkit.NewOrigin(t)
	sent := func() int {
		all := 0
		for _, node := range nodes {
			for line := range strings.Lines(command(t, node, "cluster", "info")) {
				if n, ok := strings.CutPrefix(line, "cluster_stats_messages_publish_sent:"); ok {
					n, err := strconv.Atoi(strings.TrimSpace(n))
					if err != nil {
						t.Fatal(err)
					}
					all += n
				}
			}
		}
		return all
	}
	before := sent()
	if err := nodes[0].Client().Publish(t.Context(), "test:b:counted", "m").Err(); err != nil {
		t.Fatal(err)
	}
	if sent() == before {
		programs.Lacks(t, "a count of the PUBLISH messages between nodes")
	}
	costs := func(what string, want int, do func()) {
		t.Helper()
		before := sent()
		do()
		if got := sent() - before; got != want {
			t.Errorf("%s: %d messages between nodes, want %d", what, got, want)
		}
	}

	costs("a miss without a waiter", 0, func() {
		g := testkit.Get(t, t.Context(), l, "alone", o)
		o.Next().Returns("v")
		g.Want("v")
	})
	costs("a hit", 0, func() { testkit.Get(t, t.Context(), other, "alone", o).Want("v") })
	costs("a miss with a waiter in another process", len(nodes)-1, func() {
		g := testkit.Get(t, t.Context(), l, "both", o)
		call := o.Next()
		waits := testkit.Get(t, t.Context(), other, "both", o)
		testkit.AwaitWaiters(t, r, "both", 1)
		call.Returns("v")
		g.Want("v")
		waits.Want("v")
	})
	testkit.WarmNear(t, r, near, "both", "v")
	costs("a change of a key that has a near entry", 0, func() { testkit.Set(t, l, "both", "new") })
}
