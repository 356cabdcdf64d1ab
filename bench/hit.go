package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// hit measures reads of values in Redis, without pauses.
var hit = &run.Workload{
	Name:    "hit",
	About:   "Get of 10,000 keys at random, all in Redis and none in the process; each goroutine starts the next Get when the last one returns.",
	Full:    run.Grid("goroutines", 1, 8, 64, 256),
	Short:   run.Grid("goroutines", 1, 64),
	Peers:   loaders(readsItsOwnWay),
	Run:     func(ctx context.Context, w *run.Worker) error { return runHit(ctx, w, hitKeys, 0, 0) },
	Columns: []run.Column{run.OpsPerSecond, run.P50, run.P99, run.Allocs, run.Bytes, run.ClientCPU, run.RedisCPU, run.Commands, run.Errors},
	Base:    "floor-goredis",
}

// paced is hit with pauses. A client that waits for more commands before it sends is fast in hit and
// slow here.
var paced = &run.Workload{
	Name:    "hit-paced",
	About:   "The same with a pause of 2 ms before each Get, so that neither Redis nor the process is busy.",
	Full:    run.Grid("goroutines", 16),
	Short:   run.Grid("goroutines", 16),
	Peers:   loaders(readsItsOwnWay),
	Run:     func(ctx context.Context, w *run.Worker) error { return runHit(ctx, w, hitKeys, 0, 2*time.Millisecond) },
	Columns: []run.Column{run.P50, run.P99, run.Max, run.ClientCPU, run.RedisCPU, run.Commands, run.Errors},
	Base:    "floor-goredis",
}

// size is hit with larger values.
var size = &run.Workload{
	Name:    "size",
	About:   "Get of keys that are in Redis, on 8 goroutines, by the size of the encoded value in bytes.",
	Full:    run.Times(run.Grid("goroutines", 8), "size", 200, 10<<10, 1<<20),
	Short:   run.Times(run.Grid("goroutines", 8), "size", 10<<10),
	Peers:   loaders(readsItsOwnWay),
	Run:     runSize,
	Columns: []run.Column{run.OpsPerSecond, run.P50, run.P99, run.Allocs, run.Bytes, run.ClientCPU, run.RedisCPU, run.Errors},
	Base:    "floor-goredis",
}

const (
	hitKeys    = 10_000
	bareThing  = 200      // bytes of an encoded thing without a Blob, about
	sizeMemory = 64 << 20 // of Redis, for all keys of size
)

// readsItsOwnWay leaves out peers that read as another does: a cache with a lock around its fetch reads
// as floor-goredis.
func readsItsOwnWay(l peer.Loader) bool {
	return !l.Kind.Local && !l.Kind.Locks && l.Name != "rockscache-10ms"
}

func runSize(ctx context.Context, w *run.Worker) error {
	bytes := w.Params.Int("size")
	return runHit(ctx, w, min(hitKeys/10, sizeMemory/bytes), bytes-bareThing, 0)
}

func runHit(ctx context.Context, w *run.Worker, n, more int, pause time.Duration) error {
	a, err := openLoader(ctx, w, forLong, false)
	if err != nil {
		return err
	}
	keys := someKeys(n)
	if err := fill(ctx, a, keys, more); err != nil {
		return err
	}
	loop := run.Loop{Goroutines: w.Params.Int("goroutines"), Pause: pause}
	err = w.Loop(ctx, loop, func(ctx context.Context, _ int) error {
		_, err := a.Get(ctx, keys[rand.IntN(len(keys))], noFetch)
		return err
	})
	if err != nil {
		return err
	}
	return a.Close()
}
