package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/fetchonce/fetchonce/bench/report"
	"github.com/fetchonce/fetchonce/bench/run"
)

func reportCommand(args []string) error {
	flags := flag.NewFlagSet("bench report", flag.ContinueOnError)
	dir := flags.String("dir", "", "write report.md and a plot for each table to this `directory`, not the text to standard output")
	disturbed := flags.Float64("disturbed", 1, "leave out runs during which other programs used more than this `share` of the machine")
	files, err := parse(flags, args)
	if err != nil {
		return err
	}
	lines, err := readAll(files)
	if err != nil {
		return err
	}
	all := report.Collect(workloads, lines, *disturbed)
	verdicts := report.Judge(bars(), all)
	if *dir == "" {
		return report.Write(os.Stdout, all, verdicts, nil)
	}
	if err := writeReport(*dir, all, verdicts, lines[0].Machine); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "The report is", filepath.Join(*dir, "report.md"))
	return report.Write(os.Stdout, nil, verdicts, nil)
}

func readAll(files []string) ([]run.Line, error) {
	if len(files) == 0 {
		return nil, errors.New("report of which files?")
	}
	var all []run.Line
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		lines, err := report.Read(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, lines...)
	}
	if len(all) == 0 {
		return nil, errors.New("there are no lines")
	}
	return all, nil
}

func writeReport(dir string, all []*report.Results, verdicts []report.Verdict, m run.Machine) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, r := range all {
		if len(r.Reps) == 0 {
			continue
		}
		err := create(filepath.Join(dir, plotName(r)), func(w io.Writer) error { return report.Draw(w, r, ours) })
		if err != nil {
			return err
		}
	}
	return create(filepath.Join(dir, "report.md"), func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "# What was measured\n\nRedis %s, %s, %s, %d CPUs. Medians (min–max) of the repetitions; ratios are formed within each. bench/README.md says how to read this.\n\n",
			m.Redis, m.Go, m.OS, m.CPUs)
		return errors.Join(err, report.Write(w, all, verdicts, plotName))
	})
}

// create makes a file of what write writes.
func create(name string, write func(w io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func plotName(r *report.Results) string {
	parts := strings.Fields(r.Load.Name + " " + r.Params.String())
	return strings.ReplaceAll(strings.Join(parts, "-"), "=", "") + ".svg"
}
