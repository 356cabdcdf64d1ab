// Package report compares the lines that package run has measured: ratios within each repetition, their
// medians over the repetitions, tables, plots, and verdicts on targets.
//
// It knows no peer. The columns of a workload say what a figure is, and whether less is better.
package report

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/fetchonce/fetchonce/bench/run"
)

// Read reads lines, as package run writes them.
func Read(r io.Reader) ([]run.Line, error) {
	var lines []run.Line
	for in := json.NewDecoder(bufio.NewReader(r)); ; {
		var line run.Line
		err := in.Decode(&line)
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", len(lines)+1, err)
		}
		lines = append(lines, line)
	}
}

// disturbed is which share of the machine other programs may use during a run
// before the report says so.
const disturbed = 0.1

// Results are the lines of one workload with one set of parameters.
type Results struct {
	Load   *run.Workload
	Params run.Params
	Reps   []Rep

	Broken  []run.Line // that have no figures
	LeftOut int        // how many were disturbed too much
	Foreign Spread     // which share of the machine other programs used, in each run
}

// A Rep is the figures of one repetition, by peer.
type Rep map[string]run.Figures

// Collect groups lines by workload and parameters, in the order in which they were measured. It leaves
// out lines of unknown workloads, and lines during which other programs used more than the share most
// of the machine.
func Collect(workloads []*run.Workload, lines []run.Line, most float64) []*Results {
	var all []*Results
	reps := make(map[string]Rep)
	byName := make(map[string]*Results)
	for _, line := range lines {
		load := run.Find(workloads, line.Workload)
		if load == nil {
			continue
		}
		name := line.Workload + " " + line.Params.String()
		r := byName[name]
		if r == nil {
			r = &Results{Load: load, Params: line.Params}
			byName[name] = r
			all = append(all, r)
		}
		foreign := line.Figures["foreign_cpu"]
		switch {
		case line.Figures == nil:
			r.Broken = append(r.Broken, line)
			continue
		case foreign > most:
			r.LeftOut++
			continue
		}
		r.Foreign = append(r.Foreign, foreign)
		name = fmt.Sprint(name, " ", line.Session, " ", line.Rep)
		if reps[name] == nil {
			reps[name] = make(Rep)
			r.Reps = append(r.Reps, reps[name])
		}
		reps[name][line.Peer] = line.Figures
	}
	for _, r := range all {
		slices.Sort(r.Foreign)
	}
	slices.SortStableFunc(all, func(a, b *Results) int {
		return slices.Index(workloads, a.Load) - slices.Index(workloads, b.Load)
	})
	return all
}

// peers returns all peers that were measured.
func (r *Results) peers() []string {
	var peers []string
	for _, rep := range r.Reps {
		for peer := range rep {
			if !slices.Contains(peers, peer) {
				peers = append(peers, peer)
			}
		}
	}
	slices.Sort(peers)
	return peers
}

// figure returns a figure of a peer in each repetition that has it.
func (r *Results) figure(peer, figure string) Spread {
	return r.each(func(rep Rep) (float64, bool) {
		x, ok := rep[peer][figure]
		return x, ok
	})
}

// ratio returns a figure of a peer to that of the best of others, in each
// repetition that has them all.
func (r *Results) ratio(peer string, column run.Column, others []string) Spread {
	return r.each(func(rep Rep) (float64, bool) {
		x, ok := rep[peer][column.Figure]
		best, all := rep.best(column, others)
		return x / best, ok && all && best != 0
	})
}

// best returns the best figure of some peers. ok is false if one has none.
func (rep Rep) best(column run.Column, peers []string) (best float64, ok bool) {
	var all []float64
	for _, peer := range peers {
		x, ok := rep[peer][column.Figure]
		if !ok {
			return 0, false
		}
		all = append(all, x)
	}
	switch {
	case len(all) == 0:
		return 0, false
	case column.Less:
		return slices.Min(all), true
	}
	return slices.Max(all), true
}

func (r *Results) each(of func(rep Rep) (float64, bool)) Spread {
	var s Spread
	for _, rep := range r.Reps {
		if x, ok := of(rep); ok {
			s = append(s, x)
		}
	}
	slices.Sort(s)
	return s
}

// A Spread is one figure in all repetitions, from the least to the most.
type Spread []float64

// Median returns the one in the middle, or the mean of the two that are.
func (s Spread) Median() float64 {
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// String returns the median and, if there is more than that, the bounds.
func (s Spread) String() string {
	switch len(s) {
	case 0:
		return "–"
	case 1:
		return number(s[0])
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Median()), number(s[0]), number(s[len(s)-1]))
}

// short returns the median as text.
func (s Spread) short() string {
	if len(s) == 0 {
		return "–"
	}
	return number(s.Median())
}

// number returns about three digits of x.
func number(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x >= 100 || x <= -100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10 || x <= -10:
		return fmt.Sprintf("%.1f", x)
	case x >= 0.1 || x <= -0.1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.2g", x)
}
