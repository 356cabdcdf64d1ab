// Package history records what several processes did to the same keys, and judges whether the
// records break a promise of fetchonce.
//
// It shares no code with the library that it judges.
package history

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"
)

// A Time is a moment in nanoseconds of the monotonic clock, which all processes of one machine
// share.
type Time int64

// Add returns the moment d later.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub returns t - u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// An Op says what an Event records.
type Op string

// The Ops. A process that dies may have done something that it has not recorded.
const (
	// Committing: the write of this Writer commits Version after this moment.
	Committing Op = "committing"

	// Committed: Version is in the source. The Writer records that, or the
	// supervisor after the Writer has died.
	Committed Op = "committed"

	// Updated: the Update of this Writer, which began at Began, has returned.
	Updated Op = "updated"

	// Deleted: a Delete that began at Began has returned.
	Deleted Op = "deleted"

	// Got: a Get that began at Began has returned Version.
	Got Op = "got"

	// Died: Process was killed.
	Died Op = "died"

	// Invalidating: the Update or the Delete of this Writer has begun.
	Invalidating Op = "invalidating"

	// Fetching: a fetch has begun for a Get that began at Began. It has a lease with
	// that Fence, or none if Fence is 0. Fetched: it has ended.
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

	// Hit: from Began to At, Process or Everyone had a Fault.
	Hit Op = "hit"

	// Phase: a phase with the name Value begins: with faults or without.
	Phase Op = "phase"

	// Masters: the nodes in Value are the masters from now on.
	Masters Op = "masters"

	// Ended: Process has ended normally. Calls have not returned, and Count
	// goroutines have not ended.
	Ended Op = "ended"

	// Counted: in the end, a counter in the source is Version, and Count rows record
	// its increments.
	Counted Op = "counted"

	// Held: in the end, Redis still has the lease in Value. Endless: it has the key in
	// Value without a TTL. Leaked: the log file in Value contains a secret.
	Held    Op = "held"
	Endless Op = "endless"
	Leaked  Op = "leaked"
)

// An Event is a line of a history.
type Event struct {
	At      Time   `json:"at"`
	Began   Time   `json:"began,omitempty"`
	Process string `json:"process"`
	Op      Op     `json:"op"`
	Key     string `json:"key,omitempty"`
	Version int64  `json:"version,omitempty"` // of a key: 1, 2, 3 in the order of their commits
	Writer  string `json:"writer,omitempty"`  // names one write among those of all processes
	Update  bool   `json:"update,omitempty"`  // the write belongs to an Update
	Err     string `json:"err,omitempty"`     // what Updated, Deleted or Got returned
	Fence   int64  `json:"fence,omitempty"`
	Cut     Time   `json:"cut,omitempty"`   // when the context ended, if before the work of Fetched or Unlocked
	Value   string `json:"value,omitempty"` // what Created returned
	Source  string `json:"source,omitempty"`
	Build   int    `json:"build,omitempty"` // of the program that fetched; each build has its own values
	Fault   Fault  `json:"fault,omitempty"`
	Node    int    `json:"node,omitempty"` // of a Hit that affects only the keys of this node, from 1; see [Rules.Nodes]
	Calls   int    `json:"calls,omitempty"`
	Count   int    `json:"count,omitempty"` // of goroutines, or of rows
}

func (e Event) String() string {
	line, _ := json.Marshal(e) // every field can be encoded
	return string(line)
}

// A Kind is a kind of violation.
type Kind string

// The kinds that Check finds.
const (
	Stale        Kind = "stale"        // a Get returned an older version than promised
	Uncommitted  Kind = "uncommitted"  // a Get returned a version before its commit began
	Failed       Kind = "failed"       // a Get, an Update or a Delete returned an error
	Inconsistent Kind = "inconsistent" // the history contradicts itself, so it proves nothing
)

// A Violation is an Event that breaks a rule.
type Violation struct {
	Kind Kind
	Event
	Want int64 // of a Stale Get: the oldest version that it may return
	Why  Event // the Event that the rule follows from
}

func (v Violation) String() string {
	if v.Kind == Stale {
		return fmt.Sprintf("stale: %v\n\twant version %d or later, since: %v", v.Event, v.Want, v.Why)
	}
	return fmt.Sprintf("%s: %v", v.Kind, v.Event)
}

func byTime(a, b Event) int { return cmp.Compare(a.At, b.At) }
