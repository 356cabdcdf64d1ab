package report

import (
	"fmt"

	"github.com/fetchonce/fetchonce/bench/run"
)

// A Bar is a target for a figure of a peer or, with Against, for its ratio to the best of others. Least
// or Most is its limit.
type Bar struct {
	What     string // in words
	Peer     string
	Workload string
	Where    run.Params // it is judged for each set of parameters that has these
	Figure   string
	Against  func(p run.Params) []string
	Least    float64
	Most     float64
	Why      string // why it is missed, where it is known to be
}

// A Verdict is a bar and its measurements.
type Verdict struct {
	Bar    Bar
	Params run.Params
	Spread Spread // empty if it was not measured
}

// Judge compares results with bars.
func Judge(bars []Bar, all []*Results) []Verdict {
	var verdicts []Verdict
	for _, bar := range bars {
		found := false
		for _, r := range all {
			if r.Load.Name == bar.Workload && r.Params.Match(bar.Where) {
				found = true
				verdicts = append(verdicts, Verdict{Bar: bar, Params: r.Params, Spread: bar.measured(r)})
			}
		}
		if !found {
			verdicts = append(verdicts, Verdict{Bar: bar, Params: bar.Where})
		}
	}
	return verdicts
}

func (b Bar) measured(r *Results) Spread {
	if b.Against == nil {
		return r.figure(b.Peer, b.Figure)
	}
	return r.ratio(b.Peer, b.column(r.Load), b.Against(r.Params))
}

// column returns the column of the bar's figure, which says whether less is better.
func (b Bar) column(load *run.Workload) run.Column {
	for _, c := range load.Columns {
		if c.Figure == b.Figure {
			return c
		}
	}
	panic(fmt.Sprintf("the bar %q is of %s, which is no column of %s", b.What, b.Figure, load.Name))
}

// limit returns the limit in words.
func (b Bar) limit() string {
	if b.Least > 0 {
		return "at least " + number(b.Least)
	}
	return "at most " + number(b.Most)
}

// Met reports whether the median reaches the bar.
func (v Verdict) Met() bool {
	if len(v.Spread) == 0 {
		return false
	}
	if v.Bar.Least > 0 {
		return v.Spread.Median() >= v.Bar.Least
	}
	return v.Spread.Median() <= v.Bar.Most
}

// String says whether the bar is met, and by how much.
func (v Verdict) String() string {
	switch {
	case len(v.Spread) == 0:
		return "not measured"
	case v.Met():
		return "met" + v.margin()
	case v.Bar.Why != "":
		return "**missed**" + v.margin() + ": " + v.Bar.Why
	}
	return "**missed**" + v.margin()
}

func (v Verdict) margin() string {
	limit := v.Bar.Least
	if limit == 0 {
		limit = v.Bar.Most
	}
	if limit == 0 {
		return ""
	}
	return fmt.Sprintf(" by %.0f %%", 100*abs(v.Spread.Median()/limit-1))
}

func abs(x float64) float64 { return max(x, -x) }
