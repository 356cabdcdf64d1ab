package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// The flags name rounds of this program:
//
//	go run ./examples/fetchthing                  # before, then after
//	go run ./examples/fetchthing -naive           # before alone
//	go run ./examples/fetchthing -kill            # after; kill -9 a worker during its fetch
//	go run ./examples/fetchthing -serve :8080     # then: curl -i localhost:8080/thing/apple
//	go run ./examples/fetchthing -redis redis://localhost:6379 -dsn postgres://localhost/test
//
// Without -redis and -dsn, Redis is miniredis in this process and the database is a SQLite
// file. The remote API is an HTTP server in this process. Each worker is a process of its
// own, which runs this program again.
//
// With -kill, a name that the killed worker was fetching has two calls: that worker's, and
// one more. The other workers get the thing when the killed worker's lease ends, after two
// seconds.
//
// With -serve, each response names the source of the thing and how long it took. Names that
// begin with "missing" are not found.
//
// Keys ("fetchthing:<run>:…") and tables (things_<run>_…) are new in each run. The program
// deletes them at its end, also after ^C. After SIGKILL, its workers end and its keys expire
// within five minutes; a table and the directory of the SQLite file remain.
//
// The exit status is 1 if, in the last round, a name was fetched twice (with -kill: by workers that
// lived), a name does not have exactly one row, or a caller got an error. So -naive exits with 1.
// Wrong flags exit with 2.
func main() {
	harness.Program[job]{Name: "fetchthing", Parse: parse, Work: work}.Main()
}

// settings are the values of the flags.
type settings struct {
	naive, kill               bool
	redis, dsn, serve         string
	processes, callers, names int
	delay                     time.Duration
}

func parse(args []string, help io.Writer) (run func(context.Context) error, err error) {
	var set settings
	f := harness.NewFlags("fetchthing", "/thing/{name}")
	f.BoolVar(&set.naive, "naive", false, "show only the problem: the same callers without fetchonce")
	f.BoolVar(&set.kill, "kill", false, "kill (SIGKILL) a worker in the middle of its fetch")
	f.StringVar(&set.dsn, "dsn", "", "`URL` of a real PostgreSQL, as postgres://localhost/test (default: SQLite, a file)")
	f.IntVar(&set.processes, "processes", 4, "worker processes")
	f.IntVar(&set.callers, "callers", 50, "callers of each name in each process")
	f.IntVar(&set.names, "names", 3, "names that the callers get")
	f.DurationVar(&set.delay, "delay", 300*time.Millisecond, "time that the remote API takes")
	if err := f.Parse(args, help); err != nil {
		return nil, err
	}
	set.redis, set.serve = f.Redis, f.Serve
	return set.run, set.check()
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
	return nil
}

func (s settings) run(ctx context.Context) (err error) {
	servers, err := startServers(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.stop()) }()
	if s.serve != "" {
		return serve(ctx, s, servers)
	}
	return s.runRounds(ctx, servers)
}

// runRounds runs the rounds, prints one table and returns an error if the last round failed.
func (s settings) runRounds(ctx context.Context, servers *servers) error {
	fmt.Printf("%d workers (processes), each with %d callers of each of %d names, all at once.\n", s.processes, s.callers, s.names)
	fmt.Printf("The remote API takes %v. Redis is %s, the database is %s.\n\n", s.delay, servers.redis.Name, servers.database.name())

	var results []*result
	for _, kind := range s.rounds() {
		r, err := runRound(ctx, s, servers, kind)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		results = append(results, r)
	}
	printTable(os.Stdout, results)
	return results[len(results)-1].judge(os.Stdout)
}

// A kind is a kind of round.
type kind string

const (
	naiveRound kind = "naive"     // before
	onceRound  kind = "fetchonce" // after
	killRound  kind = "kill"      // after, and one worker is killed
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
