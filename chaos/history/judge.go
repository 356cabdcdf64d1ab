package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The invariants of a history with faults. docs/internals/soak.md lists them.
const (
	I0  Kind = "I0: an error that no fault explains"
	I1  Kind = "I1: a stale read after a confirmed invalidation"
	I2  Kind = "I2: two holders at once"
	I3  Kind = "I3: a second fetch of a stored value"
	I4  Kind = "I4: a caller past its deadline"
	I5  Kind = "I5: a call that never returned"
	I6  Kind = "I6: a leaked goroutine"
	I7  Kind = "I7: a fence that does not rise"
	I8  Kind = "I8: a row twice, or a lost write"
	I9  Kind = "I9: a leaked lease"
	I10 Kind = "I10: a wrong value"
	I11 Kind = "I11: a secret in a log"
	I12 Kind = "I12: a key in Redis without a TTL"
	I13 Kind = "I13: a lost lease of a fetch that no fault explains"
	I14 Kind = "I14: a call that waited for a node that its key is not on"
)

// Invariants lists all invariants in order.
var Invariants = []Kind{I0, I1, I2, I3, I4, I5, I6, I7, I8, I9, I10, I11, I12, I13, I14}

// Rules are the limits that a history must keep.
type Rules struct {
	Lease        time.Duration
	FetchTimeout time.Duration
	Deadline     time.Duration // of a Get, a Delete and an Acquire
	Grace        time.Duration // how much later it may return
	Recovery     time.Duration // how long a fault has effects after its end
	RedisTimeout time.Duration // of one operation in Redis
	Nodes        int           // masters that share the slots evenly and keep them; 0 if slots move or there is one server
}

// notice is how long a process may take to notice that a context has ended.
const notice = 50 * time.Millisecond

// lag is how far a replica may be behind its master.
const lag = time.Second

// A Verdict is the result of judging a history.
type Verdict struct {
	Found   []Violation
	Excused map[Kind]int // violations that a fault excuses
	Tried   map[Trial]int
}

// Judge judges a history with faults. Besides the rules of Check for stale reads, it has these:
//
//   - I2: of two fetches of a key, or two holders of a lock, the one with the lower fence has ended,
//     or its context has, before the other begins. Three things excuse a violation: the older one's
//     process was stopped, Redis lost the lease, or, for a fetch, the key was invalidated. A process
//     that is cut off from Redis is not excused: it has a clock. A process that reaches Redis does
//     not fetch without a lease.
//   - I3: a build does not fetch a key again until the key is invalidated, unless the value could not
//     be stored.
//   - I4: a caller returns by its deadline if its process runs.
//   - I7, I8: fences rise and one-time rows exist once, whatever happens.
//   - I0: no call returns an error that no fault explains. The fault may be of its own process, of
//     Redis, of the source, or of a process that it waited for. A hung node explains only errors for
//     its own keys. A full Redis explains only an Acquire that fails with OOM.
//   - I13: the context of a fetch under a lease ends only when the key is invalidated, its time is
//     over, or a fault took the lease. A full Redis is no such fault.
//   - I14: while one node hangs, a hit, a Delete and a Release of a key on another node take no longer
//     than RedisTimeout.
func Judge(events []Event, r Rules) Verdict {
	events = slices.SortedStableFunc(slices.Values(events), byTime)
	j := newJudgment(r)
	j.read(events)
	j.judgeReads(events)
	for _, e := range events {
		j.judgeCall(e)
		j.judgeBeside(e)
		j.tryFull(e)
	}
	for key, runs := range j.fetches {
		j.judgeFetches(key, runs)
		j.judgeCuts(runs)
	}
	for key, runs := range j.locks {
		j.judgeHolders(key, runs)
		j.judgeFences(runs)
	}
	j.tryKept()
	j.judgeEnds(events)
	slices.SortStableFunc(j.found, func(a, b Violation) int { return byTime(a.Event, b.Event) })
	return Verdict{j.found, j.excused, j.tried}
}

// A judgment is the state of judging one history.
type judgment struct {
	Rules
	hits          hits
	fetches       map[string][]*span // by key
	locks         map[string][]*span // by name
	invalidations map[string][]*span // by key
	end           Time
	found         []Violation
	excused       map[Kind]int
	tried         map[Trial]int
}

func newJudgment(r Rules) *judgment {
	return &judgment{
		fetches: make(map[string][]*span), locks: make(map[string][]*span), invalidations: make(map[string][]*span),
		Rules: r, hits: hits{after: r.Recovery, nodes: r.Nodes, died: make(map[string]Time)},
		excused: make(map[Kind]int), tried: make(map[Trial]int),
	}
}

// A span is a fetch, a lock that was held, or an invalidation.
type span struct {
	Event      // its begin
	end   Time // of the work, or of the right to it
	err   string
	cut   bool // its context ended before its work did
	died  bool // its process died before it ended
}

func (j *judgment) report(kind Kind, e Event, why ...Event) {
	v := Violation{Kind: kind, Event: e}
	if len(why) > 0 {
		v.Why = why[0]
	}
	j.found = append(j.found, v)
}

// reportUnless reports a violation, or counts it as excused.
func (j *judgment) reportUnless(excuse bool, kind Kind, e Event, why ...Event) {
	if excuse {
		j.excused[kind]++
		return
	}
	j.report(kind, e, why...)
}

// read finds the faults and the spans.
func (j *judgment) read(events []Event) {
	for _, e := range events {
		j.end = max(j.end, e.At)
		switch e.Op {
		case Hit:
			j.hits.all = append(j.hits.all, e)
		case Died:
			j.hits.died[e.Process] = e.At
		}
	}
	r := spanReader{judgment: j, lastSign: j.lastSigns(events), open: make(map[string]*span)}
	for _, e := range events {
		r.add(e)
	}
	for _, all := range j.invalidations {
		for _, s := range all {
			if s.err != "" || s.died || j.hits.affected(s.Process, s.Key, paused|cut, s.At, s.end) {
				// Its mark may be left, and its requests may still arrive.
				s.end = s.end.Add(j.Lease + 2*time.Second)
			}
		}
	}
}

// lastSigns returns the last event of each process that died. The death is recorded some time after
// it. The process may have held its leases until its last event, and not certainly longer.
func (j *judgment) lastSigns(events []Event) map[string]Time {
	last := make(map[string]Time)
	for _, e := range events {
		if died, dead := j.hits.died[e.Process]; dead && e.At < died && e.Op != Hit {
			last[e.Process] = e.At
		}
	}
	return last
}

// A spanReader makes spans of the events at their beginnings and ends.
type spanReader struct {
	*judgment
	lastSign map[string]Time  // by process that died
	open     map[string]*span // by what ends them
}

// add takes the events in the order of time.
func (r *spanReader) add(e Event) {
	id := fmt.Sprint(e.Process, e.Key, e.Writer)
	switch e.Op {
	case Fetching:
		r.begin(r.fetches, id, e)
	case Fetched:
		r.finish(id, e, e.At)
	case Locked:
		r.begin(r.locks, id, e)
	case Unlocked:
		r.finish(id, e, e.Began)
	case Invalidating:
		r.begin(r.invalidations, id, e)
	case Updated, Deleted:
		r.finish(id, e, e.At)
	}
}

func (r *spanReader) begin(in map[string][]*span, id string, e Event) {
	s := &span{Event: e, end: r.end}
	if died, dead := r.hits.died[e.Process]; dead {
		s.end, s.died = r.lastSign[e.Process], true
		if e.Op == Invalidating {
			s.end = died
		}
	}
	in[e.Key] = append(in[e.Key], s)
	r.open[id] = s
}

func (r *spanReader) finish(id string, e Event, end Time) {
	s := r.open[id]
	if s == nil {
		r.report(Inconsistent, e)
		return
	}
	delete(r.open, id)
	s.end, s.err, s.died = end, e.Err, false
	if e.Cut > 0 {
		s.cut, s.end = true, min(s.end, e.Cut)
	}
}

// invalidated reports whether a key was invalidated at any time from a to b.
func (j *judgment) invalidated(key string, a, b Time) bool {
	return slices.ContainsFunc(j.invalidations[key], func(s *span) bool { return s.At <= b && s.end >= a })
}

// granted returns a moment before a lease was granted. It is at most notice earlier, unless a fault
// delayed the reply.
func (j *judgment) granted(s *span) Time {
	if j.hits.affected(s.Process, s.Key, paused|cut, s.Began, s.At) {
		return s.Began
	}
	return max(s.Began, s.At.Add(-notice))
}

// judgeReads finds stale reads and values that were never committed.
func (j *judgment) judgeReads(events []Event) {
	updates := make(map[string]Time) // by writer, when it began
	for _, e := range events {
		if e.Op == Invalidating {
			updates[e.Writer] = e.At
		}
	}
	void := func(p promise) bool {
		var excuse bool
		if p.why.Op == Died {
			// The mark existed and was renewed, unless a fault kept its writer from Redis.
			began := updates[p.writer]
			excuse = j.hits.affectedDuring(p.why.Process, paused|cut, began, p.why.At) || j.hits.affectedDuring("", lost, began, p.from)
		} else {
			excuse = j.hits.mayBeLost(p.why.Began, p.from)
		}
		if excuse {
			j.excused[I1]++
		}
		return excuse
	}
	for _, v := range check(events, judge{lease: j.Lease, void: void}) {
		switch v.Kind {
		case Stale:
			if j.hits.affected("", "", older, v.Began, v.At) { // the Get may have read the old master
				j.excused[I1]++
				continue
			}
			v.Kind = I1
		case Uncommitted:
			v.Kind = I10
		}
		j.found = append(j.found, v)
	}
}

// judgeCall judges the result of a call and its duration.
func (j *judgment) judgeCall(e Event) {
	switch e.Op {
	case Got, Deleted, Created, Refused, Locked:
		if e.At.Sub(e.Began) > j.Deadline+j.Grace {
			j.reportUnless(j.hits.affectedDuring(e.Process, paused, e.Began, e.At), I4, e)
		}
	}
	switch e.Op {
	case Got, Updated, Deleted, Created, Refused, Unlocked:
		switch {
		case e.Err == "":
		case strings.HasPrefix(e.Err, WrongValue):
			j.report(I10, e)
		default:
			j.reportUnless(j.explained(e), I0, e)
		}
	}
}

// WrongValue begins the Err of a Got whose value is another key's.
const WrongValue = "wrong value"

// Injected is part of the text of errors that fetches return on purpose.
const Injected = "injected"

// explained reports whether some fault explains an error.
func (j *judgment) explained(e Event) bool {
	if strings.Contains(e.Err, Injected) || strings.Contains(e.Err, "oexit") {
		return true
	}
	from := e.Began
	if e.Op == Unlocked {
		from = from.Add(-j.Deadline) // the lease may have been lost long before
	}
	if j.hits.affected(e.Process, e.Key, paused|cut|lost|late, from, e.At) {
		return true
	}
	if e.Op == Refused && strings.Contains(e.Err, "OOM") && j.hits.affected(e.Process, e.Key, full, e.Began, e.At) {
		return true
	}
	// A process that it waited for.
	for _, spans := range [][]*span{j.fetches[e.Key], j.locks[e.Key]} {
		for _, s := range spans {
			hung := s.end.Sub(s.At) >= j.FetchTimeout-notice
			if s.At <= e.At && s.end.Add(j.Lease) >= e.Began && (hung || s.died || j.hits.affected(s.Process, e.Key, paused|cut, s.At, s.end)) {
				return true
			}
		}
	}
	return false
}

func byFence(a, b *span) int { return cmp.Compare(a.Fence, b.Fence) }

// judgeFetches judges the fetches of one key.
func (j *judgment) judgeFetches(key string, all []*span) {
	var leased []*span
	for _, s := range all {
		if s.Fence > 0 {
			leased = append(leased, s)
			continue
		}
		j.reportUnless(j.hits.affected(s.Process, key, paused|cut|full, s.Began, s.At), I2, s.Event)
	}
	j.judgeFences(leased)
	j.judgeHolders(key, leased)
	slices.SortStableFunc(leased, byFence)
	last := make(map[int]*span) // by build
	for _, b := range leased {
		a := last[b.Build]
		last[b.Build] = b
		if a == nil || a.err != "" || a.cut || a.died || b.At <= a.end || j.invalidated(key, j.granted(a), b.At) {
			continue
		}
		stored := a.end.Add(j.Recovery)
		died, dead := j.hits.died[a.Process]
		j.reportUnless(dead && died <= stored ||
			j.hits.affected("", key, lost, a.At, b.At) || j.hits.affected(a.Process, key, paused|cut|full, a.At, stored), I3, b.Event, a.Event)
	}
}

// judgeHolders looks for two holders at once.
func (j *judgment) judgeHolders(key string, all []*span) {
	slices.SortStableFunc(all, byFence)
	for i, a := range all {
		for _, b := range all[i+1:] {
			if b.At > a.end.Add(j.Deadline) {
				break // fences are roughly in the order of time
			}
			overlap := max(a.At, b.At)
			if overlap >= min(a.end, b.end) || a.cut && overlap >= a.end.Add(-notice) || overlap >= a.At.Add(j.FetchTimeout-notice) && a.Op == Fetching ||
				j.invalidated(key, j.granted(a), b.At) {
				continue
			}
			j.reportUnless(j.hits.affectedDuring(a.Process, paused, j.granted(a), overlap) || j.hits.affected("", key, lost, j.granted(a), overlap), I2, b.Event, a.Event)
		}
	}
}

// judgeFences checks that a request which began after another lease was granted has a higher fence,
// and that no two leases have the same fence.
func (j *judgment) judgeFences(all []*span) {
	requested := slices.SortedStableFunc(slices.Values(all), func(a, b *span) int { return cmp.Compare(a.Began, b.Began) })
	granted := slices.SortedStableFunc(slices.Values(all), func(a, b *span) int { return cmp.Compare(a.At, b.At) })
	fences := make(map[int64]Event)
	var highest *span
	n := 0
	for _, s := range requested {
		for ; n < len(granted) && granted[n].At < s.Began; n++ {
			if highest == nil || granted[n].Fence > highest.Fence {
				highest = granted[n]
			}
		}
		if highest != nil && s.Fence <= highest.Fence {
			j.report(I7, s.Event, highest.Event)
		} else if other, twice := fences[s.Fence]; twice {
			j.report(I7, s.Event, other)
		}
		fences[s.Fence] = s.Event
	}
}

// judgeEnds judges what is left at the end.
func (j *judgment) judgeEnds(events []Event) {
	created := make(map[string]Event)
	begun, ended := make(map[string]Event), make(map[string]bool)
	for _, e := range events {
		switch e.Op {
		case Got, Fetching, Locked, Created:
			begun[e.Process] = e
		case Ended:
			ended[e.Process] = true
			if e.Calls > 0 {
				j.report(I5, e)
			}
			if e.Count > 0 {
				j.report(I6, e)
			}
		case Counted:
			if int(e.Version) != e.Count {
				j.report(I8, e)
			}
		case Held:
			j.report(I9, e)
		case Leaked:
			j.report(I11, e)
		case Endless:
			j.report(I12, e)
		}
		if e.Op == Created && e.Err == "" {
			if first, ok := created[e.Key]; !ok {
				created[e.Key] = e
			} else if first.Value != e.Value {
				j.report(I8, e, first)
			}
		}
	}
	for process, e := range begun {
		if _, died := j.hits.died[process]; !died && !ended[process] {
			j.report(I5, e) // the process hangs
		}
	}
}
