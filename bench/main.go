// Bench measures fetchonce and the libraries that its users would choose instead.
//
//	go run ./bench                  # everything, and what the flags are: -help
//	go run ./bench hit near         # some workloads
//	go run ./bench report           # tables and plots of what was measured
//
// README.md says what is measured, and how to read it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fetchonce/fetchonce/bench/run"
)

func main() {
	if err := command(); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command() error {
	if run.IsWorker() {
		return run.Work(workloads)
	}
	if len(os.Args) > 1 && os.Args[1] == "report" {
		return reportCommand(os.Args[2:])
	}
	return measureCommand(os.Args[1:])
}

// settings are the flags of a measurement.
type settings struct {
	short   bool
	reps    int
	each    time.Duration
	peers   string
	where   string
	out     string
	dir     string
	profile string
}

func measureCommand(args []string) error {
	var set settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.BoolVar(&set.short, "short", false, "the short form of each workload")
	flags.IntVar(&set.reps, "reps", 5, "repetitions")
	flags.DurationVar(&set.each, "for", 2*time.Second, "how long a run measures")
	flags.StringVar(&set.peers, "peers", "", "only these `peers`: a,b")
	flags.StringVar(&set.where, "where", "", "only these `parameters`: goroutines=64,size=200")
	flags.StringVar(&set.out, "out", "", "append the lines to this `file`, not to standard output")
	flags.StringVar(&set.dir, "dir", "", "write lines.jsonl and the report to this `directory`, replacing earlier ones")
	flags.StringVar(&set.profile, "profile", "", "write a CPU profile of each process of each run to this `directory`")
	flags.Usage = func() { usage(flags) }

	names, err := parse(flags, args)
	if err != nil {
		return err
	}
	plan, err := set.plan(names)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if set.dir == "" {
		return measure(ctx, plan, set.out, os.O_APPEND)
	}
	lines := filepath.Join(set.dir, "lines.jsonl")
	if err := measure(ctx, plan, lines, os.O_TRUNC); err != nil {
		return err
	}
	return reportCommand([]string{"-dir", set.dir, lines})
}

// measure runs a plan and writes its lines to a file, or to standard output.
func measure(ctx context.Context, plan *run.Plan, file string, mode int) (err error) {
	out := os.Stdout
	if file != "" {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if out, err = os.OpenFile(file, os.O_CREATE|os.O_WRONLY|mode, 0o644); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, out.Close()) }()
	}
	lines := json.NewEncoder(out)
	plan.Report = func(done, all int, line *run.Line) error {
		progress(done, all, line)
		return lines.Encode(line)
	}
	return plan.Run(ctx)
}

// parse parses flags that may stand before and after the names of workloads.
func parse(flags *flag.FlagSet, args []string) (names []string, err error) {
	for {
		if err := flags.Parse(args); err != nil {
			return nil, err
		}
		if flags.NArg() == 0 {
			return names, nil
		}
		names = append(names, flags.Arg(0))
		args = flags.Args()[1:]
	}
}

func usage(flags *flag.FlagSet) {
	fmt.Fprintf(os.Stderr, "bench [workload...] [flags]\nbench report [file...]\n\nThe workloads are:\n")
	for _, load := range workloads {
		fmt.Fprintf(os.Stderr, "  %-12s %s\n", load.Name, load.About)
	}
	fmt.Fprintln(os.Stderr, "\nThe flags are:")
	flags.PrintDefaults()
}

func (set settings) plan(names []string) (*run.Plan, error) {
	if set.reps < 1 || set.each <= 0 {
		return nil, errors.New("-reps and -for must be more than 0")
	}
	plan := &run.Plan{Short: set.short, Reps: set.reps, For: set.each, Profile: set.profile, Workloads: workloads}
	if len(names) > 0 {
		plan.Workloads = nil
	}
	for _, name := range names {
		load := run.Find(workloads, name)
		if load == nil {
			return nil, fmt.Errorf("there is no workload %q", name)
		}
		plan.Workloads = append(plan.Workloads, load)
	}
	where, err := parseParams(set.where)
	if err != nil {
		return nil, err
	}
	plan.Only = func(p run.Params, peer string) bool {
		return p.Match(where) && (set.peers == "" || slices.Contains(strings.Split(set.peers, ","), peer))
	}
	return plan, nil
}

func parseParams(text string) (run.Params, error) {
	p := run.Params{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok && part != "" {
			return nil, fmt.Errorf("-where: %q is not name=value", part)
		}
		if ok {
			p[name] = value
		}
	}
	return p, nil
}

// progress prints the progress to standard error.
func progress(done, all int, line *run.Line) {
	fmt.Fprintf(os.Stderr, "%d/%d %s %s %s", done, all, line.Workload, line.Params, line.Peer)
	if line.Error != "" {
		fmt.Fprintf(os.Stderr, ": %s", line.Error)
	}
	fmt.Fprintln(os.Stderr)
}
