//go:build linux

// Command chaos does to fetchonce what must not harm it, and judges what comes of
// it.
//
//	go run ./chaos -profile standalone -seed 1 -duration 20s
//
// It starts a Redis of a profile (standalone, sentinel, cluster, illnode or full; see
// profile.go), a PostgreSQL, and four worker processes: this program, started again. The workers Get, Update,
// Delete, lock, and create rows, each behind a Toxiproxy of its own. Meanwhile
// workers are killed and stopped, at random and at named steps; so is Redis, which
// also fails over, runs out of memory, and loses its scripts, its clients and its
// leases; connections are reset, delayed, black-holed and cut off from their
// replies; and fetches fail, panic, exit and hang. Phases of faults and quiet ones
// take turns.
//
// Everybody writes what they do into one history, by one clock. Package history
// judges it, which knows nothing of the library, and porcupine does so a second
// time. The exit status is 1 if an invariant was violated, and if the run was too
// lame to tell. The history, the logs and the seed stay in a directory.
//
// The tests of this module do more: writers are killed at every step, a lock is
// broken that locked nobody out, a late holder meets a fence. They are short;
// FETCHONCE_CHAOS=full makes them long. Whether the judges would notice anything is
// tested too, with mistakes made in the library on purpose: see package mutant.
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
		lasts   = flag.Duration("duration", 20*time.Second, "how long it runs")
		dir     = flag.String("dir", "", "`directory` for the history and the logs, which must not be there yet (default a new one in the temporary directory)")
		hasty   = flag.Bool("hasty", false, "end after the first phase of faults in which something was violated")
		only    = flag.String("only", "", "deal only the faults with this in their `name`, such as \"kill at written\"; and those to half of the workers; then any run is long enough")
		mutants = flag.String("mutants", "", "`root` of the library, in which mistakes are made: each must be caught by some invariant. An argument chooses those with it in their names")
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
	logging.Disable()                        // of clients that lose their connections, as they should
	zerolog.SetGlobalLevel(zerolog.Disabled) // of Toxiproxy
	guilty, err := chaos(&supervisor{profile: *profile, seed: *seed, dir: *dir, only: *only}, *lasts, *hasty)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	if guilty || err != nil {
		os.Exit(1)
	}
}

// chaos is one run. It reports whether something was violated; an error means
// that the run is no evidence.
func chaos(s *supervisor, lasts time.Duration, hasty bool) (guilty bool, err error) {
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
	if err := os.Chmod(servers, 0o755); err != nil { // PostgreSQL has a user of its own
		return false, err
	}
	started := time.Now()
	err = s.open(servers)
	fmt.Printf("started in %v\n", time.Since(started).Round(time.Millisecond))
	if err == nil {
		quiet, storm := phases(lasts)
		if hasty {
			quiet, storm = quiet/3, storm/2
		}
		s.run(lasts, quiet, storm, func() bool { return hasty && s.violated() })
		s.rest()
	}
	if err := errors.Join(err, s.close(), errors.Join(s.errs...)); err != nil {
		return false, err
	}
	events, err := read(filepath.Join(s.dir, "history"))
	if err != nil {
		return false, err
	}
	var text strings.Builder
	guilty, err = report(&text, events, s, lasts)
	fmt.Print(text.String())
	return guilty, err
}

// violated reports whether anything was violated so far.
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
