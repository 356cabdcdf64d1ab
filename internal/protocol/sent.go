package protocol

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
)

// A sentFlag is an argument of a script that records whether go-redis has written it to a
// connection. The error of a command cannot prove that nothing was sent: go-redis retries, and
// returns the error of its last attempt only.
type sentFlag struct {
	text    string
	written atomic.Bool
}

// MarshalBinary is called by go-redis when it writes the argument.
func (m *sentFlag) MarshalBinary() ([]byte, error) {
	m.written.Store(true)
	return []byte(m.text), nil
}

func (m *sentFlag) String() string { return m.text }

// flagSent replaces the first argument after the keys by a sentFlag.
func flagSent(args []any) *sentFlag {
	if keys, ok := args[2].(int); ok && len(args) > 3+keys {
		if text, ok := args[3+keys].(string); ok {
			m := &sentFlag{text: text}
			args[3+keys] = m
			return m
		}
	}
	return nil
}

// unsentOr returns err as an unsent, if no attempt was sent. After a timeout or the end of the
// context, the script may still be in flight: then it returns err.
func (m *sentFlag) unsentOr(err error) error {
	switch {
	case err == nil || m == nil || m.written.Load():
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
	default:
		return unsent{err}
	}
	return err
}

// An unsent is the error of a script that was not sent. NotSent reads it, and so does batch.NotSent.
type unsent struct{ error }

func (e unsent) Unwrap() error { return e.error }
func (unsent) NotSent() bool   { return true }

// NotSent reports whether err proves that its script was not sent to Redis.
func NotSent(err error) bool {
	e, ok := errors.AsType[interface {
		error
		NotSent() bool
	}](err)
	return ok && e.NotSent()
}

// IsFinal reports whether err is an answer of Redis that stays the same when the script is sent
// again: a missing permission, an unknown command, data of another type.
func IsFinal(err error) bool {
	return errors.Is(err, ErrType) || hasCode(err, "NOPERM", "WRONGTYPE", "unknown command",
		"The user executing the script can't", "Unknown Redis command") // the last two in a script
}
