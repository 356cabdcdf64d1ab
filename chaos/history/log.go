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

// A Log is a file to which many processes append lines. Each line is one write, so a killed process
// loses no written line and damages no other line.
type Log struct {
	file    *os.File
	process string
}

// OpenLog opens a log for a process. It creates the file if necessary.
func OpenLog(file, process string) (*Log, error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return &Log{f, process}, nil
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }

// Write records an event with the current time, and with the Log's process unless the event names
// another. It panics if it fails, because a run without its history proves nothing.
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

// A Reader reads a log while processes write to it.
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

// ErrTimeout is returned by Await if no matching event was written in time.
var ErrTimeout = errors.New("history: no such event in time")

// Await waits until an event for which ok holds is written, and returns all events that it has read.
// It returns ErrTimeout after within.
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
			found = ok(e) || found // ok may count events, so it gets all of them
		}
		if found {
			return all, nil
		}
		if Now() > deadline {
			return all, ErrTimeout
		}
	}
}
