package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// A result is what a round has come to.
type result struct {
	kind   kind
	names  []*tally
	asked  int    // callers that should get an answer, of each name
	killed string // the worker that was killed
	victim string // what it was fetching
}

// A tally is what a round has come to for one name.
type tally struct {
	name  string
	calls int // remote calls
	dead  int // those of them that were made by the worker that was killed
	rows  int

	waits   []time.Duration // one for each caller that got an answer
	things  map[Thing]bool  // that they got
	errors  int
	example string // of an error
}

// runRound has a crew of workers ask for all names at once.
func runRound(ctx context.Context, set settings, servers *servers, kind kind) (res *result, err error) {
	at, remove, err := servers.newPlace(ctx, string(kind))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()

	res = newResult(kind, set)
	toKill := make(chan string, 1)
	api, err := startAPI(set.delay, res.trap(toKill))
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
		res.asked -= set.callers
	}
	return res, res.count(ctx, servers, at, api)
}

func newResult(kind kind, set settings) *result {
	r := &result{kind: kind, asked: set.processes * set.callers}
	for i := range set.names {
		r.names = append(r.names, &tally{name: fmt.Sprintf("thing-%d", i+1), things: map[Thing]bool{}})
	}
	if kind == killRound {
		r.victim = r.names[0].name
	}
	return r
}

// trap returns what the API does halfway through each call: the first that is for
// the victim names its worker to toKill, and is not answered.
func (r *result) trap(toKill chan<- string) func(worker, name string) bool {
	var sprung atomic.Bool
	return func(worker, name string) bool {
		if name != r.victim || sprung.Swap(true) {
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

// gather starts the crew and takes its reports until all have ended.
func (r *result) gather(crew *crew, api *api, toKill <-chan string) {
	progress := startProgress(os.Stderr, r)
	defer progress.end()
	ticks := time.NewTicker(100 * time.Millisecond)
	defer ticks.Stop()
	crew.start()
	for {
		select {
		case answer, more := <-crew.reports:
			if !more {
				return
			}
			r.add(answer)
		case r.killed = <-toKill:
			crew.kill(r.killed)
		case <-ticks.C:
			progress.show(r.answers(), api.all())
		}
	}
}

func (r *result) add(answer report) {
	for _, t := range r.names {
		if t.name == answer.Name {
			t.add(answer)
		}
	}
}

func (t *tally) add(answer report) {
	t.waits = append(t.waits, answer.Wait)
	switch {
	case answer.Thing == nil:
		t.errors++
		t.example = answer.Error
	default:
		t.things[*answer.Thing] = true
	}
}

// answers returns how many callers have got one.
func (r *result) answers() (n int) {
	for _, t := range r.names {
		n += len(t.waits)
	}
	return n
}

// count counts the remote calls and the rows.
func (r *result) count(ctx context.Context, servers *servers, at place, api *api) error {
	for _, t := range r.names {
		var err error
		if t.rows, err = at.rows(ctx, servers.db, t.name); err != nil {
			return err
		}
		t.calls, t.dead = api.of(t.name, r.killed)
	}
	return nil
}
