package protocol

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
)

// A marker is an argument of a script that notes when go-redis writes it. go-redis
// retries by itself, and returns the error of the last attempt only. So that error
// cannot prove that no attempt was sent, and this can.
type marker struct {
	text    string
	written atomic.Bool
}

// MarshalBinary is what go-redis calls to write an argument.
func (m *marker) MarshalBinary() ([]byte, error) {
	m.written.Store(true)
	return []byte(m.text), nil
}

func (m *marker) String() string { return m.text }

// mark puts a marker in the place of the first argument after the keys.
func mark(args []any) *marker {
	if keys, ok := args[2].(int); ok && len(args) > 3+keys {
		if text, ok := args[3+keys].(string); ok {
			m := &marker{text: text}
			args[3+keys] = m
			return m
		}
	}
	return nil
}

// unsentOr returns err, marked as one of a script of which no attempt was sent, if
// that is known. After a time-out or the end of the context the script may still be in
// flight, and then nothing is known.
func (m *marker) unsentOr(err error) error {
	switch {
	case err == nil || m == nil || m.written.Load():
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
	default:
		return unsent{err}
	}
	return err
}

// An unsent is the error of a script that was not sent.
type unsent struct{ error }

func (e unsent) Unwrap() error { return e.error }

// NotSent is what batch.NotSent asks an error.
func (unsent) NotSent() bool { return true }

// NotSent reports whether err proves that Redis was not sent the script it is about.
func NotSent(err error) bool {
	e, ok := errors.AsType[interface {
		error
		NotSent() bool
	}](err)
	return ok && e.NotSent()
}

// IsFinal reports whether err is an answer of Redis that stays the same when the
// script is sent again: a right that the user does not have, a command that the server
// does not know, data of another type.
func IsFinal(err error) bool {
	return errors.Is(err, ErrType) || hasCode(err, "NOPERM", "WRONGTYPE", "unknown command",
		"The user executing the script can't", "Unknown Redis command") // the last two in a script
}
