package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// The kinds that Second finds.
const (
	Unordered Kind = "second judge: no possible order of locks or invalidations"
	Unsure    Kind = "second judge: timed out, which proves nothing"
)

// Second judges a history with porcupine, an independent checker of linearizability. It searches for
// an order of all calls in which each happens at one moment between its beginning and its end:
//
//   - A lock is free or held. An Acquire takes a free lock with a fence above the last. A Release
//     frees it. A lost lease ends at some time before the next one begins.
//   - A key has a least version. An invalidation raises it, and a Get returns it or a later one.
//
// Second leaves out calls whose violations Judge excuses.
func Second(events []Event, r Rules) []Violation {
	events = slices.SortedStableFunc(slices.Values(events), byTime)
	j := newJudgment(r)
	j.read(events)
	for _, all := range j.locks {
		j.second(lockModel, j.lockCalls(all), all[0].Event)
	}
	reads, promises := j.registerCalls(events)
	for key, all := range promises {
		slices.SortFunc(reads[key], func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		for _, p := range all {
			j.second(registerModel, around(p, reads[key]), Event{Op: Got, Key: key, Version: p.Input.(registerCall).version, At: Time(p.Return)})
		}
	}
	return j.found
}

// searchTime limits the search for one order.
const searchTime = 10 * time.Second

func (j *judgment) second(model porcupine.Model, calls []porcupine.Operation, about Event) {
	switch porcupine.CheckOperationsTimeout(model, calls, searchTime) {
	case porcupine.Illegal:
		j.report(Unordered, about)
	case porcupine.Unknown:
		j.report(Unsure, about)
	}
}

// A lockCall acquires or releases the lease with a fence.
type lockCall struct {
	release bool
	fence   int64
}

type lockState struct{ held, last int64 }

var lockModel = porcupine.Model{
	Init: func() any { return lockState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, call := state.(lockState), input.(lockCall)
		if call.release {
			return s.held == call.fence, lockState{0, s.last}
		}
		return s.held == 0 && call.fence > s.last, lockState{call.fence, call.fence}
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, _ any) string {
		call := input.(lockCall)
		return fmt.Sprint(map[bool]string{false: "acquire ", true: "release "}[call.release], call.fence)
	},
}

func (j *judgment) lockCalls(all []*span) []porcupine.Operation {
	slices.SortStableFunc(all, byFence)
	var calls []porcupine.Operation
	for i, s := range all {
		next := j.end + 1
		if i+1 < len(all) {
			next = max(all[i+1].At, s.At)
		}
		calls = append(calls, porcupine.Operation{
			ClientId: 2 * i, Input: lockCall{fence: s.Fence}, Call: int64(s.Began), Return: int64(s.At),
		})
		// A released lease ends with its Release. A lost one ends at some time after its grant.
		from, to := s.end, next
		if s.cut || s.died || s.err != "" || j.hits.affected(s.Process, s.Key, paused|lost, s.Began, s.end) {
			from = s.Began
		}
		calls = append(calls, porcupine.Operation{
			ClientId: 2*i + 1, Input: lockCall{true, s.Fence}, Call: int64(from), Return: int64(max(from, to)),
		})
	}
	return calls
}

// A registerCall reads a version, or promises that no older one is read later.
type registerCall struct {
	promise bool
	version int64
}

var registerModel = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, _ any) (bool, any) {
		least, call := state.(int64), input.(registerCall)
		if call.promise {
			return true, max(least, call.version)
		}
		return call.version >= least, least
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, _ any) string {
		call := input.(registerCall)
		return fmt.Sprint(map[bool]string{false: "get ", true: "invalidate "}[call.promise], call.version)
	},
}

// registerCalls returns the reads and the invalidations of each key.
func (j *judgment) registerCalls(events []Event) (reads, promises map[string][]porcupine.Operation) {
	reads, promises = make(map[string][]porcupine.Operation), make(map[string][]porcupine.Operation)
	committed := make(map[string][]Event)
	for _, e := range events {
		if e.Op == Committed {
			committed[e.Key] = append(committed[e.Key], e)
		}
	}
	for _, e := range events {
		call := porcupine.Operation{Call: int64(e.Began), Return: int64(e.At)}
		switch {
		case e.Err != "":
		case e.Op == Got && !j.hits.affected("", "", older, e.Began, e.At):
			call.Input = registerCall{false, e.Version}
			reads[e.Key] = append(reads[e.Key], call)
		case (e.Op == Updated || e.Op == Deleted) && !j.hits.mayBeLost(e.Began, e.At):
			version := e.Version
			if e.Op == Deleted {
				for _, c := range committed[e.Key] {
					if c.At <= e.Began {
						version = max(version, c.Version)
					}
				}
			}
			call.Input = registerCall{true, version}
			promises[e.Key] = append(promises[e.Key], call)
		}
	}
	return reads, promises
}

// around returns one promise with the reads of older versions near it: those that had not returned
// when it began, of the next seconds. Promises are independent: if each has an order, all have one,
// with every read as early as possible. Checking all at once would take too long.
func around(p porcupine.Operation, reads []porcupine.Operation) []porcupine.Operation {
	const horizon = int64(10 * time.Second)
	least := p.Input.(registerCall).version
	from, _ := slices.BinarySearchFunc(reads, p.Call-horizon, func(r porcupine.Operation, t int64) int { return cmp.Compare(r.Call, t) })
	calls := []porcupine.Operation{p}
	for _, r := range reads[from:] {
		if r.Call > p.Return+horizon {
			break
		}
		if r.Return >= p.Call && r.Input.(registerCall).version < least {
			r.ClientId = len(calls)
			calls = append(calls, r)
		}
	}
	return calls
}
