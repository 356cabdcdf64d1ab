//go:build unix

package history

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Now returns the time by CLOCK_MONOTONIC, which has the same value in all
// processes of a machine.
func Now() Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every kernel has it
	}
	return Time(ts.Nano())
}

// A Log is a file to which many processes append lines. Each line is one write,
// so a process that is killed loses none that it has written, and breaks none of
// another's.
type Log struct {
	file    *os.File
	process string
}

// OpenLog opens the log in a file, which is made if it is not there, for a
// process of that name.
func OpenLog(file, process string) (*Log, error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return &Log{f, process}, nil
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }

// Write writes an event down as one that happens now, in the Log's own process
// unless the event has another. It panics if it cannot: a process that goes on
// without its history is no use.
func (l *Log) Write(e Event) {
	e.At = Now()
	if e.Process == "" {
		e.Process = l.process
	}
	line, err := json.Marshal(e)
	if err == nil {
		_, err = l.file.Write(append(line, '\n'))
	}
	if err != nil {
		panic(err)
	}
}

// A Reader reads a log while it is being written.
type Reader struct {
	file *os.File
	rest []byte // a line that is not complete yet
}

// OpenReader opens the log in a file for reading.
func OpenReader(file string) (*Reader, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	return &Reader{file: f}, nil
}

// Close closes the file.
func (r *Reader) Close() error { return r.file.Close() }

// Next returns the events that were written since the last Next.
func (r *Reader) Next() ([]Event, error) {
	more, err := io.ReadAll(r.file)
	if err != nil {
		return nil, err
	}
	r.rest = append(r.rest, more...)
	var events []Event
	for {
		line, rest, ok := bytes.Cut(r.rest, []byte("\n"))
		if !ok {
			return events, nil
		}
		r.rest = rest
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("history: %q: %w", line, err)
		}
		events = append(events, e)
	}
}

// ErrNever is what Await returns if it was in vain.
var ErrNever = errors.New("history: it did not happen in time")

// Await returns, with all events that it has read, when an event was written for
// which ok holds.
func (r *Reader) Await(within time.Duration, ok func(Event) bool) ([]Event, error) {
	var all []Event
	for deadline := Now().Add(within); ; time.Sleep(time.Millisecond) {
		events, err := r.Next()
		all = append(all, events...)
		if err != nil {
			return all, err
		}
		found := false
		for _, e := range events {
			found = ok(e) || found // it may count them
		}
		if found {
			return all, nil
		}
		if Now() > deadline {
			return all, ErrNever
		}
	}
}
