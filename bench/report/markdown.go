package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Write writes results as Markdown. plot returns the file of the plot of some results; it is nil if
// there are no plots.
func Write(w io.Writer, all []*Results, verdicts []Verdict, plot func(r *Results) string) error {
	p := &page{w: w}
	for i, r := range all {
		if i == 0 || all[i-1].Load != r.Load {
			p.printf("## %s\n\n%s\n\n", r.Load.Name, r.Load.About)
		}
		p.results(r)
		if plot != nil && len(r.Reps) > 0 {
			p.printf("![%s](%s)\n\n", title(r), plot(r))
		}
	}
	p.verdicts(verdicts)
	return p.err
}

// A page is Markdown that is being written.
type page struct {
	w   io.Writer
	err error // the first
}

func (p *page) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *page) row(cells ...string) {
	p.printf("| %s |\n", strings.Join(cells, " | "))
}

func (p *page) header(cells ...string) {
	p.row(cells...)
	p.printf("|%s\n", strings.Repeat("---|", len(cells)))
}

// title names some results.
func title(r *Results) string {
	if len(r.Params) == 0 {
		return r.Load.Name
	}
	return r.Load.Name + ", " + r.Params.String()
}

func (p *page) results(r *Results) {
	p.printf("### %s\n\n", title(r))
	first, others := r.Load.Columns[0], r.Load.Columns[1:]
	head := []string{"peer", first.Title + " (min–max)", "ratio to " + r.Load.Base, "runs"}
	for _, c := range others {
		head = append(head, c.Title)
	}
	p.header(head...)
	for _, peer := range r.ranked() {
		main := r.figure(peer, first.Figure)
		cells := []string{peer, main.String(), r.ratio(peer, first, []string{r.Load.Base}).String(), fmt.Sprint(len(main))}
		for _, c := range others {
			cells = append(cells, r.figure(peer, c.Figure).short())
		}
		p.row(cells...)
	}
	p.printf("\n")
	p.disturbance(r)
	for _, line := range r.Broken {
		p.printf("- %s, repetition %d, has no figures: %s\n", line.Peer, line.Rep, strings.Join(strings.Fields(line.Error), " "))
	}
	if len(r.Broken) > 0 {
		p.printf("\n")
	}
}

// disturbance says what else the machine did, if it did much.
func (p *page) disturbance(r *Results) {
	if n := len(r.Foreign); n > 0 && r.Foreign[n-1] > disturbed {
		p.printf("Other programs used %.0f %% of the machine in the median of these runs, and up to %.0f %%.\n\n", 100*r.Foreign.Median(), 100*r.Foreign[n-1])
	}
	if r.LeftOut > 0 {
		p.printf("Runs left out because other programs used too much of the machine: %d.\n\n", r.LeftOut)
	}
}

// ranked returns the peers, the best first.
func (r *Results) ranked() []string {
	first := r.Load.Columns[0]
	peers := r.peers()
	slices.SortStableFunc(peers, func(a, b string) int {
		x, y := r.figure(a, first.Figure), r.figure(b, first.Figure)
		switch {
		case len(x) == 0 || len(y) == 0:
			return cmp.Compare(len(y), len(x))
		case first.Less:
			return cmp.Compare(x.Median(), y.Median())
		}
		return cmp.Compare(y.Median(), x.Median())
	})
	return peers
}

func (p *page) verdicts(all []Verdict) {
	if len(all) == 0 {
		return
	}
	p.printf("## Bars\n\n")
	p.header("what", "workload", "limit", "measured (min–max)", "verdict")
	for _, v := range all {
		p.row(v.Bar.What, strings.TrimSuffix(v.Bar.Workload+", "+v.Params.String(), ", "), v.Bar.limit(), v.Spread.String(), v.String())
	}
}
