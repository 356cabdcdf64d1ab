package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// printTable prints a line for each name of each round.
func printTable(out io.Writer, results []*result) {
	_, _ = fmt.Fprintf(out, "%-10s %-9s %8s %13s %5s %7s %8s %8s\n", "", "name", "callers", "remote calls", "rows", "errors", "p50 wait", "p99 wait")
	for _, r := range results {
		for _, t := range r.names {
			slices.Sort(t.waits)
			_, _ = fmt.Fprintf(out, "%-10s %-9s %8d %13d %5d %7d %8s %8s\n",
				r.kind, t.name, len(t.waits), t.calls, t.rows, t.errors, quantile(t.waits, 0.50), quantile(t.waits, 0.99))
		}
	}
	_, _ = fmt.Fprintln(out)
	for _, r := range results {
		printNotes(out, r)
	}
}

func printNotes(out io.Writer, r *result) {
	if r.killed != "" {
		_, _ = fmt.Fprintf(out, "%s: %s was killed in the middle of its fetch of %s; its own callers are not in the table.\n", r.kind, r.killed, r.victim)
	}
	for _, t := range r.names {
		if t.errors > 0 {
			_, _ = fmt.Fprintf(out, "%s: errors are like: %s\n", r.kind, t.example)
			return
		}
	}
}

// quantile returns the wait that a share of all did not exceed.
func quantile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := min(int(share*float64(len(sorted))), len(sorted)-1)
	return sorted[i].Round(time.Millisecond)
}

// judge says whether a round kept the promise, and returns errFailed if it did
// not.
func judge(out io.Writer, r *result) error {
	var failed error
	for _, t := range r.names {
		for _, problem := range t.problems(r) {
			_, _ = fmt.Fprintf(out, "%s: %s: %s\n", r.kind, t.name, problem)
			failed = errFailed
		}
	}
	switch {
	case failed != nil:
	case r.killed != "":
		_, _ = fmt.Fprintf(out, "%s: the others got every thing, with 1 more remote call at most, and 1 row.\n", r.kind)
	default:
		_, _ = fmt.Fprintf(out, "%s: 1 remote call and 1 row for every name.\n", r.kind)
	}
	return failed
}

// problems returns what is not as promised.
func (t *tally) problems(r *result) (problems []string) {
	// What the killed worker was fetching must be fetched again, once.
	if most := 1 + min(t.dead, 1); t.calls < 1 || t.calls > most {
		problems = append(problems, fmt.Sprintf("%d remote calls, want %d", t.calls, most))
	}
	if t.rows != 1 {
		problems = append(problems, fmt.Sprintf("%d rows, want 1", t.rows))
	}
	if t.errors > 0 {
		problems = append(problems, fmt.Sprintf("%d callers got an error", t.errors))
	}
	if len(t.things) > 1 {
		problems = append(problems, fmt.Sprintf("callers got %d different things", len(t.things)))
	}
	if len(t.waits) < r.asked {
		problems = append(problems, fmt.Sprintf("%d callers got an answer, want %d", len(t.waits), r.asked))
	}
	if r.kind == killRound && r.killed == "" {
		problems = append(problems, "no worker was killed")
	}
	return problems
}
