package main_test

import (
	"testing"

	bench "github.com/fetchonce/fetchonce/bench"
	"github.com/fetchonce/fetchonce/bench/run"
)

// What a Get costs is known, and so whether a workload measures what it says.
//
//test:long
func TestLoadersAreMeasured(t *testing.T) {
	type bounds struct{ least, most float64 }
	for _, c := range []struct {
		workload, peer string
		want           map[string]bounds
	}{
		{"hit", "fetchonce", map[string]bounds{"commands_per_op": {0.9, 1.1}}},
		{"near", "fetchonce", map[string]bounds{"commands_per_op": {0, 0.01}, "allocs_per_op": {0, 0.5}}},
		{"miss", "floor-goredis", map[string]bounds{"commands_per_op": {1.9, 2.1}, "fetches_per_op": {1, 1}}},
		{"stampede", "fetchonce", map[string]bounds{"fetches": {1, 1}, "after_p99_us": {1, 1e6}}},
		{"zipf", "fetchonce", map[string]bounds{"fetches": {10, 400}, "fetches_to_minimum": {1, 1.1}}},
		{"many", "fetchonce", map[string]bounds{"ops": {1, 1e6}}},
		{"outage", "fetchonce", map[string]bounds{"fetches": {1, 1e6}, "overlaps": {0, 0}, "do_p50_us": {0.001, 1e9}}},
		{"drop", "fetchonce", map[string]bounds{"ops": {1, 1e6}, "p99_us": {0.001, 1e6}}},
	} {
		t.Run(c.workload+"/"+c.peer, func(t *testing.T) {
			line := measure(t, *run.Find(bench.Workloads, c.workload), c.peer)
			if line.Error != "" || line.Figures["errors"] != 0 {
				t.Fatalf("%v errors: %s", line.Figures["errors"], line.Error)
			}
			for name, want := range c.want {
				if got, ok := line.Figures[name]; !ok || got < want.least || got > want.most {
					t.Errorf("%s: %v (%t), want %v", name, got, ok, want)
				}
			}
		})
	}
}

// Of five fetches of one key, a second long, the first was needed; the second
// began while it was under way, the third while its value was fresh; the fourth
// was needed, for that had grown old. The fifth is of another key.
func TestFetchesThatWereNeeded(t *testing.T) {
	key := []float64{1, 1, 1, 1, 2}
	began := []float64{0, 0.01, 0.9, 1.03, 0.02}
	ended := []float64{0.02, 0.03, 0.92, 1.05, 0.04}
	if n := bench.NeededFetches(key, began, ended); n != 3 {
		t.Errorf("%d were needed, want 3", n)
	}
}
