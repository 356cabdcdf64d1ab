package history

import (
	"slices"
	"strings"
)

// A Trial is something that a profile is there for, and that went well. A run without
// enough of each says nothing.
type Trial string

// The trials of a cluster of which one node hangs: calls for keys of the other nodes.
const (
	GetBeside    Trial = "Gets beside a node that hangs"
	FetchBeside  Trial = "fetches beside a node that hangs"
	DeleteBeside Trial = "Deletes and Updates beside a node that hangs"
	LockBeside   Trial = "Acquires and Releases beside a node that hangs"
)

// The trials of a full Redis.
const (
	LockKept   Trial = "locks held for a lease of a full Redis and released"
	LeaseKept  Trial = "leases of fetches held for a lease of a full Redis"
	LockPassed Trial = "locks passed to another process in a full Redis"
	FullGet    Trial = "Gets in a full Redis"
	FullDelete Trial = "Deletes and Updates in a full Redis"
)

var besides = map[Op]Trial{
	Got: GetBeside, Created: GetBeside, Fetching: FetchBeside, Updated: DeleteBeside, Deleted: DeleteBeside,
	Locked: LockBeside, Unlocked: LockBeside,
}

// isBeside reports whether a call ran while a node hung that its key is not on, and
// nothing else excuses it.
func (j *jury) isBeside(e Event) bool {
	return slices.ContainsFunc(j.hits.all, func(hit Event) bool {
		return hit.Fault == NodeHang && hit.Began <= e.At && hit.At >= e.Began && !j.hits.concerns(hit, e.Key)
	}) && !j.explained(e)
}

// judgeBeside judges calls for keys of nodes that are well while another node hangs.
// [jury.judgeCall] judges their errors.
func (j *jury) judgeBeside(e Event) {
	trial, ok := besides[e.Op]
	if !ok || e.Err != "" || !j.isBeside(e) {
		return
	}
	j.tried[trial]++
	switch e.Op {
	case Got:
		if slices.ContainsFunc(j.fetches[e.Key], func(s *span) bool { return s.At <= e.At && s.end >= e.Began }) {
			return // it may have waited for that fetch
		}
	case Deleted, Unlocked:
	default:
		return
	}
	if e.At.Sub(e.Began) > j.RedisTimeout+j.Grace {
		j.blame(I14, e)
	}
}

// judgeCuts judges the leases that the fetches of one key have lost.
func (j *jury) judgeCuts(all []*span) {
	for _, s := range all {
		if s.Fence == 0 || !s.cut {
			continue
		}
		over := min(s.At.Add(j.FetchTimeout-notice), s.Began.Add(j.Deadline-notice)) // of the fetch, or of all its callers
		j.blameUnless(s.end >= over || j.invalidated(s.Key, j.granted(s), s.end) ||
			j.hits.felt(s.Process, s.Key, paused|cut|lost, s.Began, s.end), I13, s.Event)
	}
}

// inFull returns the full Redis in which a call ran from its beginning to its end.
func (j *jury) inFull(e Event) bool {
	return slices.ContainsFunc(j.hits.all, func(hit Event) bool {
		return hit.Fault == Full && hit.Began <= e.Began && hit.At >= e.At
	})
}

// tryFull counts the calls that a full Redis did not disturb.
func (j *jury) tryFull(e Event) {
	switch {
	case e.Err != "" || !j.inFull(e):
	case e.Op == Got:
		j.tried[FullGet]++
	case e.Op == Deleted || e.Op == Updated:
		j.tried[FullDelete]++
	}
}

// tryKept counts what was held when Redis became full, and was not lost.
func (j *jury) tryKept() {
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
