package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// A crew is the workers of a round, in the parent process.
type crew struct {
	workers []*harness.Worker
	reports chan report // of all workers; closed when all have ended

	mu     sync.Mutex
	killed string // the worker that was killed
	err    error  // of workers that failed
}

// startCrew starts a worker for each job and returns when all are ready.
func startCrew(ctx context.Context, jobs []job) (*crew, error) {
	c := &crew{reports: make(chan report)}
	for _, j := range jobs {
		w, err := harness.StartWorker(ctx, j.Worker, j)
		if err != nil {
			return nil, errors.Join(err, harness.StopAll(c.workers))
		}
		c.workers = append(c.workers, w)
	}
	for _, w := range c.workers {
		var r report
		if err := w.Receive(&r); err != nil || !r.Ready {
			_ = harness.StopAll(c.workers)
			return nil, fmt.Errorf("%s ended before it was ready", w.Name)
		}
	}
	return c, nil
}

// start lets all workers begin at the same moment, and starts to read their reports.
func (c *crew) start() {
	for _, w := range c.workers {
		w.Start()
	}
	var all sync.WaitGroup
	for _, w := range c.workers {
		all.Go(func() { c.follow(w) })
	}
	go func() {
		all.Wait()
		close(c.reports)
	}()
}

// follow sends a worker's reports to c.reports until the worker ends.
func (c *crew) follow(w *harness.Worker) {
	for {
		var r report
		if err := w.Receive(&r); err != nil {
			break // the worker has ended
		}
		c.reports <- r
	}
	err := w.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.Name != c.killed {
		c.err = errors.Join(c.err, err)
	}
}

// kill kills a worker with SIGKILL.
func (c *crew) kill(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.workers {
		if w.Name == name {
			c.killed = name
			w.Kill()
		}
	}
}
