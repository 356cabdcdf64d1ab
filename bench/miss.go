package main

import (
	"context"
	"strconv"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// miss measures the cost of a Get that fetches, without the fetch.
var miss = &run.Workload{
	Name:    "miss",
	About:   "Get of keys that are new; the fetch takes no time.",
	Full:    run.Grid("goroutines", 1, 64),
	Short:   run.Grid("goroutines", 1, 64),
	Peers:   loaders(misses),
	Run:     runMiss,
	Columns: []run.Column{run.MicrosPerOp, run.P50, run.P99, run.Commands, run.Allocs, run.Bytes, run.ClientCPU, run.RedisCPU, fetchesPerOp, run.Errors},
	Base:    "floor-goredis",
	Finish: func(_ run.Params, _ *run.Result, f run.Figures) error {
		f[fetchesPerOp.Figure] = f["fetches"] / f["ops"]
		return nil
	},
}

var fetchesPerOp = run.Column{Figure: "fetches_per_op", Title: "fetches/op", Less: true}

// misses leaves out peers that differ from others only in how long they wait or in their near cache:
// no caller waits here.
func misses(l peer.Loader) bool {
	switch l.Name {
	case "rockscache-10ms", "redislock-sf-10ms", "goredis-csc":
		return false
	}
	return !l.Kind.Local
}

func runMiss(ctx context.Context, w *run.Worker) error {
	a, err := openLoader(ctx, w, forLong, false)
	if err != nil {
		return err
	}
	if err := fill(ctx, a, someKeys(1000), 0); err != nil { // connections, scripts
		return err
	}
	loop := run.Loop{Goroutines: w.Params.Int("goroutines")}
	at, fetches := make([]counter, loop.Goroutines), make([]counter, loop.Goroutines)
	err = w.Loop(ctx, loop, func(ctx context.Context, g int) error {
		at[g].n++
		key := "miss:" + strconv.Itoa(g) + ":" + strconv.Itoa(at[g].n)
		_, err := a.Get(ctx, key, func(_ context.Context, key string) (peer.Thing, error) {
			fetches[g].n++
			return thing(key, 0), nil
		})
		return err
	})
	if err != nil {
		return err
	}
	for g := range fetches {
		w.Count("fetches", float64(fetches[g].n))
	}
	return a.Close()
}
