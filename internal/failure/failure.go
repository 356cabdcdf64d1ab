// Package failure carries the failure of a fetch to other processes and to the log, without
// the data that an error may quote.
//
// The text of a fetch's own error travels as it is. Errors of databases and parsers quote data:
// their kind travels in their place, and so does the kind of every error of a Store. See
// internal/errtext.
package failure

import (
	"errors"
	"fmt"

	"github.com/fetchonce/fetchonce/internal/errtext"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// Sentinels are errors that keep their identity in other processes. A process finds them by
// their texts, as another build may have another list.
type Sentinels []error

// Describe returns what other processes receive of the error of a fetch, or of a Store.
func (list Sentinels) Describe(err error, inStore bool) protocol.Failure {
	if p, ok := errors.AsType[*flight.PanicError](err); ok {
		return protocol.Failure{Class: protocol.FailedPanic, Text: OfPanic(p.Value, inStore)}
	}
	f := protocol.Failure{Class: protocol.FailedFetch, Text: Text(err, inStore)}
	for _, s := range list {
		if errors.Is(err, s) {
			f.Sentinels += protocol.Sentinel(s.Error())
		}
	}
	return f
}

// Peer returns the error for a failure in another process.
func (list Sentinels) Peer(f protocol.Failure) *PeerError {
	p := &PeerError{text: f.Text}
	for _, s := range list {
		if f.Is(protocol.Sentinel(s.Error())) {
			p.is = append(p.is, s)
		}
	}
	return p
}

// A PeerError is the error of a fetch of another process.
type PeerError struct {
	text string
	is   []error
}

// Error returns the text of the fetch's error.
func (p *PeerError) Error() string { return p.text }

// Unwrap returns the sentinels that the fetch's error was.
func (p *PeerError) Unwrap() []error { return p.is }

// Text returns what of an error may leave the process.
func Text(err error, inStore bool) string {
	if inStore {
		return "the Store failed: " + errtext.Kind(err)
	}
	return errtext.Public(err)
}

// OfPanic is Text for the value of a panic.
func OfPanic(value any, inStore bool) string {
	err, ok := value.(error)
	switch {
	case inStore:
		return "in the Store: " + errtext.OfPanic(value)
	case ok:
		return errtext.Public(err)
	}
	return fmt.Sprint(value)
}
