package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	bench "github.com/fetchonce/fetchonce/bench"
	"github.com/fetchonce/fetchonce/bench/report"
	"github.com/fetchonce/fetchonce/bench/run"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// A run starts this binary again, as it does the program.
func TestMain(m *testing.M) {
	if !run.IsWorker() {
		os.Exit(m.Run())
	}
	if err := run.Work(append(bench.Workloads, &broken)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// broken fails in one of its processes, when the other is ready to begin.
var broken = run.Workload{
	Name: "broken", Processes: 2, Short: run.Grid("by", "itself"),
	Run: func(_ context.Context, w *run.Worker) error {
		if w.Index == 1 {
			return errors.New("out of order")
		}
		return w.Begin()
	},
}

// measure runs a workload once, for a moment.
func measure(t *testing.T, load run.Workload, peer string) *run.Line {
	t.Helper()
	redistest.Binary(t)
	load.Peers = func(run.Params) []string { return []string{peer} }
	load.Short = load.Short[:1]
	var lines []*run.Line
	plan := run.Plan{
		Workloads: []*run.Workload{&load}, Short: true, Reps: 1, For: 50 * time.Millisecond,
		Report: func(_, _ int, line *run.Line) error {
			lines = append(lines, line)
			return nil
		},
	}
	if err := plan.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(lines) != 1 {
		t.Fatalf("%d lines, want 1", len(lines))
	}
	return lines[0]
}

func TestHandoverIsMeasured(t *testing.T) {
	line := measure(t, *bench.Handover, "fetchonce")
	f := line.Figures
	if line.Error != "" || f["errors"] != 0 {
		t.Fatalf("errors: %v, %s", f["errors"], line.Error)
	}
	if f["overlaps"] != 0 {
		t.Errorf("%v times two had the lock at once", f["overlaps"])
	}
	for _, name := range []string{"ops", "handovers", "process_handovers", "wait_p99_us", "commands", "client_cpu_ms", "redis_cpu_ms", "allocs_per_op"} {
		if f[name] <= 0 {
			t.Errorf("%s: %v, want more", name, f[name])
		}
	}
}

func TestALockThatLocksNobodyOutIsSeen(t *testing.T) {
	line := measure(t, *bench.Handover, "floor-no-lock")
	if line.Figures["overlaps"] == 0 {
		t.Errorf("without a lock, there is no overlap in %v acquisitions; %s", line.Figures["ops"], line.Error)
	}
}

func TestAProcessThatFailsEndsTheRun(t *testing.T) {
	line := measure(t, broken, "nobody")
	if line.Figures != nil || !strings.Contains(line.Error, "process 1: out of order") {
		t.Errorf("error %q, want that of process 1; figures %v", line.Error, line.Figures)
	}
}

func TestEveryBarIsOfAWorkload(t *testing.T) {
	for _, bar := range bench.Bars() {
		load := run.Find(bench.Workloads, bar.Workload)
		if load == nil {
			t.Errorf("%s: there is no workload %q", bar.What, bar.Workload)
			continue
		}
		if !slices.ContainsFunc(load.Full, func(p run.Params) bool { return p.Match(bar.Where) }) {
			t.Errorf("%s: %s has no parameters %s", bar.What, load.Name, bar.Where)
		}
		if bar.Against != nil && !slices.ContainsFunc(load.Columns, func(c run.Column) bool { return c.Figure == bar.Figure }) {
			t.Errorf("%s: %s has no column %s", bar.What, load.Name, bar.Figure)
		}
		if (bar.Least > 0) == (bar.Most > 0) && bar.Figure != "overlaps" {
			t.Errorf("%s: it has not one limit", bar.What)
		}
	}
}

func TestEveryPeerOfABarIsMeasured(t *testing.T) {
	for _, bar := range bench.Bars() {
		load := run.Find(bench.Workloads, bar.Workload)
		if load == nil {
			continue // TestEveryBarIsOfAWorkload says so
		}
		for _, p := range load.Full {
			if !p.Match(bar.Where) {
				continue
			}
			peers := []string{bar.Peer}
			if bar.Against != nil {
				peers = append(peers, bar.Against(p)...)
			}
			for _, peer := range peers {
				if !slices.Contains(load.Peers(p), peer) {
					t.Errorf("%s: %s %s does not measure %s", bar.What, load.Name, p, peer)
				}
			}
		}
	}
}

func TestTheReportOfNothingSaysSo(t *testing.T) {
	var text strings.Builder
	if err := report.Write(&text, nil, report.Judge(bench.Bars(), nil), nil); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Count(text.String(), "not measured"), len(bench.Bars()); got != want {
		t.Errorf("%d bars are not measured, want all %d:\n%s", got, want, &text)
	}
}
