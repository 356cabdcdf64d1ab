// Package harness has what the examples share: flags, a Redis server, worker processes and
// tables. It does not use fetchonce, so readers of an example can skip it.
package harness

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Patience is how long a server or a worker may take to answer or to end.
const Patience = 10 * time.Second

// A Program is an example whose workers get jobs of type J.
type Program[J any] struct {
	Name string

	// Parse parses the flags and returns the function that runs the program. For -help, it
	// writes the usage to help.
	Parse func(args []string, help io.Writer) (run func(context.Context) error, err error)

	// Work does a worker's job. Its context ends when the parent ends or stops the
	// worker.
	Work func(ctx context.Context, parent *Parent, job J) error
}

// Main runs the program and exits. The status is 0 after success and -help, 1 after an
// error and 2 after wrong flags. The run's context ends on an interrupt and on SIGTERM.
func (p Program[J]) Main() {
	if text, ok := os.LookupEnv(jobVariable); ok {
		os.Exit(p.work(text))
	}
	run, err := p.Parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		os.Exit(1)
	}
}
