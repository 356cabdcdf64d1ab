// Package ratelog logs events that cannot be returned to a caller.
//
// One fault affects many calls at once. So each message is logged at most once in ten
// seconds, with the number of events since then.
package ratelog

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/internal/errtext"
	"github.com/fetchonce/fetchonce/internal/guard"
)

const interval = 10 * time.Second

// A Log is a rate-limited log.
type Log struct {
	logger *slog.Logger
	attrs  []any // of each line

	mu     sync.Mutex
	events map[string]*event
}

// An event counts what happened since its message was last logged.
type event struct {
	count  int
	logged time.Time // zero if it never was
	lasts  bool      // it was logged, and there was no Over since
}

// New returns a Log that writes to a logger. Each line has the attributes.
func New(logger *slog.Logger, attrs ...any) *Log {
	return &Log{logger: logger, attrs: attrs, events: make(map[string]*event)}
}

// Warn logs a message with an error, at most once in ten seconds.
func (l *Log) Warn(message string, err error) {
	if n := l.due(message, interval); n > 0 {
		l.log(slog.LevelWarn, message, "error", withoutPanicText(err), "count", n)
	}
}

// Info logs a message, at most once in ten seconds.
func (l *Log) Info(message string) {
	if n := l.due(message, interval); n > 0 {
		l.log(slog.LevelInfo, message, "count", n)
	}
}

// Over logs the end of the fault that another message reported, if that message was logged since
// the last Over. It logs a warning, so a log of warnings does not end with the fault.
func (l *Log) Over(message, reported string) {
	l.mu.Lock()
	e := l.events[reported]
	over := e != nil && e.lasts
	if over {
		e.lasts = false
	}
	l.mu.Unlock()
	if over {
		l.log(slog.LevelWarn, message)
	}
}

// Once logs a message with an error, the first time only.
func (l *Log) Once(message string, err error) { l.Note(message, "error", withoutPanicText(err)) }

// Note logs a message with attributes, the first time only.
func (l *Log) Note(message string, args ...any) {
	if l.due(message, 1<<62) > 0 {
		l.log(slog.LevelWarn, message, args...)
	}
}

// due counts an event. If the message was last logged at least an interval ago, it returns the
// count since then, and otherwise 0.
func (l *Log) due(message string, interval time.Duration) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.events[message]
	if e == nil {
		e = &event{}
		l.events[message] = e
	}
	e.count++
	if !e.logged.IsZero() && time.Since(e.logged) < interval {
		return 0
	}
	n := e.count
	e.count, e.logged, e.lasts = 0, time.Now(), true
	return n
}

// log calls the logger. A panic of the logger has no caller, so it is dropped.
func (l *Log) log(level slog.Level, message string, args ...any) {
	defer func() { _ = recover() }()
	l.logger.Log(context.Background(), level, message, append(slices.Clone(l.attrs), args...)...)
}

// withoutPanicText removes the text of a panic in a client's hook: it may quote a command.
func withoutPanicText(err error) error {
	if p, ok := errors.AsType[*guard.PanicError](err); ok {
		return &guard.PanicError{Value: errtext.OfPanic(p.Value), Stack: p.Stack}
	}
	return err
}
