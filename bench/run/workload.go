// Package run measures workloads. It runs a workload for each of its peers, in new processes and on a
// new redis-server, and makes a line for each run.
//
// It knows neither the workloads nor the peers. Package report compares the lines.
package run

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A Workload is work that is measured for several peers.
type Workload struct {
	Name  string
	About string // a sentence or two, for the report

	// Full has the parameters of a full measurement, and Short those of a short one.
	Full, Short []Params

	// Processes is the number of processes. 0 means the parameter "processes", or 1
	// without that parameter.
	Processes int

	// Peers returns the names of the peers that are measured with some parameters.
	Peers func(p Params) []string

	// Run does the work in each process. It prepares, calls [Worker.Begin], does what is
	// measured, and calls [Worker.End]. Or it calls [Worker.Loop], which does both.
	Run func(ctx context.Context, w *Worker) error

	// Finish, if not nil, adds the workload's own figures.
	Finish func(p Params, r *Result, f Figures) error

	// Columns are the figures that the report shows. The first one decides the order,
	// the ratios and the plot.
	Columns []Column

	// Base is the peer to which ratios refer.
	Base string
}

// Params are the parameters of one measurement of a workload, such as "goroutines": "64".
type Params map[string]string

// Grid returns a Params with one parameter for each of its values.
func Grid(name string, values ...any) []Params {
	return Times([]Params{{}}, name, values...)
}

// Times returns each of some Params with one more parameter, once for each value.
func Times(some []Params, name string, values ...any) []Params {
	var all []Params
	for _, p := range some {
		for _, v := range values {
			p = maps.Clone(p)
			p[name] = fmt.Sprint(v)
			all = append(all, p)
		}
	}
	return all
}

// Int returns a parameter that is a number. It panics if the parameter is no number.
func (p Params) Int(name string) int {
	n, err := strconv.Atoi(p[name])
	if err != nil {
		panic(fmt.Sprintf("parameter %s: %v", name, err))
	}
	return n
}

func (load *Workload) processes(p Params) int {
	switch {
	case load.Processes > 0:
		return load.Processes
	case p["processes"] != "":
		return p.Int("processes")
	}
	return 1
}

// Match reports whether p has all of some parameters.
func (p Params) Match(some Params) bool {
	for name, v := range some {
		if p[name] != v {
			return false
		}
	}
	return true
}

// String returns p as text, sorted by name.
func (p Params) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(p)) {
		parts = append(parts, name+"="+p[name])
	}
	return strings.Join(parts, " ")
}

// A Column is a figure in the report.
type Column struct {
	Figure string // its name in [Figures]
	Title  string // with its unit
	Less   bool   // less is better
}

// The columns that most workloads have.
var (
	OpsPerSecond = Column{Figure: "ops_per_s", Title: "ops/s"}
	MicrosPerOp  = Column{Figure: "us_per_op", Title: "µs/op", Less: true}
	NanosPerOp   = Column{Figure: "ns_per_op", Title: "ns/op", Less: true}
	P50          = Column{Figure: "p50_us", Title: "p50 µs", Less: true}
	P99          = Column{Figure: "p99_us", Title: "p99 µs", Less: true}
	Max          = Column{Figure: "max_us", Title: "max µs", Less: true}
	Allocs       = Column{Figure: "allocs_per_op", Title: "allocs/op", Less: true}
	Bytes        = Column{Figure: "bytes_per_op", Title: "B/op", Less: true}
	ClientCPU    = Column{Figure: "client_cpu_us_per_op", Title: "client CPU µs/op", Less: true}
	RedisCPU     = Column{Figure: "redis_cpu_us_per_op", Title: "Redis CPU µs/op", Less: true}
	Commands     = Column{Figure: "commands_per_op", Title: "Redis commands/op, with those in scripts", Less: true}
	Reads        = Column{Figure: "redis_reads_per_op", Title: "reads by Redis/op", Less: true}
	Errors       = Column{Figure: "errors", Title: "errors", Less: true}
)
