package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// stampede measures many callers of one key that no cache has.
var stampede = &run.Workload{
	Name:    "stampede",
	About:   "All callers of all processes Get one key that is in no cache; the fetch takes 100 ms. The figures are of 10 such rounds.",
	Full:    run.Times(run.Grid("processes", 4), "callers", 250),
	Short:   run.Times(run.Grid("processes", 4), "callers", 250),
	Peers:   loaders(stampedes),
	Run:     runStampede,
	Finish:  finishStampede,
	Columns: []run.Column{afterP99, {Figure: "after_p50_us", Title: "p50", Less: true}, {Figure: "after_max_us", Title: "max", Less: true}, fetches, {Figure: "commands", Title: "Redis commands, with those in scripts", Less: true}, {Figure: "client_cpu_ms", Title: "client CPU ms", Less: true}, run.Errors},
	Base:    "fetchonce",
}

var (
	fetches  = run.Column{Figure: "fetches", Title: "fetches", Less: true}
	afterP99 = run.Column{Figure: "after_p99_us", Title: "µs after the first fetch's end: p99", Less: true}
)

const (
	rounds  = 10
	fetched = 100 * time.Millisecond
)

// stampedes leaves out all floors except one, which shows a cache without protection.
func stampedes(l peer.Loader) bool {
	return l.Name == "floor-goredis" || !l.Kind.Floor && l.Name != "goredis-csc"
}

func runStampede(ctx context.Context, w *run.Worker) error {
	a, err := openLoader(ctx, w, forLong, asItComes(w))
	if err != nil {
		return err
	}
	s := &stampeders{w: w, a: a, callers: w.Params.Int("callers")}
	s.round(ctx, "warm", func(string, float64) {}) // connections, scripts
	if s.zero, err = agreeOnTime(w); err != nil {
		return err
	}
	if err := w.Begin(); err != nil {
		return err
	}
	for r := range rounds {
		if _, err := w.Meet(""); err != nil {
			return err
		}
		s.round(ctx, "stampede:"+strconv.Itoa(r), func(what string, at float64) { w.List(what+strconv.Itoa(r), at) })
		w.Ops(int64(s.callers))
	}
	if err := w.End(); err != nil {
		return err
	}
	return a.Close()
}

// stampeders are the callers of one process.
type stampeders struct {
	w       *run.Worker
	a       peer.Adapter
	callers int
	zero    time.Time // the same moment in all processes
}

// agreeOnTime returns a moment that is the same in all processes of a run, by the
// wall clock that they share.
func agreeOnTime(w *run.Worker) (time.Time, error) {
	notes, err := w.Meet(strconv.FormatInt(time.Now().UnixNano(), 10))
	if err != nil {
		return time.Time{}, err
	}
	nanos, err := strconv.ParseInt(notes[0], 10, 64)
	return time.Unix(0, nanos), err
}

// wallSince is by the wall clock, which is one for all processes.
func wallSince(zero, t time.Time) time.Duration {
	return time.Duration(t.UnixNano() - zero.UnixNano())
}

// round makes all callers Get key. It records when each fetch ended and each caller returned, in
// microseconds.
func (s *stampeders) round(ctx context.Context, key string, record func(what string, at float64)) {
	now := func() float64 { return float64(wallSince(s.zero, time.Now())) / float64(time.Microsecond) }
	fetch := func(_ context.Context, key string) (peer.Thing, error) {
		time.Sleep(fetched)
		record("ended", now())
		return thing(key, 0), nil
	}
	var all sync.WaitGroup
	for range s.callers {
		all.Go(func() {
			if _, err := s.a.Get(ctx, key, fetch); err != nil {
				s.w.Failed(err)
			}
			record("returned", now())
		})
	}
	all.Wait()
}

func finishStampede(_ run.Params, r *run.Result, f run.Figures) error {
	var after []float64
	for i := range rounds {
		ended, returned := r.Lists["ended"+strconv.Itoa(i)], r.Lists["returned"+strconv.Itoa(i)]
		if len(ended) == 0 {
			return fmt.Errorf("round %d: no fetch", i)
		}
		f["fetches"] += float64(len(ended))
		for _, at := range returned {
			after = append(after, max(0, at-slices.Min(ended)))
		}
	}
	slices.Sort(after)
	f["after_p50_us"] = after[len(after)/2]
	f["after_p99_us"] = after[len(after)*99/100]
	f["after_max_us"] = after[len(after)-1]
	for _, name := range []string{"fetches", "commands", "client_cpu_ms"} {
		f[name] /= rounds
	}
	return nil
}
