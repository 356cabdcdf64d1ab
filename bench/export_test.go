package main

// What the tests of this program use.
var (
	Workloads = workloads
	Handover  = handover
	Bars      = bars

	NeededFetches = neededFetches
	NewRelay      = newRelay
)

func (r *relay) Addr() string           { return r.addr }
func (r *relay) Fail(kind string) error { return r.fail(kind) }
func (r *relay) Serve() error           { return r.serve() }
func (r *relay) Close()                 { r.close() }
