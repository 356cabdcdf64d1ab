// Fetchthing is fetch_remote_thing(name) as a program: look a thing up by its
// name in the database, and if it is not there, fetch it from a slow remote API
// and insert it. Several processes do so at the same moment, for the same names.
//
//	go run ./examples/fetchthing
//
// needs nothing installed. It first shows the problem: without fetchonce, every
// caller fetches the thing, and all but one break the table's unique key. Then it
// shows the same load through [fetchonce.Loader.Get]: one remote call and one row
// for each name. See once.go for the twenty lines that make the difference, and
// naive.go for what they replace.
//
//	go run ./examples/fetchthing -naive           # the problem alone
//	go run ./examples/fetchthing -kill            # kill -9 a worker in the middle of its fetch
//	go run ./examples/fetchthing -serve :8080     # then: curl -i localhost:8080/thing/apple
//	go run ./examples/fetchthing -redis redis://localhost:6379 -dsn postgres://localhost/test
//
// Redis is miniredis, in this process, and the database a file of SQLite, unless
// -redis and -dsn name real servers. The remote API is an HTTP server in this
// process, which counts its calls. The workers are processes of their own: this
// program, started again. See -help for how many there are.
//
// With -kill, the killed worker's call counts, so its names may have two remote
// calls; the other workers get the thing when its lease ends, after two seconds.
//
// With -serve, one process serves GET /thing/{name} as JSON, which says where the
// thing came from and how long that took; names that begin with "missing" are not
// known to the remote API. ":8080" is port 8080 for this machine alone;
// "0.0.0.0:8080" is for all others, too.
//
// It leaves nothing behind. Its keys in Redis, "fetchthing:<run>:…", and its tables,
// things_<run>_…, are new in each run and are deleted at its end, also after ^C.
// If the program itself is killed with SIGKILL, its workers end, its keys expire
// after 5 minutes, but a table and the directory of the SQLite file stay.
//
// The exit status is 1 if a name was fetched twice (-kill: by workers that lived),
// has not exactly one row, or a caller got an error; what is judged is the last
// round, so it is 1 for -naive, whose point that is. It is 2 for wrong flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// errFailed says that the last round did not keep the promise.
var errFailed = errors.New("a name was fetched twice, has not one row, or had errors")

func main() {
	if job, ok := os.LookupEnv(jobVariable); ok {
		os.Exit(workerMain(job))
	}
	set, err := parseFlags(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "fetchthing:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, set); err != nil {
		fmt.Fprintln(os.Stderr, "fetchthing:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, set settings) (err error) {
	servers, err := startServers(ctx, set)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.stop()) }()
	if set.serve != "" {
		return serve(ctx, set, servers)
	}
	return runRounds(ctx, set, servers)
}

// runRounds runs the rounds that were asked for, prints the table of all, and
// judges the last.
func runRounds(ctx context.Context, set settings, servers *servers) error {
	fmt.Printf("%d workers (processes), each with %d callers of each of %d names, all at once.\n", set.processes, set.callers, set.names)
	fmt.Printf("The remote API takes %v. Redis is %s, the database is %s.\n\n", set.delay, servers.redisName, servers.databaseName)

	var results []*result
	for _, kind := range set.rounds() {
		r, err := runRound(ctx, set, servers, kind)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		results = append(results, r)
	}
	printTable(os.Stdout, results)
	return judge(os.Stdout, results[len(results)-1])
}
