package main

import (
	"context"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// A job tells a worker process what to do.
type job struct {
	Worker  string // its name
	Place   place
	Remote  string // URL of the API, for this worker
	Naive   bool   // use before.fetchRemoteThing
	Names   []string
	Callers int // of each name
}

// A report is a worker's message. The first says that the worker is ready. Each other has the
// result of one caller.
type report struct {
	Ready bool          `json:"ready,omitempty"`
	Name  string        `json:"name,omitempty"`
	Wait  time.Duration `json:"wait,omitempty"`
	Thing *Thing        `json:"thing,omitempty"`
	Error string        `json:"error,omitempty"`
}

func work(ctx context.Context, parent *harness.Parent, j job) error {
	c, err := j.Place.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.close() }()
	api := remote{url: j.Remote}
	fetchRemoteThing := after{things: c.things, remote: api}.fetchRemoteThing
	if j.Naive {
		fetchRemoteThing = before{db: c.db, table: j.Place.Table, remote: api}.fetchRemoteThing
	}
	if err := parent.Send(report{Ready: true}); err != nil {
		return err
	}
	select {
	case <-parent.Started():
	case <-ctx.Done():
		return nil
	}
	for r := range j.call(ctx, fetchRemoteThing) {
		if err := parent.Send(r); err != nil {
			return err
		}
	}
	return nil
}

type fetchFunc func(ctx context.Context, name string) (Thing, error)

// call runs all callers at once. It closes the channel after the last report.
func (j job) call(ctx context.Context, fetch fetchFunc) <-chan report {
	reports := make(chan report, len(j.Names)*j.Callers)
	var callers sync.WaitGroup
	for range j.Callers {
		for _, name := range j.Names {
			callers.Go(func() { reports <- callOnce(ctx, fetch, name) })
		}
	}
	go func() {
		callers.Wait()
		close(reports)
	}()
	return reports
}

func callOnce(ctx context.Context, fetch fetchFunc, name string) report {
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // like a web request's deadline
	defer cancel()
	began := time.Now()
	thing, err := fetch(ctx, name)
	r := report{Name: name, Wait: time.Since(began)}
	if err != nil {
		r.Error = err.Error()
	} else {
		r.Thing = &thing
	}
	return r
}
