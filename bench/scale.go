package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// docs/scale.md uses these workloads. They measure what a Get costs the server, and what a change costs
// it by the number of processes that receive a notification.

// mix measures Gets of which some miss.
var mix = &run.Workload{
	Name:    "mix",
	About:   "Get on 64 goroutines. Of 1,000 Gets, hits find their value in Redis; the others miss, and their fetch takes no time.",
	Full:    run.Times(run.Times(run.Grid("goroutines", 64), "hits", 1000, 990, 900, 0), "size", 200, 10<<10),
	Short:   run.Times(run.Times(run.Grid("goroutines", 64), "hits", 990), "size", 200),
	Peers:   oursAlone,
	Run:     runMix,
	Columns: []run.Column{run.RedisCPU, run.OpsPerSecond, redisIn, redisOut, run.Commands, run.ClientCPU, run.Errors},
	Base:    ours,
}

// invalidate measures changes of values of which other processes have near entries. Its name in reports
// is "told".
var invalidate = &run.Workload{
	Name:    "told",
	About:   "Set on 8 goroutines, while clients with near caches receive a notification of each change.",
	Full:    run.Grid("clients", 0, 1, 4, 16, 64),
	Short:   run.Grid("clients", 16),
	Peers:   oursAlone,
	Run:     runInvalidate,
	Columns: []run.Column{run.RedisCPU, run.OpsPerSecond, redisIn, redisOut, run.Commands, run.Errors},
	Base:    ours,
}

// notify measures values for which many processes wait. Its name in reports is "woken".
var notify = &run.Workload{
	Name:  "woken",
	About: "Get of one key by clients at the same time, each like another process. One fetches for 10 ms, and the others receive a notification. Eight such keys at a time.",
	Full:  run.Grid("clients", 1, 4, 16, 64),
	Short: run.Grid("clients", 16),
	Peers: oursAlone,
	Run:   runNotify,
	Finish: func(_ run.Params, _ *run.Result, f run.Figures) error {
		f[fetchesPerOp.Figure] = f["fetches"] / f["ops"]
		return nil
	},
	Columns: []run.Column{run.RedisCPU, redisIn, redisOut, run.Commands, fetchesPerOp, run.Errors},
	Base:    ours,
}

var (
	redisIn  = run.Column{Figure: "redis_in_bytes_per_op", Title: "bytes to Redis/op", Less: true}
	redisOut = run.Column{Figure: "redis_out_bytes_per_op", Title: "bytes from Redis/op", Less: true}
)

func oursAlone(run.Params) []string { return []string{ours} }

func runMix(ctx context.Context, w *run.Worker) error {
	a, err := openLoader(ctx, w, forLong, false)
	if err != nil {
		return err
	}
	size := w.Params.Int("size")
	keys := someKeys(min(hitKeys/10, sizeMemory/size))
	if err := fill(ctx, a, keys, size-bareThing); err != nil {
		return err
	}
	goroutines, hits := w.Params.Int("goroutines"), w.Params.Int("hits")
	fresh := make([]int, goroutines)
	fetch := func(_ context.Context, key string) (peer.Thing, error) { return thing(key, size-bareThing), nil }
	err = w.Loop(ctx, run.Loop{Goroutines: goroutines}, func(ctx context.Context, g int) error {
		key := keys[rand.IntN(len(keys))]
		if rand.IntN(1000) >= hits {
			fresh[g]++
			key = "fresh:" + strconv.Itoa(g) + ":" + strconv.Itoa(fresh[g])
		}
		_, err := a.Get(ctx, key, fetch)
		return err
	})
	return errors.Join(err, a.Close())
}

// A client is a Loader with its own Redis client, like another process.
type client struct {
	rdb *redis.Client
	l   *fetchonce.Loader[peer.Thing]
}

func openClient(w *run.Worker, near bool) (client, error) {
	opt := fetchonce.Options[peer.Thing]{Prefix: "bench", TTL: forLong, RedisTimeout: 10 * time.Second}
	if near {
		opt.Near = fetchonce.Near{Entries: 1000}
	}
	rdb := redis.NewClient(&redis.Options{Addr: w.Redis, PoolSize: 8})
	l, err := fetchonce.New(rdb, opt)
	return client{rdb, l}, err
}

func openClients(w *run.Worker, near bool) ([]client, error) {
	clients := make([]client, w.Params.Int("clients"))
	for i := range clients {
		var err error
		if clients[i], err = openClient(w, near); err != nil {
			return nil, err
		}
	}
	return clients, nil
}

func (c client) Close() error { return errors.Join(c.l.Close(), c.rdb.Close()) }

func closeAll(clients []client) error {
	var err error
	for _, c := range clients {
		err = errors.Join(err, c.Close())
	}
	return err
}

func runInvalidate(ctx context.Context, w *run.Worker) error {
	readers, err := openClients(w, true)
	if err != nil {
		return err
	}
	writer, err := openClient(w, false)
	if err != nil {
		return err
	}
	for i, r := range readers {
		if err := r.awaitNear(ctx); err != nil {
			return fmt.Errorf("client %d: %w", i, err)
		}
	}
	keys := someKeys(1000)
	value := thing("told", 0)
	err = w.Loop(ctx, run.Loop{Goroutines: 8}, func(ctx context.Context, _ int) error {
		return writer.l.Set(ctx, keys[rand.IntN(len(keys))], value)
	})
	return errors.Join(err, closeAll(append(readers, writer)))
}

// awaitNear waits until a client keeps near entries, which it does when it is subscribed.
func (c client) awaitNear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		r, err := c.l.Load(ctx, "first", func(_ context.Context, f *fetchonce.Fetch[peer.Thing]) (peer.Thing, error) {
			return thing(f.Key, 0), nil
		})
		if err != nil || r.Source == fetchonce.SourceNear {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func runNotify(ctx context.Context, w *run.Worker) error {
	clients, err := openClients(w, false)
	if err != nil {
		return err
	}
	get := func(ctx context.Context, key string, fetch peer.Fetch) error {
		var all sync.WaitGroup
		errs := make([]error, len(clients))
		for i, c := range clients {
			all.Go(func() { _, errs[i] = c.l.Get(ctx, key, fetch) })
		}
		all.Wait()
		return errors.Join(errs...)
	}
	warmUp := func(_ context.Context, key string) (peer.Thing, error) { return thing(key, 0), nil }
	if err := get(ctx, "first", warmUp); err != nil {
		return err
	}
	slow := func(_ context.Context, key string) (peer.Thing, error) {
		w.Count("fetches", 1)
		time.Sleep(10 * time.Millisecond)
		return thing(key, 0), nil
	}
	var done [8]int
	err = w.Loop(ctx, run.Loop{Goroutines: len(done)}, func(ctx context.Context, g int) error {
		done[g]++
		return get(ctx, "woken:"+strconv.Itoa(g)+":"+strconv.Itoa(done[g]), slow)
	})
	return errors.Join(err, closeAll(clients))
}
