package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// The flags name rounds of this program:
//
//	go run ./examples/stats                  # the view alone, then with the middleware
//	go run ./examples/stats -naive           # the view alone
//	go run ./examples/stats -serve :8080     # then: curl localhost:8080/api/stats/calculations/visitors
//	go run ./examples/stats -redis redis://localhost:6379
//
// In a round, several visitors open the page at the same moment. Without -redis, Redis is
// miniredis in this process. The database is an HTTP server in this process, which waits and
// counts calculations. Several processes serve the view; each runs this program again.
//
// With -serve, one address passes requests on to all processes in turn.
//
// Keys ("stats:<run>:…") are new in each run. The program deletes them at its end, also after
// ^C. After SIGKILL, its processes end and its keys expire.
//
// The exit status is 1 if, in the last round, two calculations ran at once or a request
// failed. So -naive exits with 1. Wrong flags exit with 2.
func main() {
	harness.Program[job]{Name: "stats", Parse: parse, Work: work}.Main()
}

// settings are the values of the flags.
type settings struct {
	naive            bool
	redis, serve     string
	processes, pages int
	delay            time.Duration
}

func parse(args []string, help io.Writer) (run func(context.Context) error, err error) {
	var set settings
	f := harness.NewFlags("stats", path+"{part}")
	f.BoolVar(&set.naive, "naive", false, "show only the problem: the view without the middleware")
	f.IntVar(&set.processes, "processes", 3, "processes that serve the view")
	f.IntVar(&set.pages, "pages", 4, "visitors that open the page at once: four requests each")
	f.DurationVar(&set.delay, "delay", 50*time.Millisecond, "time that a calculation takes")
	if err := f.Parse(args, help); err != nil {
		return nil, err
	}
	set.redis, set.serve = f.Redis, f.Serve
	return set.run, set.check()
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
	return nil
}

func (s settings) run(ctx context.Context) (err error) {
	redis, err := harness.StartRedis(ctx, s.redis)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, redis.Stop()) }()
	prefix := "stats:" + harness.RunID()
	defer func() { err = errors.Join(err, redis.DeleteKeys(ctx, prefix+":")) }()
	at := place{Redis: redis.URL, Prefix: prefix}
	if s.serve != "" {
		return serve(ctx, s, at, redis.Name)
	}
	fmt.Printf("%d visitors open the page at once. %d processes serve its %d parts.\n", s.pages, s.processes, len(parts))
	fmt.Printf("A calculation takes %v. Redis is %s.\n\n", s.delay, redis.Name)
	return s.runRounds(ctx, at)
}

// runRounds runs the view alone and then, unless -naive is set, with the middleware. It
// prints one table and returns an error if the last round failed.
func (s settings) runRounds(ctx context.Context, at place) error {
	rounds := []bool{false, true} // whether with the middleware
	if s.naive {
		rounds = rounds[:1]
	}
	var results []*result
	for _, locked := range rounds {
		r, err := runRound(ctx, s, at, locked)
		switch {
		case ctx.Err() != nil:
			return errors.New("interrupted")
		case err != nil:
			return err
		}
		results = append(results, r)
	}
	printTable(os.Stdout, results)
	return results[len(results)-1].judge()
}
