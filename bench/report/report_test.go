package report_test

import (
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/bench/report"
	"github.com/fetchonce/fetchonce/bench/run"
)

// race is a workload with one figure of each kind.
var race = &run.Workload{
	Name: "race", About: "Who is first.",
	Columns: []run.Column{run.OpsPerSecond, run.P99},
	Base:    "tortoise",
}

// The hare is faster in each repetition, and the machine slower in the second.
// In the fourth, something else kept the machine busy; in the fifth, the hare
// fell asleep.
const measured = `
{"workload":"race","params":{"legs":"4"},"peer":"tortoise","session":"a","rep":1,"figures":{"ops_per_s":100,"p99_us":50}}
{"workload":"race","params":{"legs":"4"},"peer":"hare",    "session":"a","rep":1,"figures":{"ops_per_s":300,"p99_us":10}}
{"workload":"race","params":{"legs":"4"},"peer":"hare",    "session":"a","rep":2,"figures":{"ops_per_s":20,"p99_us":100}}
{"workload":"race","params":{"legs":"4"},"peer":"tortoise","session":"a","rep":2,"figures":{"ops_per_s":10,"p99_us":400}}
{"workload":"race","params":{"legs":"4"},"peer":"hare",    "session":"b","rep":1,"figures":{"ops_per_s":800,"p99_us":5}}
{"workload":"race","params":{"legs":"4"},"peer":"tortoise","session":"b","rep":1,"figures":{"ops_per_s":200,"p99_us":15}}
{"workload":"race","params":{"legs":"4"},"peer":"hare",    "session":"b","rep":2,"figures":{"ops_per_s":1,"p99_us":9,"foreign_cpu":0.5}}
{"workload":"race","params":{"legs":"4"},"peer":"tortoise","session":"b","rep":2,"figures":{"ops_per_s":150,"p99_us":9,"foreign_cpu":0.15}}
{"workload":"race","params":{"legs":"4"},"peer":"hare",    "session":"b","rep":3,"error":"asleep\nin the shade"}
{"workload":"gone","params":{},"peer":"hare","session":"b","rep":1,"figures":{"ops_per_s":1}}
`

func results(t *testing.T) []*report.Results {
	t.Helper()
	lines, err := report.Read(strings.NewReader(measured))
	if err != nil {
		t.Fatal(err)
	}
	return report.Collect([]*run.Workload{race}, lines, 0.2)
}

func TestRatiosAreOfOneRepetition(t *testing.T) {
	var text strings.Builder
	if err := report.Write(&text, results(t), nil, nil); err != nil {
		t.Fatal(err)
	}
	// The ratio of the medians would be 300/125.
	const want = `## race

Who is first.

### race, legs=4

| peer | ops/s (min–max) | ratio to tortoise | runs | p99 µs |
|---|---|---|---|---|
| hare | 300 (20.0–800) | 3.00 (2.00–4.00) | 3 | 10.0 |
| tortoise | 125 (10.0–200) | 1.00 (1.00–1.00) | 4 | 32.5 |

Other programs used 0 % of the machine in the median of these runs, and up to 15 %.

Runs left out because other programs used too much of the machine: 1.

- hare, repetition 3, has no figures: asleep in the shade

`
	if text.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &text, want)
	}
}

func TestBars(t *testing.T) {
	against := func(peers ...string) func(run.Params) []string {
		return func(run.Params) []string { return peers }
	}
	tests := []struct {
		name string
		bar  report.Bar
		want string
		met  bool
	}{
		{"twice as fast", report.Bar{Peer: "hare", Figure: "ops_per_s", Against: against("tortoise"), Least: 2}, "met by 50 %", true},
		{"five times as fast", report.Bar{Peer: "hare", Figure: "ops_per_s", Against: against("tortoise"), Least: 5}, "**missed** by 40 %", false},
		{"a fifth of the wait", report.Bar{Peer: "hare", Figure: "p99_us", Against: against("tortoise"), Most: 0.2}, "**missed** by 25 %: grass", false},
		{"the best of several", report.Bar{Peer: "tortoise", Figure: "p99_us", Against: against("hare", "tortoise"), Most: 4}, "met by 0 %", true},
		{"a figure itself", report.Bar{Peer: "hare", Figure: "ops_per_s", Least: 300}, "met by 0 %", true},
		{"nothing at all", report.Bar{Peer: "hare", Figure: "p99_us", Most: 0}, "**missed**", false},
		{"one who was not there", report.Bar{Peer: "hare", Figure: "p99_us", Against: against("snail"), Most: 9}, "not measured", false},
		{"other parameters", report.Bar{Peer: "hare", Figure: "p99_us", Where: run.Params{"legs": "2"}, Most: 9}, "not measured", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.bar.Workload = "race"
			if strings.Contains(test.want, "grass") {
				test.bar.Why = "grass"
			}
			verdicts := report.Judge([]report.Bar{test.bar}, results(t))
			if len(verdicts) != 1 {
				t.Fatalf("%d verdicts, want 1", len(verdicts))
			}
			v := verdicts[0]
			if v.String() != test.want || v.Met() != test.met {
				t.Errorf("%s (%v) of %v, want %s", v, v.Met(), v.Spread, test.want)
			}
		})
	}
}

func TestABrokenLineIsNamed(t *testing.T) {
	_, err := report.Read(strings.NewReader("{}\n{}\n{\"rep\":\"one\"}\n"))
	if err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("error %v, want one of line 3", err)
	}
}

func TestThePlotOfATable(t *testing.T) {
	for _, r := range results(t) {
		var svg strings.Builder
		if err := report.Draw(&svg, r, "hare"); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"race, legs=4", "ops/s, more is better", ">hare<", ">tortoise<"} {
			if !strings.Contains(svg.String(), want) {
				t.Errorf("the plot says nothing of %q:\n%s", want, &svg)
			}
		}
	}
}
