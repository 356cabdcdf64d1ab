package history

import (
	"slices"
	"time"
)

// A Fault is what a Hit did.
type Fault string

// The faults. Each has one of the effects below.
const (
	Stopped Fault = "stop"    // a process, by SIGSTOP, wherever it was
	Starved Fault = "starved" // a process that noticed that it did not run

	Reset     Fault = "reset" // its connections
	Delay     Fault = "delay"
	BlackHole Fault = "black hole"
	LostReply Fault = "lost reply"

	RedisStop   Fault = "redis stop"
	RedisSlow   Fault = "redis slow" // by itself: the machine is busy
	RedisKill   Fault = "redis kill" // and restarted, empty
	Failover    Fault = "failover"   // of a master that was killed
	StopOver    Fault = "failover of a stopped master"
	TwoMasters  Fault = "two masters" // of the same keys, as was seen
	ClientKill  Fault = "client kill"
	OutOfMemory Fault = "out of memory"
	ScriptFlush Fault = "script flush"
	SlotMove    Fault = "slot move"
	DelLease    Fault = "del of a lease" // of Key
	DelLock     Fault = "del of a lock"  // of Key
	SourceSlow  Fault = "source slow"    // by itself: the machine is busy
	NodeHang    Fault = "node hang"      // one Node of a cluster is stopped; the others are well
	Full        Fault = "full"           // maxmemory is reached for several leases; nothing is evicted

	FetchError  Fault = "fetch error"
	FetchPanic  Fault = "fetch panic"
	FetchGoexit Fault = "fetch goexit"
	FetchHang   Fault = "fetch hang"
)

// An effect is what a fault excuses.
type effect int

const (
	paused effect = 1 << iota // the process did not run: it could not heed its own clock
	cut                       // a process could not reach Redis: errors, and fetches without a lease
	lost                      // Redis lost leases and marks
	older                     // Redis may have gone back to older data
	late                      // a fetch may have taken too long
	full                      // Redis refused what takes memory: new leases, new waiters, values
)

var effects = map[Fault]effect{
	Stopped: paused | cut, Starved: paused | cut,
	Reset: cut, Delay: cut, BlackHole: cut, LostReply: cut,
	RedisStop: cut, RedisSlow: cut, ClientKill: cut, OutOfMemory: cut,
	RedisKill: cut | lost, Failover: cut | lost, StopOver: cut | lost | older, TwoMasters: cut | lost | older,
	DelLease: lost, DelLock: lost, SourceSlow: late,
	NodeHang: cut, Full: full,
	// Nothing is excused by a ScriptFlush or a SlotMove. What a failing fetch does
	// is seen by its error.
}

// Everyone is the Process of a Hit that all felt.
const Everyone = "*"

// hits are the faults of a history.
type hits struct {
	all   []Event
	after time.Duration // a fault is felt so much longer
	nodes int           // Rules.Nodes
	died  map[string]Time
}

// felt reports whether a process felt such an effect on a key at any time from a
// to b. The process "" stands for Redis alone.
func (h *hits) felt(process, key string, what effect, a, b Time) bool {
	return h.any(process, what, a.Add(-h.after), b, func(e Event) bool { return h.concerns(e, key) })
}

// concerns reports whether a fault concerns a key. A fault of one node does not concern
// the keys of the others.
func (h *hits) concerns(e Event, key string) bool {
	return (e.Key == "" || e.Key == key) && (e.Node == 0 || e.Node == NodeOf(key, h.nodes))
}

// feltAtOnce is felt for what was not felt any more when the fault was over, on
// whatever key.
func (h *hits) feltAtOnce(process string, what effect, a, b Time) bool {
	return h.any(process, what, a, b, func(Event) bool { return true })
}

func (h *hits) any(process string, what effect, a, b Time, ok func(Event) bool) bool {
	return slices.ContainsFunc(h.all, func(e Event) bool {
		return effects[e.Fault]&what != 0 && (e.Process == Everyone || e.Process == process) && e.Began <= b && e.At >= a && ok(e)
	})
}

// forgot reports whether what Redis confirmed to a call, which lasted from a to b,
// may have been lost with a master: it was confirmed by the old one, and shortly
// before that was gone, or while it still answered.
func (h *hits) forgot(a, b Time) bool {
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
