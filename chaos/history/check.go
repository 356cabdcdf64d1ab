package history

import (
	"fmt"
	"slices"
	"time"
)

// Check judges a history, in the order in which its events were written or any
// other. These are the rules, for each key by itself:
//
//   - A Get that began after an Update had returned without an error returns the
//     version which that Update wrote, or a later one.
//   - A Get that began after a Delete had returned without an error returns what
//     was committed when the Delete began, or a later one.
//   - A process died during an Update. A Get that began more than one lease after
//     that, and after what it wrote was committed, returns that version, or a later
//     one.
//   - No Get returns a version before somebody is about to commit it.
//   - Nothing returns an error.
//
// An Update that has not returned promises nothing, and neither does one that
// returned an error, or a process that died between a commit and its Delete. What
// a Get returns that began while a write was under way may be old or new.
func Check(events []Event, lease time.Duration) []Violation {
	return check(events, judge{lease: lease, failures: true, void: func(promise) bool { return false }})
}

func check(events []Event, j judge) []Violation {
	j.keys = make(map[string]*key)
	events = slices.SortedStableFunc(slices.Values(events), byTime)
	for _, e := range events {
		j.note(e)
	}
	j.bury(events)
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
	failures bool                 // an error is a violation
	void     func(p promise) bool // a fault has made this promise void

	keys  map[string]*key
	found []Violation
}

// A key is what is known of one key.
type key struct {
	begun    map[int64]Time // when a version was first about to be committed
	commits  []Event        // of it, in their order
	promises []promise      // by time; and, once they are in order, by version
}

// A promise is that no Get which begins after some moment returns less than a
// version.
type promise struct {
	from    Time
	version int64
	why     Event
	writer  string // who made it
}

func (j *judge) key(name string) *key {
	k := j.keys[name]
	if k == nil {
		k = &key{begun: make(map[int64]Time)}
		j.keys[name] = k
	}
	return k
}

func (j *judge) blame(kind Kind, e Event) { j.found = append(j.found, Violation{Kind: kind, Event: e}) }

// note takes the events one by one, in the order of time.
func (j *judge) note(e Event) {
	if e.Op == Died {
		return // has no key
	}
	k := j.key(e.Key)
	if e.Err != "" {
		if j.failures {
			j.blame(Failed, e)
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
			j.blame(Muddled, e)
		}
		k.commits = append(k.commits, e)
	case Updated:
		j.promise(k, promise{e.At, e.Version, e, e.Writer})
	case Deleted:
		j.promise(k, promise{e.At, k.committedBy(e.Began), e, e.Writer})
	case Got, Invalidating, Fetching, Fetched, Locked, Unlocked, Refused, Created, Hit, Phase, Masters, Ended, Counted, Held, Endless, Told:
	default:
		j.blame(Muddled, e)
	}
}

// bury makes the promises of those who died.
func (j *judge) bury(events []Event) {
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

// committedBy returns the newest version that is known to have been there at t.
func (k *key) committedBy(t Time) int64 {
	var newest int64
	for _, c := range k.commits {
		if c.At <= t {
			newest = max(newest, c.Version)
		}
	}
	return newest
}

// order sorts the promises by time, and leaves those out that promise nothing new.
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

// judge judges a Get.
func (j *judge) judge(e Event) {
	k := j.key(e.Key)
	if begun, ok := k.begun[e.Version]; !ok || begun > e.At {
		j.blame(Unborn, e)
	}
	// The last promise from before it began.
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

// A Count is how much a history has of what its judgement rests on.
type Count struct {
	Gets, Updates, Deletes int // that returned without an error
	Deaths, Orphans        int // processes that died; versions that one of them committed in an Update which did not return
	Late                   int // Gets that began more than one lease after such a death
}

// Sum counts what is in a history. A history without anything in it is never
// wrong.
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
	due := make(map[string]Time)     // by key, the first
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
