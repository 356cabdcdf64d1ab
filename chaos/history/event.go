// Package history records what several processes did to the same keys, and
// judges whether what they read was ever too old.
//
// It knows keys, versions and moments. It knows nothing of caches, Redis or
// locks, and shares no code with what it judges.
package history

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"
)

// A Time is a moment in nanoseconds of a clock that all processes of one machine
// share, and that nobody sets.
type Time int64

// Add returns the moment d later.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub returns how long after u t is.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// An Op is what happened.
type Op string

// What happens. A process that ends before it has written an event down may
// have done all the same what that event says.
const (
	// Committing: the write of this Writer is about to commit Version, and may
	// have done so from now on.
	Committing Op = "committing"

	// Committed: Version is there for everyone who reads the source. The Writer
	// itself says so, or somebody who found it there after the writer had died.
	Committed Op = "committed"

	// Updated: the Update of this Writer, which began at Began, has returned.
	Updated Op = "updated"

	// Deleted: a Delete that began at Began has returned.
	Deleted Op = "deleted"

	// Got: a Get that began at Began has returned Version.
	Got Op = "got"

	// Died: Process has ended, without a chance to do anything about it.
	Died Op = "died"

	// Invalidating: the Update or the Delete of this Writer has begun.
	Invalidating Op = "invalidating"

	// Fetching: a fetch has begun, under a lease with that Fence, or without one
	// if it is 0, for a Get that began at Began. Fetched: it has ended.
	Fetching Op = "fetching"
	Fetched  Op = "fetched"

	// Locked: an Acquire that began at Began has returned a lease with that Fence.
	// Unlocked: its Release, which began at Began, has returned. Refused: an
	// Acquire has returned an error.
	Locked   Op = "locked"
	Unlocked Op = "unlocked"
	Refused  Op = "refused"

	// Created: a Get of a Key that is created once has returned Value.
	Created Op = "created"

	// Hit: from Began to At something was done to Process, or to Everyone: see the
	// Faults.
	Hit Op = "hit"

	// Phase: from now on there are faults, or none, as Value says.
	Phase Op = "phase"

	// Masters: from now on these nodes of Redis are the masters.
	Masters Op = "masters"

	// Ended: Process has ended in peace, with so many calls that did not return
	// and goroutines that did not end.
	Ended Op = "ended"

	// Counted: in the end the source had Version for a counter, and Count rows of
	// those who counted.
	Counted Op = "counted"

	// Held, Endless: in the end Redis still had a lease, and a name that does not
	// end by itself. Told: a log has something that nobody may be told.
	Held    Op = "held"
	Endless Op = "endless"
	Told    Op = "told"
)

// An Event is a line of a history.
type Event struct {
	At      Time   `json:"at"`
	Began   Time   `json:"began,omitempty"`
	Process string `json:"process"`
	Op      Op     `json:"op"`
	Key     string `json:"key,omitempty"`
	Version int64  `json:"version,omitempty"` // of each key: 1, 2, 3 in the order they are committed
	Writer  string `json:"writer,omitempty"`  // one write, of all writes of all processes
	Update  bool   `json:"update,omitempty"`  // that write is an Update's
	Err     string `json:"err,omitempty"`     // what Updated, Deleted or Got returned
	Fence   int64  `json:"fence,omitempty"`
	Cut     Time   `json:"cut,omitempty"`   // when the context of Fetched or Unlocked was seen to have ended, if before the work
	Value   string `json:"value,omitempty"` // what Created returned
	Source  string `json:"source,omitempty"`
	Build   int    `json:"build,omitempty"` // of the program that fetched: each has values of its own
	Fault   Fault  `json:"fault,omitempty"`
	Node    int    `json:"node,omitempty"` // of a Hit: it concerns only the keys of this node, 1 and up; see [Rules.Nodes]
	Calls   int    `json:"calls,omitempty"`
	Count   int    `json:"count,omitempty"` // of goroutines, or of rows
}

func (e Event) String() string {
	line, _ := json.Marshal(e) // has only what can be written
	return string(line)
}

// A Kind is a way in which a history can be wrong.
type Kind string

// What can be wrong.
const (
	Stale   Kind = "stale"   // a Get returned a version though a newer one had been promised
	Unborn  Kind = "unborn"  // a Get returned a version that nobody had begun to commit
	Failed  Kind = "failed"  // a Get, an Update or a Delete returned an error
	Muddled Kind = "muddled" // the history contradicts itself: then it is no evidence
)

// A Violation is something in a history that must not be.
type Violation struct {
	Kind Kind
	Event
	Want int64 // the oldest version that a Stale Get could have returned
	Why  Event // since this
}

func (v Violation) String() string {
	if v.Kind == Stale {
		return fmt.Sprintf("stale: %v\n\twant version %d or later, since: %v", v.Event, v.Want, v.Why)
	}
	return fmt.Sprintf("%s: %v", v.Kind, v.Event)
}

func byTime(a, b Event) int { return cmp.Compare(a.At, b.At) }
