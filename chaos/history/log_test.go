//go:build unix

package history_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/fetchonce/fetchonce/chaos/history"
)

func TestReaderReturnsEveryLineOfAllProcesses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	const processes, each = 4, 1000
	var all sync.WaitGroup
	for p := range processes {
		l, err := history.OpenLog(file, string(rune('a'+p)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		all.Go(func() {
			for n := range each {
				l.Write(history.Event{Op: history.Got, Key: "k", Version: int64(n)})
			}
		})
	}
	r, err := history.OpenReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var events []history.Event
	for len(events) < processes*each {
		more, err := r.Await(1e10, func(history.Event) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, more...)
	}
	all.Wait()
	next := make(map[string]int64)
	last := make(map[string]history.Time)
	for _, e := range events {
		if e.Version != next[e.Process] || e.At < last[e.Process] || e.Key != "k" {
			t.Fatalf("%v, want version %d after %d", e, next[e.Process], last[e.Process])
		}
		next[e.Process], last[e.Process] = e.Version+1, e.At
	}
	if _, err := r.Await(1, func(history.Event) bool { return true }); !errors.Is(err, history.ErrTimeout) {
		t.Errorf("Await = %v, want ErrTimeout", err)
	}
}

// An incomplete line is kept until its rest is written.
func TestReaderKeepsAnIncompleteLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := history.OpenReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, step := range []struct {
		text string
		want int
	}{{`{"at":1,`, 0}, {`"op":"got"}`, 0}, {"\n{", 1}, {"}\n", 1}} {
		if _, err := f.WriteString(step.text); err != nil {
			t.Fatal(err)
		}
		if events, err := r.Next(); len(events) != step.want || err != nil {
			t.Errorf("after %q: %v, %v; want %d events", step.text, events, err, step.want)
		}
	}
	if _, err := f.WriteString("x\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err == nil {
		t.Error("Next = nil for a line that is no event, want an error")
	}
}
