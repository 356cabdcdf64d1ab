package systemtest_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"
)

// maxStale is how long after a Delete in another process a near entry may still be served, on a
// machine without stalls.
const maxStale = 50 * time.Millisecond

// A soakHistory is what all processes of a soak have recorded. Times are in ns of the machine's
// clock, which the processes share.
type soakHistory struct {
	reads   []read
	deletes []deletion
	stalls  [soakProcesses + 1][]stall // by process; the last is the judge's own

	gets, near int64
}

type (
	// A read is a Get that began at a time and returned a version.
	read struct {
		key, version, began int64
		process             int
	}

	// A deletion is a Delete that returned at a time, after the source was changed to a
	// version. Later Gets must not return an older one.
	deletion struct {
		key, version, at int64
		process          int
	}

	// A stall is a time in which a process did not run.
	stall struct{ from, to int64 }
)

func (h *soakHistory) add(w *soakWorker) {
	h.reads = append(h.reads, w.reads...)
	h.deletes = append(h.deletes, w.deletes...)
	h.stalls[w.number] = w.stalls
	h.gets += w.gets
	h.near += w.near
}

// A soakVerdict is the result of judging a history.
type soakVerdict struct {
	wrong    []string
	replaced int           // reads whose version was replaced later
	longest  time.Duration // the longest time after a Delete in another process that an older version was read
	net      time.Duration // the same, without the stalls
	stalled  time.Duration // of the judge
}

// judge compares each read with the first Delete, in each process, of a later version. The read
// may have begun after a Delete in another process by allowed, without the time in which its own
// process or the judge was stalled.
func (h *soakHistory) judge(allowed time.Duration) soakVerdict {
	var v soakVerdict
	for _, s := range h.stalls[soakProcesses] {
		v.stalled += time.Duration(s.to - s.from)
	}
	type place struct {
		key     int64
		process int
	}
	deletes := make(map[place][]deletion)
	for _, d := range h.deletes {
		p := place{d.key, d.process}
		deletes[p] = append(deletes[p], d)
	}
	for _, list := range deletes {
		slices.SortFunc(list, func(a, b deletion) int { return cmp.Compare(a.version, b.version) })
	}
	for _, read := range h.reads {
		replaced := false
		for process := range soakProcesses {
			list := deletes[place{read.key, process}]
			i, _ := slices.BinarySearchFunc(list, read.version+1, func(d deletion, version int64) int { return cmp.Compare(d.version, version) })
			if i == len(list) {
				continue
			}
			replaced = true
			// A process makes its Deletes one after the other, so this is the first.
			stale := time.Duration(read.began - list[i].at)
			if stale <= 0 {
				continue
			}
			bound := allowed
			if process == read.process {
				bound = 0
			} else {
				v.longest = max(v.longest, stale)
				stale -= h.stalledBetween(read.process, list[i].at, read.began)
				v.net = max(v.net, stale)
			}
			if stale > bound {
				v.wrong = append(v.wrong, fmt.Sprintf("process %d got version %d of key %d, %v after a Delete of it had returned in process %d",
					read.process, read.version, read.key, time.Duration(read.began-list[i].at), process))
			}
		}
		if replaced {
			v.replaced++
		}
	}
	return v
}

// stalledBetween returns for how long a process or the judge was stalled between two times.
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
			from = end // overlapping stalls count once
		}
	}
	return sum
}

// The judge finds stale reads, and no others.
func TestSoakJudgeFindsStaleReads(t *testing.T) {
	const ms = int64(time.Millisecond)
	deletes := []deletion{
		{key: 1, version: 5, at: 1000 * ms, process: 0},
		{key: 1, version: 7, at: 2000 * ms, process: 0},
		{key: 2, version: 9, at: 1000 * ms, process: 0},
	}
	for name, test := range map[string]struct {
		read  read
		stall [2]stall // of the reader's process, of the judge
		wrong bool
	}{
		"the new version, another process":          {read: read{1, 7, 9000 * ms, 1}},
		"the new version, same process":             {read: read{1, 7, 9000 * ms, 0}},
		"the old one before the Delete":             {read: read{1, 4, 999 * ms, 0}},
		"the old one in time, another process":      {read: read{1, 4, 1050 * ms, 1}},
		"the old one too late, another process":     {read: read{1, 4, 1051 * ms, 1}, wrong: true},
		"the old one at once, same process":         {read: read{1, 4, 1000*ms + 1, 0}, wrong: true},
		"one that was replaced twice":               {read: read{1, 4, 2010 * ms, 1}, wrong: true},
		"one that was replaced just now":            {read: read{1, 6, 2010 * ms, 1}},
		"another key's old version":                 {read: read{2, 8, 1051 * ms, 1}, wrong: true},
		"too late, after a stall of its process":    {read: read{1, 4, 1100 * ms, 1}, stall: [2]stall{{900 * ms, 1060 * ms}}},
		"too late, after too short a stall":         {read: read{1, 4, 1100 * ms, 1}, stall: [2]stall{{900 * ms, 1040 * ms}}, wrong: true},
		"too late, after a stall of the judge":      {read: read{1, 4, 1100 * ms, 1}, stall: [2]stall{{}, {1010 * ms, 1300 * ms}}},
		"too late, and a stall of both counts once": {read: read{1, 4, 1100 * ms, 1}, stall: [2]stall{{1000 * ms, 1030 * ms}, {1000 * ms, 1030 * ms}}, wrong: true},
		"too late, and the stall was before":        {read: read{1, 4, 1100 * ms, 1}, stall: [2]stall{{500 * ms, 1000 * ms}}, wrong: true},
		"at once, same process, with a stall":       {read: read{1, 4, 1010 * ms, 0}, stall: [2]stall{{1000 * ms, 1010 * ms}}, wrong: true},
	} {
		h := soakHistory{reads: []read{test.read}, deletes: deletes}
		if test.stall[0] != (stall{}) {
			h.stalls[test.read.process] = test.stall[:1]
		}
		if test.stall[1] != (stall{}) {
			h.stalls[soakProcesses] = test.stall[1:]
		}
		if v := h.judge(maxStale); len(v.wrong) > 0 != test.wrong {
			t.Errorf("%s: judged as %v", name, v.wrong)
		}
	}
}
