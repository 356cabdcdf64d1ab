package main

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// zipf measures fetches under a usual load: few keys are popular, and values expire all the time.
var zipf = &run.Workload{
	Name:  "zipf",
	About: "Get of 200 keys by Zipf's law, in 4 processes, with a pause of 1 ms before each; a value lives for a second, a fetch takes 20 ms. A fetch was needed if no value was fresh when it began, and no needed one was running.",
	Full:  run.Times(run.Grid("processes", 4), "goroutines", 16),
	Short: run.Times(run.Grid("processes", 4), "goroutines", 16),
	Peers: loaders(stampedes),
	Run:   runZipf,
	Finish: func(_ run.Params, r *run.Result, f run.Figures) error {
		all := r.Lists["key"]
		needed := neededFetches(all, r.Lists["began"], r.Lists["ended"])
		f["fetches"], f["fetches_needed"] = float64(len(all)), float64(needed)
		f["fetches_to_minimum"] = float64(len(all)) / float64(needed)
		return nil
	},
	Columns: []run.Column{
		{Figure: "fetches_to_minimum", Title: "fetches / needed", Less: true},
		fetches,
		run.P50, run.P99, run.Max, run.OpsPerSecond, run.ClientCPU, run.RedisCPU, run.Commands, run.Errors,
	},
	Base: "fetchonce",
}

const (
	zipfKeys  = 200
	zipfLife  = time.Second
	zipfFetch = 20 * time.Millisecond
	zipfPause = time.Millisecond
	zipfSkew  = 1.1

	// Redis counts in milliseconds, by a clock that it reads once for many commands.
	zipfSlack = 3 * time.Millisecond
)

func runZipf(ctx context.Context, w *run.Worker) error {
	a, err := openLoader(ctx, w, zipfLife, asItComes(w))
	if err != nil {
		return err
	}
	if err := fill(ctx, a, []string{"warm"}, 0); err != nil {
		return err
	}
	zero, err := agreeOnTime(w)
	if err != nil {
		return err
	}
	loop := run.Loop{Goroutines: w.Params.Int("goroutines"), Pause: zipfPause}
	keys, law := someKeys(zipfKeys), make([]*rand.Zipf, loop.Goroutines)
	for g := range law {
		law[g] = rand.NewZipf(rand.New(rand.NewPCG(uint64(w.Rep), uint64(w.Index*loop.Goroutines+g))), zipfSkew, 1, zipfKeys-1)
	}
	log := &fetchLog{zero: zero}
	err = w.Loop(ctx, loop, func(ctx context.Context, g int) error {
		k := law[g].Uint64()
		_, err := a.Get(ctx, keys[k], func(_ context.Context, key string) (peer.Thing, error) {
			began := time.Now()
			time.Sleep(zipfFetch)
			log.add(float64(k), began, time.Now())
			return thing(key, 0), nil
		})
		return err
	})
	if err != nil {
		return err
	}
	w.List("key", log.key...)
	w.List("began", log.began...)
	w.List("ended", log.ended...)
	return a.Close()
}

// A fetchLog is all fetches of a process; times are seconds since zero.
type fetchLog struct {
	zero time.Time

	mu                sync.Mutex // guards what follows
	key, began, ended []float64
}

func (l *fetchLog) add(key float64, began, ended time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.key = append(l.key, key)
	l.began = append(l.began, wallSince(l.zero, began).Seconds())
	l.ended = append(l.ended, wallSince(l.zero, ended).Seconds())
}

// neededFetches returns how many fetches were needed: when they began, no needed fetch of the key was
// running, and no value of one was fresh.
func neededFetches(key, began, ended []float64) int {
	order := make([]int, len(key))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(began[i], began[j]) })
	needed := 0
	fresh := make(map[float64]float64) // until when, by key
	for _, i := range order {
		if until, ok := fresh[key[i]]; ok && began[i] < until {
			continue
		}
		needed++
		fresh[key[i]] = ended[i] + (zipfLife - zipfSlack).Seconds()
	}
	return needed
}
