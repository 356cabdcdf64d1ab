// Stats is a heavy view, api_stats_calculations, that several processes serve
// over HTTP: a page of statistics asks for its four parts at once, and each part
// is a calculation that the database would rather do alone.
//
//	go run ./examples/stats
//
// needs nothing installed. It has several visitors open the page at the same
// moment, first as the view is, then with the middleware of oncehttp before it,
// one key for all parts: it shows how many calculations ran at once. See view.go
// for the three lines that make the difference.
//
//	go run ./examples/stats -naive           # the problem alone
//	go run ./examples/stats -serve :8080     # then: curl localhost:8080/api/stats/calculations/visitors
//	go run ./examples/stats -redis redis://localhost:6379
//
// Redis is miniredis, in this process, unless -redis names a real server. The
// database is an HTTP server in this process, which only waits, and counts what
// runs in it. The view is served by processes of their own: this program,
// started again. See -help for how many there are.
//
// With -serve, one address passes requests on to all processes in turn. The
// parts are visitors, searches, errors and speed. ":8080" is port 8080 for this
// machine alone; "0.0.0.0:8080" is for all others, too.
//
// It leaves nothing behind: its keys in Redis, "stats:<run>:…", are deleted at
// its end, also after ^C. If it is killed with SIGKILL its processes end, and
// its keys expire.
//
// The exit status is 1 if two calculations ran at once with the middleware, or
// a request was not answered; what is judged is the last round, so it is 1 for
// -naive, whose point that is. It is 2 for wrong flags.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

// patience is how long a server may take to answer, and to end.
const patience = 10 * time.Second

// settings are the flags.
type settings struct {
	naive            bool
	redis, serve     string
	processes, pages int
	delay            time.Duration
}

func main() {
	if description, ok := os.LookupEnv(jobVariable); ok {
		os.Exit(workerMain(description))
	}
	set, err := parseFlags(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "stats:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, set); err != nil {
		fmt.Fprintln(os.Stderr, "stats:", err)
		os.Exit(1)
	}
}

// rounds returns, for each round, whether it is one with the middleware.
func (s settings) rounds() []bool {
	if s.naive {
		return []bool{false}
	}
	return []bool{false, true}
}

func parseFlags(args []string, output io.Writer) (settings, error) {
	var s settings
	f := flag.NewFlagSet("stats", flag.ContinueOnError)
	f.BoolVar(&s.naive, "naive", false, "show only the problem: the view without the middleware")
	f.StringVar(&s.redis, "redis", "", "`URL` of a real Redis, as redis://localhost:6379 (default: miniredis, in this process)")
	f.StringVar(&s.serve, "serve", "", "serve GET /api/stats/calculations/{part} at an `address`, as :8080")
	f.IntVar(&s.processes, "processes", 3, "processes that serve the view")
	f.IntVar(&s.pages, "pages", 4, "visitors that open the page at once: four requests each")
	f.DurationVar(&s.delay, "delay", 50*time.Millisecond, "time that a calculation takes")
	// The flag package prints its error itself, with all the usage after it. That
	// hides the error, so it prints only what was asked for.
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, _ = fmt.Fprintln(output, "Usage: stats [flags]. Without flags it needs nothing installed.")
		f.SetOutput(output)
		f.PrintDefaults()
		return s, err
	case err != nil:
		return s, fmt.Errorf("%w (see -help)", err)
	case f.NArg() > 0:
		return s, fmt.Errorf("unexpected argument %q (see -help)", f.Arg(0))
	}
	if strings.HasPrefix(s.serve, ":") {
		s.serve = "127.0.0.1" + s.serve // an example has no business in the network unless it is told so
	}
	return s, s.check()
}

func (s settings) check() error {
	switch {
	case s.serve != "" && s.naive:
		return errors.New("-serve does not go with -naive")
	case s.processes < 1 || s.pages < 1:
		return errors.New("-processes and -pages must be at least 1")
	case s.delay < 0:
		return errors.New("-delay must not be negative")
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

func run(ctx context.Context, set settings) (err error) {
	at, stop, err := startRedis(ctx, set.redis)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if set.serve != "" {
		return serve(ctx, set, at)
	}
	return runRounds(ctx, set, at)
}

// A place is a prefix in a Redis.
type place struct {
	Redis  string // URL
	Prefix string
	name   string // for people
}

// startRedis connects to the Redis that was named, or starts one. The function
// that it returns removes the keys of this run.
func startRedis(ctx context.Context, real string) (at place, stop func() error, err error) {
	logging.Disable() // the pool logs what comes back as an error, too
	at = place{Redis: real, Prefix: "stats:" + strings.ToLower(rand.Text()[:8]), name: "a real server"}
	var embedded *miniredis.Miniredis
	if real == "" {
		embedded = miniredis.NewMiniRedis()
		if err := embedded.StartAddr("127.0.0.1:0"); err != nil {
			return at, nil, fmt.Errorf("miniredis: %w", err)
		}
		embedded.ClockTTL(true) // its keys do not expire by themselves otherwise
		at.name, at.Redis = "miniredis", "redis://"+embedded.Addr()
	}
	opt, err := redis.ParseURL(at.Redis)
	if err != nil {
		return at, nil, err
	}
	rdb := redis.NewClient(opt)
	if err := rdb.Ping(ctx).Err(); err != nil {
		return at, nil, errors.Join(fmt.Errorf("redis at %s: %w", opt.Addr, err), rdb.Close())
	}
	return at, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		err := errors.Join(deleteKeys(ctx, rdb, at.Prefix+":*"), rdb.Close())
		if embedded != nil {
			embedded.Close()
		}
		return err
	}, nil
}

func deleteKeys(ctx context.Context, rdb *redis.Client, pattern string) error {
	keys := rdb.Scan(ctx, 0, pattern, 1000).Iterator()
	for keys.Next(ctx) {
		if err := rdb.Unlink(ctx, keys.Val()).Err(); err != nil {
			return err
		}
	}
	return keys.Err()
}
