package main

import (
	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/report"
	"github.com/fetchonce/fetchonce/bench/run"
)

// bars are what fetchonce should reach, beside its peers in the same run.
func bars() []report.Bar {
	all := []report.Bar{
		{
			What: "hand-overs beside the best peer", Workload: "handover",
			Figure: "handovers_per_s", Against: otherLockers, Least: 2,
		},
		{What: "fairness", Workload: "handover", Figure: "fairness", Least: 0.9},
		{What: "p99 of the wait to its mean", Workload: "handover", Figure: "wait_p99_to_mean", Most: 10},
		{What: "two who hold the lock at once", Workload: "handover", Figure: "overlaps", Most: 0},
		{
			What: "requests under a lock that nobody else wants, beside the best peer", Workload: "http",
			Where: run.Params{"key": uniqueKey}, Figure: "ops_per_s", Against: otherLockers, Least: 1,
		},
	}
	for i := range all {
		all[i].Peer = ours
	}
	return all
}

// otherLockers returns all libraries of locks but ours.
func otherLockers(run.Params) []string {
	var names []string
	for _, l := range peer.Lockers {
		if l.Name != ours {
			names = append(names, l.Name)
		}
	}
	return names
}
