//go:build linux

// Command chaos harms processes, networks and Redis while workers use fetchonce, and judges the history
// of all calls.
//
//	go run ./chaos -profile standalone -seed 1 -duration 20s
//
// It starts a Redis of a profile (standalone, sentinel, cluster, illnode or full; see profile.go), a
// PostgreSQL, and four worker processes, which run this program too. The workers Get, Update, Delete,
// lock and create rows, each through its own Toxiproxy.
//
// Phases with faults and quiet phases alternate. Workers are killed and stopped, at random and at named
// steps. Redis is stopped, fails over, runs out of memory, and loses its scripts, its clients and its
// leases. Connections are reset, delayed, black-holed and cut before a reply. Fetches fail, panic, exit
// and hang.
//
// All processes record what they do in one history, by one clock. Package history judges it and shares
// no code with the library. Porcupine judges it a second time. The exit status is 1 if an invariant was
// violated, or if the run had too few calls or faults. The history, the logs and the seed stay in a
// directory.
//
// The tests of this module kill writers at every step, break leases on purpose, and write with late
// fences. They are short; FETCHONCE_CHAOS=full makes them long. Package mutant tests the judges with
// mistakes in the library.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9/logging"
	"github.com/rs/zerolog"

	"github.com/fetchonce/fetchonce/chaos/history"
)

func main() {
	if description := os.Getenv(jobVariable); description != "" {
		if err := work(description); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var (
		profile = flag.String("profile", "standalone", "`kind` of Redis and of faults: standalone, sentinel, cluster, illnode or full")
		seed    = flag.Uint64("seed", 0, "of the faults; 0 takes one from the clock")
		lasts   = flag.Duration("duration", 20*time.Second, "how long the run takes")
		dir     = flag.String("dir", "", "new `directory` for the history and the logs (default a new one in the temporary directory)")
		hasty   = flag.Bool("hasty", false, "end after the first phase of faults with a violation")
		only    = flag.String("only", "", "inject only faults with this in their `name`, such as \"kill at written\", and only in half of the workers; then every run is long enough")
		mutants = flag.String("mutants", "", "`root` of the library, to run the mutants: each mistake must violate an invariant. An argument selects those with it in their names")
	)
	flag.Parse()
	if *mutants != "" {
		if err := catch(*mutants, flag.Arg(0)); err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(1)
		}
		return
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	logging.Disable()                        // of Redis clients, whose connections are cut
	zerolog.SetGlobalLevel(zerolog.Disabled) // of Toxiproxy
	violated, err := chaos(&supervisor{profile: *profile, seed: *seed, dir: *dir, only: *only}, *lasts, *hasty)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	if violated || err != nil {
		os.Exit(1)
	}
}

// chaos makes one run. It reports whether an invariant was violated. An error means that the run proves
// nothing.
func chaos(s *supervisor, lasts time.Duration, hasty bool) (violated bool, err error) {
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "chaos"); err != nil {
			return false, err
		}
	} else if err := os.Mkdir(s.dir, 0o755); err != nil {
		return false, err
	}
	fmt.Printf("profile %s, seed %d, %v; history and logs in %s\n", s.profile, s.seed, lasts, s.dir)
	servers, err := os.MkdirTemp("", "chaos-servers")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.RemoveAll(servers) }()
	if err := os.Chmod(servers, 0o755); err != nil { // PostgreSQL runs as another user
		return false, err
	}
	started := time.Now()
	err = s.open(servers)
	fmt.Printf("started in %v\n", time.Since(started).Round(time.Millisecond))
	if err == nil {
		quiet, faults := phases(lasts)
		if hasty {
			quiet, faults = quiet/3, faults/2
		}
		s.run(lasts, quiet, faults, func() bool { return hasty && s.violated() })
		s.finish()
	}
	if err := errors.Join(err, s.close(), errors.Join(s.errs...)); err != nil {
		return false, err
	}
	events, err := read(filepath.Join(s.dir, "history"))
	if err != nil {
		return false, err
	}
	var text strings.Builder
	violated, err = report(&text, events, s, lasts)
	fmt.Print(text.String())
	return violated, err
}

// violated reports whether the history violates an invariant so far.
func (s *supervisor) violated() bool {
	events, err := read(filepath.Join(s.dir, "history"))
	if err != nil {
		s.fail(err)
		return true
	}
	return slices.ContainsFunc(history.Judge(events, s.rules()).Found, func(v history.Violation) bool { return v.Kind != history.I5 })
}

func read(file string) ([]history.Event, error) {
	r, err := history.OpenReader(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return r.Next()
}
