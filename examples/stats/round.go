package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
)

// A result is what a round has come to.
type result struct {
	name      string
	requests  int
	waits     []time.Duration // of those that were answered
	failure   error           // of one that was not
	all, most int             // calculations, and how many at once
}

// runRounds runs the view as it is and with the middleware, or only the first,
// prints the table, and judges the last.
func runRounds(ctx context.Context, set settings, at place) error {
	fmt.Printf("%d visitors open the page at once, which asks %d processes for its %d parts.\n", set.pages, set.processes, len(parts))
	fmt.Printf("A calculation takes %v. Redis is %s.\n\n", set.delay, at.name)
	var results []*result
	for _, locked := range set.rounds() {
		r, err := runRound(ctx, set, at, locked)
		switch {
		case ctx.Err() != nil:
			return errors.New("interrupted")
		case err != nil:
			return err
		}
		results = append(results, r)
	}
	printTable(os.Stdout, results)
	return results[len(results)-1].judge()
}

func runRound(ctx context.Context, set settings, at place, locked bool) (_ *result, err error) {
	c, err := startCrew(set, at, locked)
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

// visit opens the page so many times at once.
func (r *result) visit(ctx context.Context, pages int, urls []string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for range pages {
		for _, part := range parts {
			url := urls[r.requests%len(urls)] + "/api/stats/calculations/" + part
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

func printTable(w io.Writer, results []*result) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "the view\trequests\tanswered\tcalculations\tat once\tp50 wait\tlongest\t")
	for _, r := range results {
		slices.Sort(r.waits)
		var middle, longest time.Duration
		if n := len(r.waits); n > 0 {
			middle, longest = r.waits[n/2], r.waits[n-1]
		}
		_, _ = fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%v\t%v\t\n", r.name, r.requests, len(r.waits), r.all, r.most,
			middle.Round(time.Millisecond), longest.Round(time.Millisecond))
	}
	_ = table.Flush()
	_, _ = fmt.Fprintln(w)
}

// judge returns what is wrong with a round that was to run one calculation at a
// time.
func (r *result) judge() error {
	switch {
	case r.most > 1:
		return fmt.Errorf("%d calculations ran at once", r.most)
	case r.failure != nil:
		return fmt.Errorf("%d requests were not answered, as: %w", r.requests-len(r.waits), r.failure)
	}
	return nil
}
