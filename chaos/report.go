//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fetchonce/fetchonce/chaos/history"
)

// report judges a history and prints its figures. It reports whether an invariant was violated. An
// error means that the run proves nothing.
func report(out *strings.Builder, events []history.Event, s *supervisor, lasts time.Duration) (violated bool, err error) {
	f := figuresOf(events)
	f.print(out)
	fmt.Fprintf(out, "workers     %.1f s of CPU, at most %d MB each\n", s.cpu.Seconds(), s.rss>>10)
	began := time.Now()
	verdict := history.Judge(events, s.rules())
	judged := time.Since(began)
	second := history.Second(events, s.rules())
	fmt.Fprintf(out, "judged in   %v, by the second judge in %v\n", judged.Round(time.Millisecond), (time.Since(began) - judged).Round(time.Millisecond))

	found := slices.Concat(verdict.Found, second)
	of := make(map[history.Kind][]history.Violation)
	for _, v := range found {
		of[v.Kind] = append(of[v.Kind], v)
	}
	kinds := slices.Clone(history.Invariants)
	for _, kind := range slices.Sorted(maps.Keys(of)) {
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	for _, kind := range kinds {
		fmt.Fprintf(out, "%5d violations, %5d excused  %s\n", len(of[kind]), verdict.Excused[kind], kind)
		for _, v := range of[kind][:min(len(of[kind]), 3)] {
			fmt.Fprintf(out, "\t%v\n", v)
			if v.Why.Op != "" {
				fmt.Fprintf(out, "\t\tbecause of %v\n", v.Why)
			}
		}
	}
	fmt.Fprintf(out, "%5d violations by the second judge, porcupine\n", len(second))
	for _, trial := range slices.Sorted(maps.Keys(verdict.Tried)) {
		fmt.Fprintf(out, "%5d %s\n", verdict.Tried[trial], trial)
	}
	if len(found) > 0 {
		return true, nil
	}
	if s.only != "" {
		return false, nil
	}
	return false, errors.Join(f.enough(s, lasts), s.triedEnough(verdict.Tried, lasts))
}

// faultKinds returns the faults that a run must have had.
func (s *supervisor) faultKinds() []history.Fault {
	switch s.profile {
	case illnode:
		return []history.Fault{history.NodeHang}
	case full:
		return []history.Fault{history.Full}
	}
	kinds := []history.Fault{
		history.Stopped, history.Reset, history.Delay, history.BlackHole, history.LostReply,
		history.FetchError, history.FetchPanic, history.FetchGoexit, history.FetchHang,
		history.RedisStop, history.ScriptFlush, history.ClientKill, history.OutOfMemory, history.DelLease, history.DelLock,
	}
	switch s.profile {
	case "standalone":
		kinds = append(kinds, history.RedisKill)
	case "cluster":
		kinds = append(kinds, history.SlotMove, history.Failover, history.StopOver)
	case "sentinel":
		kinds = append(kinds, history.Failover, history.StopOver)
	}
	return kinds
}

// figures are the counts of a history.
type figures struct {
	seconds                         float64
	events, deaths, fetches, stored int
	refused, updates, deletes, sec  int
	created, losses                 int
	gets                            []time.Duration
	faults                          map[history.Fault]int
	failed                          map[string]int
	sources                         map[string]int
	takeovers                       []time.Duration
}

func figuresOf(events []history.Event) *figures {
	f := &figures{faults: make(map[history.Fault]int), failed: make(map[string]int), sources: make(map[string]int), events: len(events)}
	if len(events) > 0 {
		f.seconds = events[len(events)-1].At.Sub(events[0].At).Seconds()
	}
	orphans := make(map[string]history.Time) // by key: when its holder died
	held := make(map[string]map[string]bool) // by process: the keys it fetches and the locks it holds
	for _, e := range events {
		switch e.Op {
		case history.Died:
			f.deaths++
			for key := range held[e.Process] {
				orphans[key] = e.At
			}
			delete(held, e.Process)
		case history.Hit:
			f.faults[e.Fault]++
		case history.Fetching, history.Locked:
			if e.Op == history.Fetching {
				f.fetches++
			}
			if died, ok := orphans[e.Key]; ok {
				f.takeovers = append(f.takeovers, e.At.Sub(max(died, e.Began)))
				delete(orphans, e.Key)
			}
			if held[e.Process] == nil {
				held[e.Process] = make(map[string]bool)
			}
			held[e.Process][e.Key] = true
		case history.Fetched:
			delete(held[e.Process], e.Key)
			if e.Err == "" && e.Cut == 0 && e.Fence > 0 {
				f.stored++
			}
		case history.Unlocked:
			delete(held[e.Process], e.Key)
			if e.Err == "" {
				f.sec++
			} else {
				f.losses++
			}
		}
		f.call(e)
	}
	return f
}

// call counts a call that has returned.
func (f *figures) call(e history.Event) {
	if e.Err != "" {
		if e.Op != history.Fetched {
			f.failed[string(e.Op)+": "+class(e.Err)]++
		}
		return
	}
	switch e.Op {
	case history.Got:
		f.gets = append(f.gets, e.At.Sub(e.Began))
		f.sources[e.Source]++
	case history.Updated:
		f.updates++
	case history.Deleted:
		f.deletes++
	case history.Created:
		f.created++
	case history.Refused:
		f.refused++
	}
}

// class returns the kind of an error.
func class(err string) string {
	for _, known := range []string{
		history.Injected, "fetch timeout", "lock lost", "deadline exceeded", "i/o timeout", "refused", "reset", "EOF", "OOM",
		"oexit", "READONLY", "CLUSTERDOWN", "LOADING", "NOSCRIPT", "TRYAGAIN", "MASTERDOWN",
	} {
		if strings.Contains(err, known) {
			return known
		}
	}
	first, _, _ := strings.Cut(err, "\n")
	return first
}

func (f *figures) print(out *strings.Builder) {
	share := func(n int) float64 { return 100 * float64(n) / float64(max(len(f.gets), 1)) }
	fmt.Fprintf(out, "events      %d in %.1f s\n", f.events, f.seconds)
	fmt.Fprintf(out, "faults      kill of a worker %d, %s\n", f.deaths, counts(f.faults))
	fmt.Fprintf(out, "gets        %d: %.1f %% from redis, %.1f %% fetched, %.1f %% from a peer; p50 %v, p99 %v, longest %v\n", len(f.gets),
		share(f.sources["redis"]), share(f.sources["fetch"]), share(f.sources["peer"]), quantile(f.gets, 0.5), quantile(f.gets, 0.99), quantile(f.gets, 1))
	fmt.Fprintf(out, "errors      %s\n", counts(f.failed))
	fmt.Fprintf(out, "fetches     %d, %d under a lease to their end\n", f.fetches, f.stored)
	fmt.Fprintf(out, "invalidated %d by Update, %d by Delete\n", f.updates, f.deletes)
	fmt.Fprintf(out, "locks       %d held to the end, %d lost, %d refused\n", f.sec, f.losses, f.refused)
	fmt.Fprintf(out, "created     %d Gets of values that are created once\n", f.created)
	fmt.Fprintf(out, "takeovers   %d of leases of dead workers; p50 %v, longest %v\n", len(f.takeovers), quantile(f.takeovers, 0.5), quantile(f.takeovers, 1))
}

func counts[K ~string](m map[K]int) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, fmt.Sprintf("%s %d", k, m[k]))
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[int(q*float64(len(d)-1))].Round(10 * time.Microsecond)
}

// enough returns an error if a run had too few calls or faults.
func (f *figures) enough(s *supervisor, lasts time.Duration) error {
	var errs []error
	floor := func(what string, n int, in30s float64) {
		if least := int(in30s * lasts.Seconds() / 30); n < least {
			errs = append(errs, fmt.Errorf("%d %s, want %d at least", n, what, least))
		}
	}
	if s.profile == full { // many callers wait for long fetches and locks
		floor("Gets", len(f.gets), 2000)
	} else {
		floor("Gets", len(f.gets), 5000)
	}
	floor("fetches that were stored", f.stored, 100)
	floor("invalidations", f.updates+f.deletes, 100)
	floor("locks", f.sec, 100)
	if s.harmsSeats() {
		floor("takeovers", len(f.takeovers), 5)
		floor("deaths", f.deaths, 3)
	}
	for _, kind := range s.faultKinds() {
		if f.faults[kind] == 0 {
			errs = append(errs, fmt.Errorf("there was no %s", kind))
		}
	}
	return errors.Join(errs...)
}
