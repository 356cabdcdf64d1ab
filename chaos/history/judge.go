package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What can be wrong in a history of faults. The names are those of the
// invariants that docs/internals/soak.md lists.
const (
	I0  Kind = "I0: an error, and no fault that explains it"
	I1  Kind = "I1: a stale read after a confirmed invalidation"
	I2  Kind = "I2: two holders at once"
	I3  Kind = "I3: fetched twice in one generation"
	I4  Kind = "I4: a caller past its deadline"
	I5  Kind = "I5: a call that never returned"
	I6  Kind = "I6: a goroutine left"
	I7  Kind = "I7: a fence that does not rise"
	I8  Kind = "I8: a row twice, or a write lost"
	I9  Kind = "I9: a lease left behind"
	I10 Kind = "I10: a wrong value"
	I11 Kind = "I11: a secret told"
	I12 Kind = "I12: a name in Redis that does not end by itself"
	I13 Kind = "I13: the lease of a fetch lost, and no fault that explains it"
	I14 Kind = "I14: a call that waited for a node that its key is not on"
)

// Invariants has them all, in order.
var Invariants = []Kind{I0, I1, I2, I3, I4, I5, I6, I7, I8, I9, I10, I11, I12, I13, I14}

// Rules are what was promised to those who made a history.
type Rules struct {
	Lease        time.Duration
	FetchTimeout time.Duration
	Deadline     time.Duration // of a Get, a Delete and an Acquire
	Grace        time.Duration // so much later it may return
	Recovery     time.Duration // so long a fault is felt when it is over
	RedisTimeout time.Duration // of one operation in Redis
	Nodes        int           // masters that share the slots evenly and keep them; 0 if slots move or there is one server
}

// notice is how long a context that has ended takes to be noticed.
const notice = 50 * time.Millisecond

// lag is how far a replica may be behind its master.
const lag = time.Second

// A Verdict is what a history comes to.
type Verdict struct {
	Found   []Violation
	Excused map[Kind]int // by a fault: they would have been violations
	Tried   map[Trial]int
}

// Judge judges a history in which there were faults, and demands what can be
// demanded all the same. Its rules, beside those of Check for stale reads:
//
//   - I2: of two fetches of one key, or holders of one lock, the one with the lower
//     fence has ended, or knows that its lease has, before the other begins. Nothing
//     else is excused than that the older one's own process was stopped, that Redis
//     lost the lease, and, for a fetch, that the key was invalidated. A process
//     that is cut off is no excuse: it has a clock. And who can reach Redis does not
//     fetch without a lease.
//   - I3: what a build has fetched is not fetched again by that build until the key is
//     invalidated, unless it could not be stored.
//   - I4, I7, I8: a caller returns by its deadline if its process runs; fences rise
//     and one-time rows exist once, whatever happens.
//   - I0: nothing returns an error unless a fault explains it: one of its own process,
//     of Redis, of the source, or of whoever it waited for. A node that hangs explains
//     only errors for its own keys. A full Redis explains only that an Acquire fails
//     with OOM.
//   - I13: the context of a fetch under a lease ends only when the key is invalidated,
//     the time is over, or a fault took the lease. A full Redis is no such fault.
//   - I14: while one node hangs, a hit, a Delete and a Release of a key on another node
//     take no longer than RedisTimeout.
func Judge(events []Event, r Rules) Verdict {
	events = slices.SortedStableFunc(slices.Values(events), byTime)
	j := newJury(r)
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

type jury struct {
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

func newJury(r Rules) *jury {
	return &jury{
		Rules: r, hits: hits{after: r.Recovery, nodes: r.Nodes, died: make(map[string]Time)},
		excused: make(map[Kind]int), tried: make(map[Trial]int),
	}
}

// A span is a fetch, a lock that was held, or an invalidation.
type span struct {
	Event      // that began it
	end   Time // of the work, or of the right to it
	err   string
	cut   bool // its context ended before its work did
	died  bool // its process did
}

func (j *jury) blame(kind Kind, e Event, why ...Event) {
	v := Violation{Kind: kind, Event: e}
	if len(why) > 0 {
		v.Why = why[0]
	}
	j.found = append(j.found, v)
}

// blameUnless blames, or counts what is excused.
func (j *jury) blameUnless(excuse bool, kind Kind, e Event, why ...Event) {
	if excuse {
		j.excused[kind]++
		return
	}
	j.blame(kind, e, why...)
}

// read finds the spans.
func (j *jury) read(events []Event) {
	j.fetches, j.locks, j.invalidations = make(map[string][]*span), make(map[string][]*span), make(map[string][]*span)
	for _, e := range events {
		j.end = max(j.end, e.At)
		switch e.Op {
		case Hit:
			j.hits.all = append(j.hits.all, e)
		case Died:
			j.hits.died[e.Process] = e.At
		}
	}
	// A process is found dead some time after it died. It was alive when it last
	// wrote something down, and held nothing for certain after that.
	last := make(map[string]Time)
	for _, e := range events {
		if died, dead := j.hits.died[e.Process]; dead && e.At < died && e.Op != Hit {
			last[e.Process] = e.At
		}
	}
	open := make(map[string]*span)
	begin := func(in map[string][]*span, id string, e Event) {
		s := &span{Event: e, end: j.end}
		if died, dead := j.hits.died[e.Process]; dead {
			s.end, s.died = last[e.Process], true
			if e.Op == Invalidating {
				s.end = died
			}
		}
		in[e.Key] = append(in[e.Key], s)
		open[id] = s
	}
	finish := func(id string, e Event, end Time) {
		s := open[id]
		if s == nil {
			j.blame(Muddled, e)
			return
		}
		delete(open, id)
		s.end, s.err, s.died = end, e.Err, false
		if e.Cut > 0 {
			s.cut, s.end = true, min(s.end, e.Cut)
		}
	}
	for _, e := range events {
		run := fmt.Sprint(e.Process, e.Key, e.Writer)
		switch e.Op {
		case Fetching:
			begin(j.fetches, run, e)
		case Fetched:
			finish(run, e, e.At)
		case Locked:
			begin(j.locks, run, e)
		case Unlocked:
			finish(run, e, e.Began)
		case Invalidating:
			begin(j.invalidations, run, e)
		case Updated, Deleted:
			finish(run, e, e.At)
		}
	}
	for _, all := range j.invalidations {
		for _, s := range all {
			if s.err != "" || s.died || j.hits.felt(s.Process, s.Key, paused|cut, s.At, s.end) {
				// Its mark may be left, and its requests may still be on their way.
				s.end = s.end.Add(j.Lease + 2*time.Second)
			}
		}
	}
}

// invalidated reports whether a key was, at any time from a to b.
func (j *jury) invalidated(key string, a, b Time) bool {
	return slices.ContainsFunc(j.invalidations[key], func(s *span) bool { return s.At <= b && s.end >= a })
}

// granted returns a moment before a lease was granted, and, unless something
// delayed the news, not long before.
func (j *jury) granted(s *span) Time {
	if j.hits.felt(s.Process, s.Key, paused|cut, s.Began, s.At) {
		return s.Began
	}
	return max(s.Began, s.At.Add(-notice))
}

// judgeReads finds stale reads, and values from nowhere.
func (j *jury) judgeReads(events []Event) {
	updates := make(map[string]Time) // by writer, when it began
	for _, e := range events {
		if e.Op == Invalidating {
			updates[e.Writer] = e.At
		}
	}
	void := func(p promise) bool {
		var excuse bool
		if p.why.Op == Died {
			// The mark was there, and renewed, unless something kept its writer from Redis.
			began := updates[p.writer]
			excuse = j.hits.feltAtOnce(p.why.Process, paused|cut, began, p.why.At) || j.hits.feltAtOnce("", lost, began, p.from)
		} else {
			excuse = j.hits.forgot(p.why.Began, p.from)
		}
		if excuse {
			j.excused[I1]++
		}
		return excuse
	}
	for _, v := range check(events, judge{lease: j.Lease, void: void}) {
		switch v.Kind {
		case Stale:
			if j.hits.felt("", "", older, v.Began, v.At) { // it may have asked the old master
				j.excused[I1]++
				continue
			}
			v.Kind = I1
		case Unborn:
			v.Kind = I10
		}
		j.found = append(j.found, v)
	}
}

// judgeCall judges what a caller got, and when.
func (j *jury) judgeCall(e Event) {
	switch e.Op {
	case Got, Deleted, Created, Refused, Locked:
		if e.At.Sub(e.Began) > j.Deadline+j.Grace {
			j.blameUnless(j.hits.feltAtOnce(e.Process, paused, e.Began, e.At), I4, e)
		}
	}
	switch e.Op {
	case Got, Updated, Deleted, Created, Refused, Unlocked:
		switch {
		case e.Err == "":
		case strings.HasPrefix(e.Err, WrongValue):
			j.blame(I10, e)
		default:
			j.blameUnless(j.explained(e), I0, e)
		}
	}
}

// WrongValue begins the Err of a Got whose value is another key's.
const WrongValue = "wrong value"

// Injected is in the text of the errors that a fetch fails with on purpose.
const Injected = "injected"

// explained reports whether some fault explains an error.
func (j *jury) explained(e Event) bool {
	if strings.Contains(e.Err, Injected) || strings.Contains(e.Err, "oexit") {
		return true
	}
	from := e.Began
	if e.Op == Unlocked {
		from = from.Add(-j.Deadline) // the lease may have been lost long before
	}
	if j.hits.felt(e.Process, e.Key, paused|cut|lost|late, from, e.At) {
		return true
	}
	if e.Op == Refused && strings.Contains(e.Err, "OOM") && j.hits.felt(e.Process, e.Key, full, e.Began, e.At) {
		return true
	}
	// Whoever it waited for.
	for _, spans := range [][]*span{j.fetches[e.Key], j.locks[e.Key]} {
		for _, s := range spans {
			hung := s.end.Sub(s.At) >= j.FetchTimeout-notice
			if s.At <= e.At && s.end.Add(j.Lease) >= e.Began && (hung || s.died || j.hits.felt(s.Process, e.Key, paused|cut, s.At, s.end)) {
				return true
			}
		}
	}
	return false
}

func byFence(a, b *span) int { return cmp.Compare(a.Fence, b.Fence) }

// judgeFetches judges the fetches of one key.
func (j *jury) judgeFetches(key string, all []*span) {
	var leased []*span
	for _, s := range all {
		if s.Fence > 0 {
			leased = append(leased, s)
			continue
		}
		j.blameUnless(j.hits.felt(s.Process, key, paused|cut|full, s.Began, s.At), I2, s.Event)
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
		j.blameUnless(dead && died <= stored ||
			j.hits.felt("", key, lost, a.At, b.At) || j.hits.felt(a.Process, key, paused|cut|full, a.At, stored), I3, b.Event, a.Event)
	}
}

// judgeHolders looks for two at once.
func (j *jury) judgeHolders(key string, all []*span) {
	slices.SortStableFunc(all, byFence)
	for i, a := range all {
		for _, b := range all[i+1:] {
			if b.At > a.end.Add(j.Deadline) {
				break // fences come in the order of time, more or less
			}
			overlap := max(a.At, b.At)
			if overlap >= min(a.end, b.end) || a.cut && overlap >= a.end.Add(-notice) || overlap >= a.At.Add(j.FetchTimeout-notice) && a.Op == Fetching ||
				j.invalidated(key, j.granted(a), b.At) {
				continue
			}
			j.blameUnless(j.hits.feltAtOnce(a.Process, paused, j.granted(a), overlap) || j.hits.felt("", key, lost, j.granted(a), overlap), I2, b.Event, a.Event)
		}
	}
}

// judgeFences demands that who asked after another had a lease has a higher
// fence, and that no two have the same.
func (j *jury) judgeFences(all []*span) {
	asked := slices.SortedStableFunc(slices.Values(all), func(a, b *span) int { return cmp.Compare(a.Began, b.Began) })
	given := slices.SortedStableFunc(slices.Values(all), func(a, b *span) int { return cmp.Compare(a.At, b.At) })
	seen := make(map[int64]Event)
	var highest *span
	n := 0
	for _, s := range asked {
		for ; n < len(given) && given[n].At < s.Began; n++ {
			if highest == nil || given[n].Fence > highest.Fence {
				highest = given[n]
			}
		}
		if highest != nil && s.Fence <= highest.Fence {
			j.blame(I7, s.Event, highest.Event)
		} else if other, twice := seen[s.Fence]; twice {
			j.blame(I7, s.Event, other)
		}
		seen[s.Fence] = s.Event
	}
}

// judgeEnds judges what is left in the end.
func (j *jury) judgeEnds(events []Event) {
	created := make(map[string]Event)
	begun, ended := make(map[string]Event), make(map[string]bool)
	for _, e := range events {
		switch e.Op {
		case Got, Fetching, Locked, Created:
			begun[e.Process] = e
		case Ended:
			ended[e.Process] = true
			if e.Calls > 0 {
				j.blame(I5, e)
			}
			if e.Count > 0 {
				j.blame(I6, e)
			}
		case Counted:
			if int(e.Version) != e.Count {
				j.blame(I8, e)
			}
		case Held:
			j.blame(I9, e)
		case Told:
			j.blame(I11, e)
		case Endless:
			j.blame(I12, e)
		}
		if e.Op == Created && e.Err == "" {
			if first, ok := created[e.Key]; !ok {
				created[e.Key] = e
			} else if first.Value != e.Value {
				j.blame(I8, e, first)
			}
		}
	}
	for process, e := range begun {
		if _, died := j.hits.died[process]; !died && !ended[process] {
			j.blame(I5, e) // it hangs
		}
	}
}
