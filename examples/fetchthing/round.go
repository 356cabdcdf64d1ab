package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// runRound starts workers whose callers all get all names at once.
func runRound(ctx context.Context, set settings, servers *servers, kind kind) (res *result, err error) {
	at, err := servers.newPlace(ctx, string(kind))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, servers.remove(ctx, at)) }()

	res = newResult(kind, set)
	toKill := make(chan string, 1)
	api, err := startAPI(set.delay, res.interceptVictim(toKill))
	if err != nil {
		return nil, err
	}
	defer api.stop()
	crew, err := startCrew(ctx, res.jobs(set, at, api))
	if err == nil {
		res.gather(crew, api, toKill)
		err = crew.err
	}
	switch {
	case ctx.Err() != nil:
		return nil, errors.New("interrupted")
	case err != nil:
		return nil, err
	}
	if kind == killRound {
		res.want -= set.callers // those of the killed worker
	}
	return res, res.count(ctx, servers.db, at.Table, api)
}

// interceptVictim returns the function that the API calls halfway through a call. The first
// call for the victim sends its worker to toKill and gets no response.
func (r *result) interceptVictim(toKill chan<- string) func(worker, name string) bool {
	var done atomic.Bool
	return func(worker, name string) bool {
		if name != r.victim || done.Swap(true) {
			return false
		}
		toKill <- worker
		return true
	}
}

func (r *result) jobs(set settings, at place, api *api) []job {
	var names []string
	for _, t := range r.names {
		names = append(names, t.name)
	}
	var jobs []job
	for i := range set.processes {
		worker := fmt.Sprintf("worker-%d", i+1)
		jobs = append(jobs, job{
			Worker:  worker,
			Place:   at,
			Remote:  api.client(worker).url,
			Naive:   r.kind == naiveRound,
			Names:   names,
			Callers: set.callers,
		})
	}
	return jobs
}

// gather starts the crew and adds its reports to r until all workers have ended.
func (r *result) gather(crew *crew, api *api, toKill <-chan string) {
	began := time.Now()
	progress := harness.NewProgress(os.Stderr)
	defer progress.End()
	ticks := time.NewTicker(100 * time.Millisecond)
	defer ticks.Stop()
	crew.start()
	for {
		select {
		case report, more := <-crew.reports:
			if !more {
				return
			}
			r.add(report)
		case r.killed = <-toKill:
			crew.kill(r.killed)
		case <-ticks.C:
			progress.Show(fmt.Sprintf("%s: %d of %d callers answered, %d remote calls, %.1fs",
				r.kind, r.answers(), r.want*len(r.names), api.all(), time.Since(began).Seconds()))
		}
	}
}
