package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// settings are the flags.
type settings struct {
	naive, kill               bool
	redis, dsn, serve         string
	processes, callers, names int
	delay                     time.Duration
}

// A kind is a kind of round.
type kind string

const (
	naiveRound kind = "naive"
	onceRound  kind = "fetchonce"
	killRound  kind = "kill"
)

func (s settings) rounds() []kind {
	switch {
	case s.naive:
		return []kind{naiveRound}
	case s.kill:
		return []kind{killRound}
	default:
		return []kind{naiveRound, onceRound}
	}
}

func parseFlags(args []string, output io.Writer) (settings, error) {
	var s settings
	f := flag.NewFlagSet("fetchthing", flag.ContinueOnError)
	f.BoolVar(&s.naive, "naive", false, "show only the problem: the same load without fetchonce")
	f.BoolVar(&s.kill, "kill", false, "kill (SIGKILL) a worker in the middle of its fetch")
	f.StringVar(&s.redis, "redis", "", "`URL` of a real Redis, as redis://localhost:6379 (default: miniredis, in this process)")
	f.StringVar(&s.dsn, "dsn", "", "`URL` of a real PostgreSQL, as postgres://localhost/test (default: SQLite, a file)")
	f.StringVar(&s.serve, "serve", "", "serve GET /thing/{name} at an `address`, as :8080")
	f.IntVar(&s.processes, "processes", 4, "worker processes")
	f.IntVar(&s.callers, "callers", 50, "callers of each name in each process")
	f.IntVar(&s.names, "names", 3, "names that are asked for")
	f.DurationVar(&s.delay, "delay", 300*time.Millisecond, "time that the remote API takes")
	// The flag package prints its error itself, with all the usage after it. That
	// hides the error, so it prints only what was asked for.
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, _ = fmt.Fprintln(output, "Usage: fetchthing [flags]. Without flags it needs nothing installed.")
		f.SetOutput(output)
		f.PrintDefaults()
		return s, err
	case err != nil:
		return s, fmt.Errorf("%w (see -help)", err)
	case f.NArg() > 0:
		return s, fmt.Errorf("unexpected argument %q (see -help)", f.Arg(0))
	}
	if s.serve != "" {
		s.serve = loopback(s.serve)
	}
	return s, s.check()
}

func (s settings) check() error {
	switch {
	case s.naive && s.kill:
		return errors.New("-naive and -kill do not go together")
	case s.serve != "" && (s.naive || s.kill):
		return errors.New("-serve goes neither with -naive nor with -kill")
	case s.processes < 1 || s.callers < 1 || s.names < 1:
		return errors.New("-processes, -callers and -names must be at least 1")
	case s.kill && s.processes < 2:
		return errors.New("-kill needs at least 2 -processes")
	case s.delay < 0:
		return errors.New("-delay must not be negative")
	case s.dsn != "" && !strings.HasPrefix(s.dsn, "postgres://") && !strings.HasPrefix(s.dsn, "postgresql://"):
		return errors.New("-dsn must be a URL that begins with postgres://")
	}
	if s.redis != "" {
		if _, err := redis.ParseURL(s.redis); err != nil {
			if e, ok := errors.AsType[*url.Error](err); ok {
				err = e.Err // without the URL, which may have a password
			}
			return fmt.Errorf("-redis: %w", err)
		}
	}
	if s.serve != "" {
		if _, _, err := net.SplitHostPort(s.serve); err != nil {
			return fmt.Errorf("-serve: %w", err)
		}
	}
	return nil
}

// loopback makes an address that is only a port one of this machine alone: an
// example has no business in the network unless it is told so.
func loopback(address string) string {
	if strings.HasPrefix(address, ":") {
		return "127.0.0.1" + address
	}
	return address
}
