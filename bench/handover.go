package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

var handoversPerSecond = run.Column{Figure: "handovers_per_s", Title: "hand-offs/s"}

// handover measures one lock that many goroutines acquire for an empty section. A library may be fast
// by granting the lock repeatedly to its last holder, so the hand-offs to another goroutine count.
var handover = &run.Workload{
	Name:  "handover",
	About: "All goroutines of all processes acquire one lock repeatedly, for an empty section.",
	Full:  run.Times(run.Grid("processes", 4), "goroutines", 8),
	Short: run.Times(run.Grid("processes", 4), "goroutines", 8),
	Peers: lockerNames,
	Run:   runHandover,
	Finish: func(_ run.Params, r *run.Result, f run.Figures) error {
		each := r.Lists["acquisitions"] // of each goroutine
		f["fairness"] = slices.Min(each) / max(1, slices.Max(each))
		f["handovers_per_s"] = f["handovers"] / r.Seconds
		f["process_handovers_per_s"] = f["process_handovers"] / r.Seconds
		f["wait_p99_to_mean"] = f["wait_p99_us"] / f["wait_mean_us"]
		return nil
	},
	Columns: []run.Column{
		handoversPerSecond,
		{Figure: "process_handovers_per_s", Title: "of them to another process"},
		{Figure: "ops_per_s", Title: "acquisitions/s"},
		{Figure: "fairness", Title: "fewest/most acquisitions of a goroutine"},
		{Figure: "wait_p50_us", Title: "wait p50 µs", Less: true},
		{Figure: "wait_mean_us", Title: "mean", Less: true},
		{Figure: "wait_p99_us", Title: "p99", Less: true},
		{Figure: "wait_max_us", Title: "max", Less: true},
		run.Commands,
		run.Reads,
		run.ClientCPU,
		run.RedisCPU,
		{Figure: "overlaps", Title: "overlaps", Less: true},
		run.Errors,
	},
	Base: "fetchonce",
}

func runHandover(ctx context.Context, w *run.Worker) error {
	lock, err := openLock(ctx, w)
	if err != nil {
		return err
	}
	shared, err := openSection(filepath.Join(w.Dir, "section"))
	if err != nil {
		return err
	}
	h := &handovers{w: w, lock: lock, section: shared, goroutines: w.Params.Int("goroutines")}
	if err := h.run(ctx); err != nil {
		return err
	}
	return errors.Join(lock.Close(), shared.close())
}

// handovers is the workload in one process.
type handovers struct {
	w          *run.Worker
	lock       peer.Lock
	section    *section
	goroutines int
}

func (h *handovers) run(ctx context.Context) error {
	// Once without measuring: a first waiter connects and subscribes.
	if _, err := h.w.Meet(""); err != nil {
		return err
	}
	h.contend(ctx, time.Now().Add(warmUp), h.tallies("warm"))

	counts := h.tallies("wait")
	if err := h.w.Begin(); err != nil {
		return err
	}
	h.contend(ctx, h.w.Begun().Add(h.w.For), counts)
	if err := h.w.End(); err != nil {
		return err
	}
	for g := range counts {
		counts[g].report(h.w)
	}
	return nil
}

const warmUp = 200 * time.Millisecond

// contend makes all goroutines acquire the lock repeatedly until a moment.
func (h *handovers) contend(ctx context.Context, until time.Time, counts []tally) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	var all sync.WaitGroup
	for g := range counts {
		all.Go(func() { h.acquire(ctx, int64(h.w.Index*h.goroutines+g+1), &counts[g]) })
	}
	all.Wait()
}

// tallies returns one for each goroutine.
func (h *handovers) tallies(waits string) []tally {
	counts := make([]tally, h.goroutines)
	for g := range counts {
		counts[g].waits = h.w.Samples(waits)
	}
	return counts
}

// A tally is what one goroutine counts.
type tally struct {
	acquired, handovers, processHandovers, overlaps int64
	waits                                           *run.Samples
}

func (t *tally) report(w *run.Worker) {
	w.Ops(t.acquired)
	w.Count("handovers", float64(t.handovers))
	w.Count("process_handovers", float64(t.processHandovers))
	w.Count("overlaps", float64(t.overlaps))
	w.List("acquisitions", float64(t.acquired))
}

// acquire acquires the lock repeatedly until ctx ends. The wait that ctx ends counts too, because the
// longest waits would otherwise be missing.
func (h *handovers) acquire(ctx context.Context, me int64, t *tally) {
	for ctx.Err() == nil {
		began := time.Now()
		had := false
		err := h.lock.Do(ctx, "section", func(context.Context) error {
			t.waits.Add(time.Since(began))
			before, overlap := h.section.enter(me)
			had = true
			t.acquired++
			if overlap {
				t.overlaps++
			}
			if before != me {
				t.handovers++
			}
			if (before-1)/int64(h.goroutines) != (me-1)/int64(h.goroutines) {
				t.processHandovers++
			}
			h.section.leave()
			return nil
		})
		switch {
		case !had && ctx.Err() != nil:
			t.waits.Add(time.Since(began))
		case err != nil:
			h.w.Failed(err)
		}
	}
}

// A section is memory that all processes share. It shows two holders of a lock at once, independently
// of Redis.
type section struct {
	memory []byte
	inside *atomic.Int64 // the current holder, or 0
	last   *atomic.Int64 // the last holder
}

func openSection(path string) (*section, error) {
	const size = 16
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the memory stays
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	memory, err := mapShared(f, size)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return &section{
		memory: memory, // at the start of a page, so that its words are whole
		inside: (*atomic.Int64)(unsafe.Pointer(&memory[0])),
		last:   (*atomic.Int64)(unsafe.Pointer(&memory[8])),
	}, nil
}

// enter returns the last holder, and whether another is still inside.
func (s *section) enter(me int64) (before int64, overlap bool) {
	overlap = s.inside.Swap(me) != 0
	return s.last.Swap(me), overlap
}

func (s *section) leave() { s.inside.Store(0) }

func (s *section) close() error { return unmap(s.memory) }
