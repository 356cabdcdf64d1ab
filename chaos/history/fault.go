package history

import (
	"slices"
	"time"
)

// A Fault is the kind of a Hit.
type Fault string

// The faults. Each has one of the effects below.
const (
	Stopped Fault = "stop"    // a process was stopped by SIGSTOP
	Starved Fault = "starved" // a process did not run, because the machine was busy

	Reset     Fault = "reset" // of the connections of a process
	Delay     Fault = "delay"
	BlackHole Fault = "black hole"
	LostReply Fault = "lost reply"

	RedisStop   Fault = "redis stop"
	RedisSlow   Fault = "redis slow" // because the machine was busy
	RedisKill   Fault = "redis kill" // and restarted, empty
	Failover    Fault = "failover"   // of a master that was killed
	StopOver    Fault = "failover of a stopped master"
	TwoMasters  Fault = "two masters" // two nodes were masters of the same keys
	ClientKill  Fault = "client kill"
	OutOfMemory Fault = "out of memory"
	ScriptFlush Fault = "script flush"
	SlotMove    Fault = "slot move"
	DelLease    Fault = "del of a lease" // of Key
	DelLock     Fault = "del of a lock"  // of Key
	SourceSlow  Fault = "source slow"    // because the machine was busy
	NodeHang    Fault = "node hang"      // one Node of a cluster is stopped
	Full        Fault = "full"           // maxmemory is reached for several leases; nothing is evicted

	FetchError  Fault = "fetch error"
	FetchPanic  Fault = "fetch panic"
	FetchGoexit Fault = "fetch goexit"
	FetchHang   Fault = "fetch hang"
)

// An effect is a reason that excuses violations.
type effect int

const (
	paused effect = 1 << iota // the process did not run, so it could not follow its clock
	cut                       // a process could not reach Redis, so it had errors and fetches without a lease
	lost                      // Redis lost leases and marks
	older                     // Redis may have returned to older data
	late                      // a fetch may have taken too long
	full                      // Redis refused new leases, waiters and values
)

var effects = map[Fault]effect{
	Stopped: paused | cut, Starved: paused | cut,
	Reset: cut, Delay: cut, BlackHole: cut, LostReply: cut,
	RedisStop: cut, RedisSlow: cut, ClientKill: cut, OutOfMemory: cut,
	RedisKill: cut | lost, Failover: cut | lost, StopOver: cut | lost | older, TwoMasters: cut | lost | older,
	DelLease: lost, DelLock: lost, SourceSlow: late,
	NodeHang: cut, Full: full,
	// ScriptFlush and SlotMove excuse nothing. A failing fetch is excused by its error.
}

// Everyone is the Process of a Hit that affected all processes.
const Everyone = "*"

// hits are the faults of a history.
type hits struct {
	all   []Event
	after time.Duration // how long a fault has effects after its end
	nodes int           // Rules.Nodes
	died  map[string]Time
}

// affected reports whether a fault had an effect on a process's calls for a key at any time from a to
// b, or had ended recently. The process "" stands for Redis alone.
func (h *hits) affected(process, key string, what effect, a, b Time) bool {
	return h.any(process, what, a.Add(-h.after), b, func(e Event) bool { return h.concerns(e, key) })
}

// concerns reports whether a fault affects a key. A fault of one node does not affect the keys of the
// others.
func (h *hits) concerns(e Event, key string) bool {
	return (e.Key == "" || e.Key == key) && (e.Node == 0 || e.Node == NodeOf(key, h.nodes))
}

// affectedDuring is like affected, for any key and for effects that end with the fault.
func (h *hits) affectedDuring(process string, what effect, a, b Time) bool {
	return h.any(process, what, a, b, func(Event) bool { return true })
}

func (h *hits) any(process string, what effect, a, b Time, ok func(Event) bool) bool {
	return slices.ContainsFunc(h.all, func(e Event) bool {
		return effects[e.Fault]&what != 0 && (e.Process == Everyone || e.Process == process) && e.Began <= b && e.At >= a && ok(e)
	})
}

// mayBeLost reports whether a failover may have lost what Redis confirmed to a call from a to b: the
// old master confirmed it shortly before its end, or while it still answered.
func (h *hits) mayBeLost(a, b Time) bool {
	return slices.ContainsFunc(h.all, func(e Event) bool {
		switch e.Fault {
		case Failover:
			return a <= e.Began && b.Add(lag) >= e.Began
		case StopOver, TwoMasters:
			return a <= e.At && b.Add(lag) >= e.Began
		}
		return false
	})
}
