package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// A result is the result of a round.
type result struct {
	name      string
	requests  int
	waits     []time.Duration // of the requests that succeeded
	failure   error           // of one that failed
	all, most int             // calculations: in all, and at most at once
}

// runRound lets several visitors open the page at once.
func runRound(ctx context.Context, set settings, at place, locked bool) (_ *result, err error) {
	c, err := startCrew(ctx, set, at, locked)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	r := &result{name: "as it is"}
	if locked {
		r.name = "serialized"
	}
	r.visit(ctx, set.pages, c.urls)
	r.all, r.most = c.meter.counts()
	return r, nil
}

// visit opens the page several times at once. Each visitor requests all parts.
func (r *result) visit(ctx context.Context, pages int, urls []string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for range pages {
		for _, part := range parts {
			url := urls[r.requests%len(urls)] + path + part
			r.requests++
			all.Go(func() {
				began := time.Now()
				err := get(ctx, url)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					r.failure = err
					return
				}
				r.waits = append(r.waits, time.Since(began))
			})
		}
	}
	all.Wait()
}

func get(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = reply.Body.Close() }()
	if _, err := io.Copy(io.Discard, reply.Body); err != nil {
		return err
	}
	if reply.StatusCode != http.StatusOK {
		return fmt.Errorf("answer %s", reply.Status)
	}
	return nil
}

func printTable(out io.Writer, results []*result) {
	var table harness.Table
	table.Add("the view", "requests", "answered", "calculations", "at once", "p50 wait", "longest")
	for _, r := range results {
		table.Add(r.name, r.requests, len(r.waits), r.all, r.most, harness.Quantile(r.waits, 0.50), harness.Quantile(r.waits, 1))
	}
	table.Print(out)
}

// judge returns an error unless all requests succeeded and one calculation ran at a time.
func (r *result) judge() error {
	switch {
	case r.most > 1:
		return fmt.Errorf("%d calculations ran at once", r.most)
	case r.failure != nil:
		return fmt.Errorf("%d requests failed, one with: %w", r.requests-len(r.waits), r.failure)
	}
	return nil
}
