package main

// What the tests of this program use.
var (
	Workloads = workloads
	Handover  = handover
	Bars      = bars

	NeededFetches = neededFetches
)
