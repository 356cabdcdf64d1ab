package history_test

import (
	"maps"
	"testing"

	"github.com/fetchonce/fetchonce/chaos/history"
)

// NodeOf computes the same slots as CLUSTER KEYSLOT.
func TestNodeOfFollowsTheSlotsOfRedis(t *testing.T) {
	for key, want := range map[string]int{"123456789": 3 /* 12739 */, "k": 2 /* 7629 */, "n": 1 /* 3432 */, "": 1 /* 0 */} {
		if got := history.NodeOf(key, 3); got != want {
			t.Errorf("%q is on node %d, want %d", key, got, want)
		}
	}
	if got := history.NodeOf("k", 0); got != 0 {
		t.Errorf("without nodes, k is on node %d", got)
	}
}

// A call counts as tried if it ran beside a fault of another node, or in a full Redis, and succeeded.
func TestTriedCountsCallsBesideAFault(t *testing.T) {
	for _, c := range []struct {
		name, history string
		want          map[history.Trial]int
	}{
		{
			"beside a hung node", first + `
			1110 a got k since 1100 v 1
			1120 a fetching k since 1110 fence 5 by a1
			1130 a fetched k fence 5 by a1
			1140 a deleted n since 1130 by a2
			1150 a locked l since 1140 fence 5 by a3
			1160 a unlocked l since 1155 by a3
			2000 * hit since 1000 fault node_hang node 3`,
			map[history.Trial]int{history.GetBeside: 1, history.FetchBeside: 1, history.DeleteBeside: 1},
		},
		{"beside a hung node, its own node was slow", first + `
			1110 a got k since 1100 v 1
			1050 * hit since 1040 fault redis_slow node 2
			2000 * hit since 1000 fault node_hang node 3`, nil},
		{"after the node hung", first + `
			3110 a got k since 3100 v 1
			2000 * hit since 1000 fault node_hang node 3`, nil},
		{
			"in a full Redis", first + `
			900 a locked l since 890 fence 5 by a1
			1600 a unlocked l since 1599 by a1
			1650 b locked l since 950 fence 6 by b1
			1700 b unlocked l since 1699 by b1
			900 a fetching k since 890 fence 5 by a2
			1610 a fetched k fence 5 by a2
			1710 a got k since 1700 v 1
			1720 a deleted k since 1711 by a3
			2000 * hit since 1000 fault full`,
			map[history.Trial]int{
				history.LockKept: 1, history.LeaseKept: 1, history.LockPassed: 1, history.FullGet: 1, history.FullDelete: 1,
			},
		},
		{"in a full Redis, but for less than a lease", first + `
			900 a locked l since 890 fence 5 by a1
			1400 a unlocked l since 1399 by a1
			900 a fetching k since 890 fence 5 by a2
			1410 a fetched k fence 5 by a2
			2000 * hit since 1000 fault full`, nil},
		{"in a full Redis, lost", first + `
			900 a locked l since 890 fence 5 by a1
			1600 a unlocked l since 1599 by a1 err lost
			900 a fetching k since 890 fence 5 by a2
			1610 a fetched k fence 5 by a2 cut 1550 err lost
			2000 * hit since 1000 fault full`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := history.Judge(inMillis(t, c.history), milli).Tried; !maps.Equal(got, c.want) {
				t.Errorf("tried %v, want %v", got, c.want)
			}
		})
	}
}
