package main

import (
	"context"
	"fmt"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// many reads many keys at once.
var many = &run.Workload{
	Name:    "many",
	About:   "GetMany of so many keys that are in Redis, on one goroutine, in those that can.",
	Full:    run.Grid("keys", 100, 1000),
	Short:   run.Grid("keys", 100),
	Peers:   loaders(func(l peer.Loader) bool { return l.Kind.Many && readsItsOwnWay(l) }),
	Run:     runMany,
	Columns: []run.Column{run.MicrosPerOp, run.P99, run.Allocs, run.Bytes, run.ClientCPU, run.RedisCPU, run.Commands, run.Errors},
	Base:    "floor-goredis",
}

func runMany(ctx context.Context, w *run.Worker) error {
	a, err := openLoader(ctx, w, forLong, false)
	if err != nil {
		return err
	}
	keys := someKeys(w.Params.Int("keys"))
	if err := fill(ctx, a, keys, 0); err != nil {
		return err
	}
	reader := a.(peer.ManyGetter)
	err = w.Loop(ctx, run.Loop{Goroutines: 1}, func(ctx context.Context, _ int) error {
		got, err := reader.GetMany(ctx, keys)
		if err == nil && len(got) != len(keys) {
			err = fmt.Errorf("%d values of %d keys", len(got), len(keys))
		}
		return err
	})
	if err != nil {
		return err
	}
	return a.Close()
}
