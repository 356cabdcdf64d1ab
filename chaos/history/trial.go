package history

import (
	"slices"
	"strings"
)

// A Trial is a kind of call that a profile is meant to test and that succeeded. A run with too few of
// each proves nothing.
type Trial string

// The trials of a cluster with a hung node: calls for keys of the other nodes.
const (
	GetBeside    Trial = "Gets beside a hung node"
	FetchBeside  Trial = "fetches beside a hung node"
	DeleteBeside Trial = "Deletes and Updates beside a hung node"
	LockBeside   Trial = "Acquires and Releases beside a hung node"
)

// The trials of a full Redis.
const (
	LockKept   Trial = "locks held for a lease of a full Redis and released"
	LeaseKept  Trial = "leases of fetches held for a lease of a full Redis"
	LockPassed Trial = "hand-offs to another process in a full Redis"
	FullGet    Trial = "Gets in a full Redis"
	FullDelete Trial = "Deletes and Updates in a full Redis"
)

var besides = map[Op]Trial{
	Got: GetBeside, Created: GetBeside, Fetching: FetchBeside, Updated: DeleteBeside, Deleted: DeleteBeside,
	Locked: LockBeside, Unlocked: LockBeside,
}

// isBeside reports whether another node than the key's hung during a call, and no fault explains an
// error of the call.
func (j *judgment) isBeside(e Event) bool {
	return slices.ContainsFunc(j.hits.all, func(hit Event) bool {
		return hit.Fault == NodeHang && hit.Began <= e.At && hit.At >= e.Began && !j.hits.concerns(hit, e.Key)
	}) && !j.explained(e)
}

// judgeBeside judges the durations of calls for keys of healthy nodes while another node hangs.
// [judgment.judgeCall] judges their errors.
func (j *judgment) judgeBeside(e Event) {
	trial, ok := besides[e.Op]
	if !ok || e.Err != "" || !j.isBeside(e) {
		return
	}
	j.tried[trial]++
	switch e.Op {
	case Got:
		if slices.ContainsFunc(j.fetches[e.Key], func(s *span) bool { return s.At <= e.At && s.end >= e.Began }) {
			return // the Get may have waited for that fetch
		}
	case Deleted, Unlocked:
	default:
		return
	}
	if e.At.Sub(e.Began) > j.RedisTimeout+j.Grace {
		j.report(I14, e)
	}
}

// judgeCuts judges the fetches of one key whose leases were lost.
func (j *judgment) judgeCuts(all []*span) {
	for _, s := range all {
		if s.Fence == 0 || !s.cut {
			continue
		}
		over := min(s.At.Add(j.FetchTimeout-notice), s.Began.Add(j.Deadline-notice)) // the time of the fetch, or of all its callers
		j.reportUnless(s.end >= over || j.invalidated(s.Key, j.granted(s), s.end) ||
			j.hits.affected(s.Process, s.Key, paused|cut|lost, s.Began, s.end), I13, s.Event)
	}
}

// inFull reports whether Redis was full during all of a call.
func (j *judgment) inFull(e Event) bool {
	return slices.ContainsFunc(j.hits.all, func(hit Event) bool {
		return hit.Fault == Full && hit.Began <= e.Began && hit.At >= e.At
	})
}

// tryFull counts the calls that succeeded in a full Redis.
func (j *judgment) tryFull(e Event) {
	switch {
	case e.Err != "" || !j.inFull(e):
	case e.Op == Got:
		j.tried[FullGet]++
	case e.Op == Deleted || e.Op == Updated:
		j.tried[FullDelete]++
	}
}

// tryKept counts the locks and leases that were held when Redis became full and were not lost.
func (j *judgment) tryKept() {
	for _, hit := range j.hits.all {
		if hit.Fault != Full {
			continue
		}
		kept := func(s *span) bool {
			return s.At <= hit.Began && s.end >= hit.Began.Add(j.Lease) && s.end <= hit.At && !s.cut && !strings.Contains(s.err, "lost")
		}
		for _, all := range j.fetches {
			for _, s := range all {
				if s.Fence > 0 && kept(s) {
					j.tried[LeaseKept]++
				}
			}
		}
		for _, all := range j.locks { // in the order of their fences
			for i, s := range all {
				if kept(s) && s.err == "" {
					j.tried[LockKept]++
				}
				if i > 0 && s.At >= hit.Began && s.At <= hit.At && s.err == "" && all[i-1].Process != s.Process {
					j.tried[LockPassed]++
				}
			}
		}
	}
}
