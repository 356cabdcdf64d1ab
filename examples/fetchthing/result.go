package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// errFailed says that the last round broke a promise of fetchonce.
var errFailed = errors.New("a name was fetched twice, has not one row, or had errors")

// A result is the result of a round.
type result struct {
	kind   kind
	names  []*tally
	want   int    // callers of each name that should get a result
	victim string // the name whose first worker is killed; "" for none
	killed string // that worker
}

// A tally is the result of a round for one name.
type tally struct {
	name   string
	calls  int // remote calls
	killed int // how many of them the killed worker made
	rows   int

	waits   []time.Duration // of each caller that got a result
	things  map[Thing]bool  // what callers got
	errors  int
	example string // of an error
}

func newResult(kind kind, set settings) *result {
	r := &result{kind: kind, want: set.processes * set.callers}
	for i := range set.names {
		r.names = append(r.names, &tally{name: fmt.Sprintf("thing-%d", i+1), things: map[Thing]bool{}})
	}
	if kind == killRound {
		r.victim = r.names[0].name
	}
	return r
}

func (r *result) add(report report) {
	for _, t := range r.names {
		if t.name == report.Name {
			t.add(report)
		}
	}
}

func (t *tally) add(report report) {
	t.waits = append(t.waits, report.Wait)
	if report.Thing != nil {
		t.things[*report.Thing] = true
		return
	}
	t.errors++
	t.example = report.Error
}

// answers returns how many callers have got a result.
func (r *result) answers() (n int) {
	for _, t := range r.names {
		n += len(t.waits)
	}
	return n
}

// count counts the remote calls and the rows.
func (r *result) count(ctx context.Context, db *sql.DB, table string, api *api) error {
	for _, t := range r.names {
		var err error
		if t.rows, err = countRows(ctx, db, table, t.name); err != nil {
			return err
		}
		t.calls, t.killed = api.of(t.name, r.killed)
	}
	return nil
}

// printTable prints a line for each name of each round.
func printTable(out io.Writer, results []*result) {
	var table harness.Table
	table.Add("", "name", "callers", "remote calls", "rows", "errors", "p50 wait", "p99 wait")
	for _, r := range results {
		for _, t := range r.names {
			table.Add(string(r.kind), t.name, len(t.waits), t.calls, t.rows, t.errors,
				harness.Quantile(t.waits, 0.50), harness.Quantile(t.waits, 0.99))
		}
	}
	table.Print(out)
	for _, r := range results {
		r.printNotes(out)
	}
}

func (r *result) printNotes(out io.Writer) {
	if r.killed != "" {
		_, _ = fmt.Fprintf(out, "%s: %s was killed during its fetch of %s; its own callers are not in the table.\n", r.kind, r.killed, r.victim)
	}
	for _, t := range r.names {
		if t.errors > 0 {
			_, _ = fmt.Fprintf(out, "%s: errors are like: %s\n", r.kind, t.example)
			return
		}
	}
}

// judge prints whether the round kept the promises of fetchonce. It returns errFailed if not.
func (r *result) judge(out io.Writer) error {
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

// problems describes each broken promise.
func (t *tally) problems(r *result) (problems []string) {
	// Another worker repeats the killed worker's call, once.
	if most := 1 + min(t.killed, 1); t.calls < 1 || t.calls > most {
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
	if len(t.waits) < r.want {
		problems = append(problems, fmt.Sprintf("%d callers got a result, want %d", len(t.waits), r.want))
	}
	if r.kind == killRound && r.killed == "" {
		problems = append(problems, "no worker was killed")
	}
	return problems
}
