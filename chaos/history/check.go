package history

import (
	"fmt"
	"slices"
	"time"
)

// Check judges a history of a run without faults of Redis. The events may be in any order. Each key
// has these rules:
//
//   - A Get that began after an Update had returned without an error returns the
//     version which that Update wrote, or a later one.
//   - A Get that began after a Delete had returned without an error returns what
//     was committed when the Delete began, or a later one.
//   - If a process died during an Update, a Get that began more than one lease after the death,
//     and after the commit, returns the version of that Update or a later one.
//   - No Get returns a version before its commit has begun.
//   - No call returns an error.
//
// An Update that has not returned promises nothing. Neither does one that returned an error, nor a
// process that died between a commit and its Delete. A Get that began during a write may return the
// old or the new version.
func Check(events []Event, lease time.Duration) []Violation {
	return check(events, judge{lease: lease, failures: true, void: func(promise) bool { return false }})
}

func check(events []Event, j judge) []Violation {
	j.keys = make(map[string]*key)
	events = slices.SortedStableFunc(slices.Values(events), byTime)
	for _, e := range events {
		j.record(e)
	}
	j.promiseForDead(events)
	for _, k := range j.keys {
		k.order()
	}
	for _, e := range events {
		if e.Op == Got && e.Err == "" {
			j.judge(e)
		}
	}
	slices.SortStableFunc(j.found, func(a, b Violation) int { return byTime(a.Event, b.Event) })
	return j.found
}

type judge struct {
	lease    time.Duration
	failures bool                 // whether an error is a violation
	void     func(p promise) bool // reports whether a fault excuses that the promise is broken

	keys  map[string]*key
	found []Violation
}

// A key is the state of one key.
type key struct {
	begun    map[int64]Time // when the commit of a version began
	commits  []Event        // in the order of time
	promises []promise      // by time and, after order, also by version
}

// A promise says that no Get that begins after a moment returns an older version.
type promise struct {
	from    Time
	version int64
	why     Event
	writer  string // the write that it follows from
}

func (j *judge) key(name string) *key {
	k := j.keys[name]
	if k == nil {
		k = &key{begun: make(map[int64]Time)}
		j.keys[name] = k
	}
	return k
}

func (j *judge) report(kind Kind, e Event) {
	j.found = append(j.found, Violation{Kind: kind, Event: e})
}

// record adds an event to its key. It is called in the order of time.
func (j *judge) record(e Event) {
	if e.Op == Died {
		return // has no key
	}
	k := j.key(e.Key)
	if e.Err != "" {
		if j.failures {
			j.report(Failed, e)
		}
		return
	}
	switch e.Op {
	case Committing:
		if _, ok := k.begun[e.Version]; !ok {
			k.begun[e.Version] = e.At
		}
	case Committed:
		if _, ok := k.begun[e.Version]; !ok {
			j.report(Inconsistent, e)
		}
		k.commits = append(k.commits, e)
	case Updated:
		j.promise(k, promise{e.At, e.Version, e, e.Writer})
	case Deleted:
		j.promise(k, promise{e.At, k.committedBy(e.Began), e, e.Writer})
	case Got, Invalidating, Fetching, Fetched, Locked, Unlocked, Refused, Created, Hit, Phase, Masters, Ended, Counted, Held, Endless, Leaked:
	default:
		j.report(Inconsistent, e)
	}
}

// promiseForDead adds the promises of Updates whose processes died.
func (j *judge) promiseForDead(events []Event) {
	updated := make(map[string]bool) // by writer
	died := make(map[string]Event)   // by process
	for _, e := range events {
		switch e.Op {
		case Updated:
			updated[e.Writer] = true
		case Died:
			died[e.Process] = e
		}
	}
	for _, k := range j.keys {
		for _, c := range k.commits {
			e, dead := died[c.Process]
			if dead && c.Update && !updated[c.Writer] {
				j.promise(k, promise{max(e.At.Add(j.lease), c.At), c.Version, e, c.Writer})
			}
		}
	}
}

func (j *judge) promise(k *key, p promise) {
	if !j.void(p) {
		k.promises = append(k.promises, p)
	}
}

// committedBy returns the newest version that was committed at t.
func (k *key) committedBy(t Time) int64 {
	var newest int64
	for _, c := range k.commits {
		if c.At <= t {
			newest = max(newest, c.Version)
		}
	}
	return newest
}

// order sorts the promises by time and removes those that promise no newer version.
func (k *key) order() {
	slices.SortStableFunc(k.promises, func(a, b promise) int { return int(max(-1, min(1, a.from-b.from))) })
	var rising []promise
	for _, p := range k.promises {
		if len(rising) == 0 || p.version > rising[len(rising)-1].version {
			rising = append(rising, p)
		}
	}
	k.promises = rising
}

// judge checks a Get.
func (j *judge) judge(e Event) {
	k := j.key(e.Key)
	if begun, ok := k.begun[e.Version]; !ok || begun > e.At {
		j.report(Uncommitted, e)
	}
	// The last promise from before the Get began.
	n, _ := slices.BinarySearchFunc(k.promises, e.Began, func(p promise, began Time) int {
		if p.from < began {
			return -1
		}
		return 1
	})
	if n == 0 {
		return
	}
	if p := k.promises[n-1]; e.Version < p.version {
		j.found = append(j.found, Violation{Kind: Stale, Event: e, Want: p.version, Why: p.why})
	}
}

// A Count says how much evidence a history has.
type Count struct {
	Gets, Updates, Deletes int // that returned without an error
	Deaths, Orphans        int // processes that died, and versions that they committed in Updates that did not return
	Late                   int // Gets that began more than one lease after such a death
}

// Sum counts the evidence in a history. An empty history breaks no rule.
func Sum(events []Event, lease time.Duration) Count {
	var c Count
	updated, died := make(map[string]bool), make(map[string]Event)
	for _, e := range events {
		switch {
		case e.Err != "":
		case e.Op == Got:
			c.Gets++
		case e.Op == Updated:
			c.Updates++
			updated[e.Writer] = true
		case e.Op == Deleted:
			c.Deletes++
		case e.Op == Died:
			c.Deaths++
			died[e.Process] = e
		}
	}
	due := make(map[string]Time)     // by key: from when the first orphan must be returned
	orphans := make(map[string]bool) // by writer
	for _, e := range events {
		if d, dead := died[e.Process]; dead && e.Op == Committed && e.Update && !updated[e.Writer] {
			orphans[e.Writer] = true
			from := max(d.At.Add(lease), e.At)
			if t, ok := due[e.Key]; !ok || from < t {
				due[e.Key] = from
			}
		}
	}
	c.Orphans = len(orphans)
	for _, e := range events {
		if t, ok := due[e.Key]; ok && e.Op == Got && e.Err == "" && e.Began > t {
			c.Late++
		}
	}
	return c
}

func (c Count) String() string {
	return fmt.Sprintf("%d Gets, %d Updates, %d Deletes, %d deaths that left %d versions, %d Gets more than a lease after one",
		c.Gets, c.Updates, c.Deletes, c.Deaths, c.Orphans, c.Late)
}
