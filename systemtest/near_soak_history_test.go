package systemtest_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"
)

// travel is how long after a Delete elsewhere a near entry may still be used, on a machine
// without stalls.
const travel = 50 * time.Millisecond

// A soakHistory is what all processes of a soak have noted. All times are the
// machine's, in ns: the processes share its clock.
type soakHistory struct {
	seen   []seen
	gone   []gone
	stalls [soakProcesses + 1][]stall // by process; the last is the judge's own

	gets, near, deletes int64
}

type (
	// seen is a Get, which began then and returned a version.
	seen struct {
		key, version, began int64
		process             int
	}

	// gone is a Delete, which had returned by then and before which the source had
	// been changed to a version: no older one may be seen.
	gone struct {
		key, version, at int64
		process          int
	}

	// A stall is a time in which a process did nothing.
	stall struct{ from, to int64 }
)

func (h *soakHistory) add(w *soakWorker) {
	h.seen = append(h.seen, w.seen...)
	h.gone = append(h.gone, w.gone...)
	h.stalls[w.number] = w.stalls
	h.gets += w.gets
	h.near += w.near
	h.deletes += w.deletes
}

// A soakVerdict is what a history comes to.
type soakVerdict struct {
	wrong     []string
	overtaken int           // Gets whose version was replaced before the next one of its reader
	longest   time.Duration // that a Get began after a Delete elsewhere of what it returned
	excused   time.Duration // the same, without the stalls
	stalled   time.Duration // of the judge
}

// judge compares each Get with the first Delete, in each process, of what it
// returned. Elsewhere, allowed is how much later it may have begun, without the
// time in which the process of the Get or the judge was stalled.
func (h *soakHistory) judge(allowed time.Duration) soakVerdict {
	var v soakVerdict
	for _, s := range h.stalls[soakProcesses] {
		v.stalled += time.Duration(s.to - s.from)
	}
	type place struct {
		key     int64
		process int
	}
	deletes := make(map[place][]gone)
	for _, g := range h.gone {
		p := place{g.key, g.process}
		deletes[p] = append(deletes[p], g)
	}
	for _, list := range deletes {
		slices.SortFunc(list, func(a, b gone) int { return cmp.Compare(a.version, b.version) })
	}
	for _, s := range h.seen {
		later := false
		for process := range soakProcesses {
			list := deletes[place{s.key, process}]
			i, _ := slices.BinarySearchFunc(list, s.version+1, func(g gone, version int64) int { return cmp.Compare(g.version, version) })
			if i == len(list) {
				continue
			}
			later = true
			// One process makes its Deletes one after the other, so that is the first.
			stale := time.Duration(s.began - list[i].at)
			if stale <= 0 {
				continue
			}
			bound := allowed
			if process == s.process {
				bound = 0
			} else {
				v.longest = max(v.longest, stale)
				stale -= h.stalledBetween(s.process, list[i].at, s.began)
				v.excused = max(v.excused, stale)
			}
			if stale > bound {
				v.wrong = append(v.wrong, fmt.Sprintf("process %d got version %d of key %d, %v after a Delete of it had returned in process %d",
					s.process, s.version, s.key, time.Duration(s.began-list[i].at), process))
			}
		}
		if later {
			v.overtaken++
		}
	}
	return v
}

// stalledBetween returns how much of a time a process or the judge was stalled.
func (h *soakHistory) stalledBetween(process int, from, to int64) (sum time.Duration) {
	var both []stall
	for _, stalls := range [][]stall{h.stalls[process], h.stalls[soakProcesses]} {
		i, _ := slices.BinarySearchFunc(stalls, from, func(s stall, at int64) int { return cmp.Compare(s.to, at) })
		for ; i < len(stalls) && stalls[i].from < to; i++ {
			both = append(both, stalls[i])
		}
	}
	slices.SortFunc(both, func(a, b stall) int { return cmp.Compare(a.from, b.from) })
	for _, s := range both {
		begin, end := max(s.from, from), min(s.to, to)
		if end > begin {
			sum += time.Duration(end - begin)
			from = end // what two of them share counts once
		}
	}
	return sum
}

// The judge of the soak finds stale reads, and no others.
func TestSoakIsJudged(t *testing.T) {
	const ms = int64(time.Millisecond)
	deletes := []gone{
		{key: 1, version: 5, at: 1000 * ms, process: 0},
		{key: 1, version: 7, at: 2000 * ms, process: 0},
		{key: 2, version: 9, at: 1000 * ms, process: 0},
	}
	for name, test := range map[string]struct {
		seen  seen
		stall [2]stall // of the reader's process, of the judge
		wrong bool
	}{
		"the new version, elsewhere":              {seen: seen{1, 7, 9000 * ms, 1}},
		"the new version, here":                   {seen: seen{1, 7, 9000 * ms, 0}},
		"the old one before the Delete":           {seen: seen{1, 4, 999 * ms, 0}},
		"the old one soon after, elsewhere":       {seen: seen{1, 4, 1050 * ms, 1}},
		"the old one later, elsewhere":            {seen: seen{1, 4, 1051 * ms, 1}, wrong: true},
		"the old one at once, here":               {seen: seen{1, 4, 1000*ms + 1, 0}, wrong: true},
		"one that was replaced twice":             {seen: seen{1, 4, 2010 * ms, 1}, wrong: true},
		"one that was replaced a moment ago":      {seen: seen{1, 6, 2010 * ms, 1}},
		"another key's old version":               {seen: seen{2, 8, 1051 * ms, 1}, wrong: true},
		"later, after a stall of its process":     {seen: seen{1, 4, 1100 * ms, 1}, stall: [2]stall{{900 * ms, 1060 * ms}}},
		"later, after too short a stall":          {seen: seen{1, 4, 1100 * ms, 1}, stall: [2]stall{{900 * ms, 1040 * ms}}, wrong: true},
		"later, after a stall of the judge":       {seen: seen{1, 4, 1100 * ms, 1}, stall: [2]stall{{}, {1010 * ms, 1300 * ms}}},
		"later, and a stall of both counts once":  {seen: seen{1, 4, 1100 * ms, 1}, stall: [2]stall{{1000 * ms, 1030 * ms}, {1000 * ms, 1030 * ms}}, wrong: true},
		"later, and the stall was before":         {seen: seen{1, 4, 1100 * ms, 1}, stall: [2]stall{{500 * ms, 1000 * ms}}, wrong: true},
		"at once, here, and a stall is no excuse": {seen: seen{1, 4, 1010 * ms, 0}, stall: [2]stall{{1000 * ms, 1010 * ms}}, wrong: true},
	} {
		h := soakHistory{seen: []seen{test.seen}, gone: deletes}
		if test.stall[0] != (stall{}) {
			h.stalls[test.seen.process] = test.stall[:1]
		}
		if test.stall[1] != (stall{}) {
			h.stalls[soakProcesses] = test.stall[1:]
		}
		if v := h.judge(travel); len(v.wrong) > 0 != test.wrong {
			t.Errorf("%s: judged as %v", name, v.wrong)
		}
	}
}
