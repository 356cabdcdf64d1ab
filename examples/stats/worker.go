package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/fetchonce/fetchonce"
)

// jobVariable is the environment variable that makes this program a process that
// serves the view. Its value is a job in JSON: the environment, unlike
// arguments, is not shown to other users, and a URL may have a password.
const jobVariable = "STATS_JOB"

// A job is what such a process has to do.
type job struct {
	Process  string // its name
	Place    place
	Database string // URL
	Locked   bool   // with the middleware
}

// workerMain is the main of a process that serves. It prints its URL, and
// returns the exit status.
func workerMain(description string) int {
	signal.Ignore(os.Interrupt) // ^C is for the process that started us: it ends our input
	var j job
	err := json.Unmarshal([]byte(description), &j)
	if err == nil {
		err = j.work(os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stats:", j.Process+":", err)
		return 1
	}
	return 0
}

func (j job) work(input io.Reader, output io.Writer) (err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with this process, or when the one that started us closes our input, or dies
		_, _ = io.Copy(io.Discard, input)
		cancel()
	}()
	var lk *fetchonce.Locker
	if j.Locked {
		logging.Disable() // the pool logs what comes back as an error, too
		opt, err := redis.ParseURL(j.Place.Redis)
		if err != nil {
			return err
		}
		rdb := redis.NewClient(opt)
		defer func() { _ = rdb.Close() }()
		if lk, err = fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: j.Place.Prefix}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lk.Close()) }()
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(output, "http://"+listener.Addr().String()); err != nil {
		return err
	}
	view := stats{process: j.Process, database: database{j.Database}}
	return serveUntil(ctx, &http.Server{Handler: handler(view, lk), ReadHeaderTimeout: patience}, listener)
}

func serveUntil(ctx context.Context, server *http.Server, listener net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ends with Shutdown or Close
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience/2)
	defer cancel()
	return errors.Join(server.Shutdown(ctx), server.Close())
}

// A crew is the processes that serve, from the outside.
type crew struct {
	meter *meter
	urls  []string
	stops []func() error
}

// startCrew starts the database and the processes, and returns when all serve.
func startCrew(set settings, at place, locked bool) (*crew, error) {
	m, err := startMeter(set.delay)
	if err != nil {
		return nil, err
	}
	c := &crew{meter: m}
	for i := range set.processes {
		j := job{Process: fmt.Sprintf("process-%d", i+1), Place: at, Database: m.url, Locked: locked}
		if err := c.start(j); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", j.Process, err), c.stop())
		}
	}
	return c, nil
}

func (c *crew) start(j job) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	description, err := json.Marshal(j)
	if err != nil {
		return err
	}
	cmd := exec.Command(self) // stop ends it, also when ctx has ended
	cmd.Env = append(os.Environ(), jobVariable+"="+string(description))
	cmd.Stderr = os.Stderr
	// It ends when its input does, whether we close it or die. That lets it give
	// its locks back; it is killed if it takes too long.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.stops = append(c.stops, func() error {
		_ = stdin.Close()
		late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		return cmd.Wait()
	})
	var url string
	if _, err := fmt.Fscanln(stdout, &url); err != nil {
		return fmt.Errorf("ended before it served: %w", err)
	}
	c.urls = append(c.urls, url)
	return nil
}

// stop ends all processes, and the database.
func (c *crew) stop() error {
	errs := make([]error, len(c.stops))
	var all sync.WaitGroup
	for i, stop := range c.stops {
		all.Go(func() { errs[i] = stop() })
	}
	all.Wait()
	c.meter.stop()
	return errors.Join(errs...)
}
