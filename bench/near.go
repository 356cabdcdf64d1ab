package main

import (
	"context"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// near measures reads of near entries.
var near = &run.Workload{
	Name:    "near",
	About:   "Get of 1,000 keys in turn, which all have near entries.",
	Full:    run.Grid("goroutines", 1, 8, 64),
	Short:   run.Grid("goroutines", 8),
	Peers:   loaders(func(l peer.Loader) bool { return l.Kind.Near }),
	Run:     runNear,
	Columns: []run.Column{run.NanosPerOp, run.Allocs, run.Bytes, run.ClientCPU, run.Commands, run.Errors},
	Base:    "floor-otter",
}

const (
	nearKeys  = 1000
	nearBatch = 64 // Gets to a look at the clock, which takes as long as one
)

func runNear(ctx context.Context, w *run.Worker) error {
	a, err := openLoader(ctx, w, forLong, true)
	if err != nil {
		return err
	}
	keys := someKeys(nearKeys)
	if err := fill(ctx, a, keys, 0); err != nil {
		return err
	}
	if err := getAll(ctx, a, keys, 1, noFetch); err != nil { // a second read from Redis keeps a near entry
		return err
	}
	loop := run.Loop{Goroutines: w.Params.Int("goroutines"), Batch: nearBatch}
	at := make([]counter, loop.Goroutines)
	for g := range at {
		at[g].n = g * len(keys) / len(at) // not all at the same key
	}
	err = w.Loop(ctx, loop, func(ctx context.Context, g int) error {
		at[g].n++
		_, err := a.Get(ctx, keys[at[g].n%nearKeys], noFetch)
		return err
	})
	if err != nil {
		return err
	}
	return a.Close()
}

// A counter has a cache line to itself.
type counter struct {
	n int
	_ [120]byte
}
