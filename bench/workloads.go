package main

import "github.com/fetchonce/fetchonce/bench/run"

// workloads has all, in the order of the report.
var workloads = []*run.Workload{
	hit,
	paced,
	near,
	miss,
	stampede,
	zipf,
	many,
	size,
	drop,
	handover,
	overHTTP,
	mix,
	told,
	woken,
	outage,
}
