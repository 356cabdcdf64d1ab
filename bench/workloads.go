package main

import "github.com/fetchonce/fetchonce/bench/run"

// workloads lists all workloads in the order of the report.
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
	invalidate,
	notify,
	outage,
}
