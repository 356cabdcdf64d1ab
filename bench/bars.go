package main

import (
	"slices"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/report"
	"github.com/fetchonce/fetchonce/bench/run"
)

// bars returns the targets of fetchonce. Most compare it with its peers in the same repetition.
func bars() []report.Bar {
	all := slices.Concat(hitBars, loadBars, lockBars, outageBars)
	for i := range all {
		all[i].Peer = ours
	}
	return all
}

// ours is the peer that has targets.
const ours = "fetchonce"

var hitBars = []report.Bar{
	{What: "a near hit beside a bare otter", Workload: near.Name, Figure: "ns_per_op", Against: peers("floor-otter"), Most: 2},
	{What: "a near hit beside client-side caches", Workload: near.Name, Figure: "ns_per_op", Against: peers("rueidisaside", "goredis-csc"), Most: 0.1},
	{What: "allocations of a near hit", Workload: near.Name, Figure: "allocs_per_op", Most: 0.01}, // those of the loop around it
	{What: "a hit beside a bare GET, alone", Workload: hit.Name, Where: one, Figure: "ops_per_s", Against: peers("floor-goredis"), Least: 1 / 1.10, Why: whyHit},
	{What: "hits beside the best peer", Workload: hit.Name, Where: run.Params{"goroutines": "64"}, Figure: "ops_per_s", Against: others(hit, anyPeer), Least: 1},
	{What: "hits beside the best peer", Workload: hit.Name, Where: run.Params{"goroutines": "256"}, Figure: "ops_per_s", Against: others(hit, anyPeer), Least: 1},
	{What: "hits beside the best bare client", Workload: hit.Name, Where: run.Params{"goroutines": "64"}, Figure: "ops_per_s", Against: peers("floor-goredis-ap", "floor-rueidis"), Least: 0.95},
	{What: "hits beside the best bare client", Workload: hit.Name, Where: run.Params{"goroutines": "256"}, Figure: "ops_per_s", Against: peers("floor-goredis-ap", "floor-rueidis"), Least: 0.95},
}

var one = run.Params{"goroutines": "1"}

var loadBars = []report.Bar{
	{What: "a miss beside the best peer that fetches once", Workload: miss.Name, Figure: "us_per_op", Against: others(miss, fetchesOnce), Most: 1, Why: whyMiss},
	{What: "fetches of one value for all callers", Workload: stampede.Name, Figure: fetches.Figure, Most: 1},
	{What: "p99 after the fetch's end beside the best peer that fetches once", Workload: stampede.Name, Figure: afterP99.Figure, Against: others(stampede, fetchesOnce), Most: 1},
	{What: "Redis commands beside the best peer that fetches once", Workload: stampede.Name, Figure: "commands", Against: others(stampede, fetchesOnce), Most: 1, Why: whyStampede},
	{What: "fetches to the fetches that were needed", Workload: zipf.Name, Figure: "fetches_to_minimum", Most: 1.02},
}

var lockBars = []report.Bar{
	{What: "hand-offs beside the best peer", Workload: handover.Name, Figure: handoversPerSecond.Figure, Against: otherLockers, Least: 2},
	{What: "fewest acquisitions of a goroutine to the most", Workload: handover.Name, Figure: "fairness", Least: 0.9},
	{What: "p99 of the wait to its mean", Workload: handover.Name, Figure: "wait_p99_to_mean", Most: 10},
	{What: "two holders of the lock at once", Workload: handover.Name, Figure: "overlaps", Most: 0},
	{What: "requests under an uncontended lock beside the best peer", Workload: overHTTP.Name, Where: run.Params{"key": uniqueKey}, Figure: "ops_per_s", Against: otherLockers, Least: 1, Why: whyHTTP},
}

var outageBars = []report.Bar{
	{What: "p50 of a Get after Redis has failed, with a fetch of 1 ms, in µs", Workload: outage.Name, Figure: "get_p50_us", Most: 3000},
	{What: "the last fetch after Redis is back, in ms", Workload: outage.Name, Figure: "back_ms", Most: 2000},
	{What: "fetches of a key that the process already fetched", Workload: outage.Name, Figure: "overlaps", Most: 0},
}

// The reasons why targets are missed. The shares are from CPU profiles, see -profile.
const (
	whyHit = "a fifth of the client's CPU is spent outside go-redis, where the bare loop spends an eighth on decoding: " +
		"the batcher, the checks of the envelope, and names"
	whyMiss = "two scripts of 10 commands take Redis longer than the best peer's. The load has its own goroutine, so that callers can leave it; " +
		"a sixth of the client's CPU finds and wakes threads for that. With one goroutine rockscache is ahead, whose callers fetch themselves; with 64, rueidisaside"
	whyStampede = "rockscache-100ms polls after 100 ms, which is the duration of the fetch here. It sends few commands, and its callers receive the value 100 ms late. " +
		"The next best peer sends more commands than fetchonce"
	whyHTTP = "the two scripts keep a queue, fences and an end for each holder. They cost Redis half as much again as SET NX and a script that compares and deletes. " +
		"A few concurrent requests wait to share round trips, which is faster only with many"
)

func peers(names ...string) func(run.Params) []string {
	return func(run.Params) []string { return names }
}

// others returns the peers of a workload except fetchonce and the floors.
func others(load *run.Workload, of func(peer.Kind) bool) func(run.Params) []string {
	return func(p run.Params) []string {
		return slices.DeleteFunc(slices.Clone(load.Peers(p)), func(name string) bool {
			l, _ := peer.LoaderOf(name)
			return name == ours || l.Kind.Floor || !of(l.Kind)
		})
	}
}

func anyPeer(peer.Kind) bool       { return true }
func fetchesOnce(k peer.Kind) bool { return k.Once }

func otherLockers(p run.Params) []string {
	return slices.DeleteFunc(lockerNames(p), func(name string) bool { return name == ours })
}
