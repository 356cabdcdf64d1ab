package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
)

// A crew is the workers of a round, from the outside.
type crew struct {
	workers []*worker
	reports chan report // of all; closed when all have ended

	mu     sync.Mutex
	killed string // the worker that was killed
	err    error  // of workers that ended otherwise than they should
}

// A worker is a process that was started.
type worker struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *json.Decoder // its reports
}

// startCrew starts a worker for each job, and returns when all are ready. They
// end when ctx does.
func startCrew(ctx context.Context, jobs []job) (*crew, error) {
	c := &crew{reports: make(chan report)}
	for _, j := range jobs {
		w, err := startWorker(ctx, j)
		if err != nil {
			c.dismiss()
			return nil, err
		}
		c.workers = append(c.workers, w)
	}
	for _, w := range c.workers {
		var r report
		if err := w.lines.Decode(&r); err != nil || !r.Ready {
			c.dismiss()
			return nil, fmt.Errorf("%s ended before it was ready", w.name)
		}
	}
	return c, nil
}

func startWorker(ctx context.Context, j job) (*worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	description, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), jobVariable+"="+string(description))
	cmd.Stderr = os.Stderr
	// A worker ends when its input does, whether we close it or die. That lets it
	// give its leases back; it is killed if it takes too long.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.Cancel, cmd.WaitDelay = stdin.Close, patience
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &worker{name: j.Worker, cmd: cmd, stdin: stdin, lines: json.NewDecoder(bufio.NewReader(stdout))}, nil
}

// start tells all to start, at the same moment, and follows them.
func (c *crew) start() {
	for _, w := range c.workers {
		_, _ = io.WriteString(w.stdin, "go\n") // if it has ended, follow sees that
	}
	var all sync.WaitGroup
	for _, w := range c.workers {
		all.Go(func() { c.follow(w) })
	}
	go func() {
		all.Wait()
		close(c.reports)
	}()
}

// follow passes a worker's reports on until it ends.
func (c *crew) follow(w *worker) {
	for {
		var r report
		if err := w.lines.Decode(&r); err != nil {
			break // it has ended, maybe in the middle of a line
		}
		c.reports <- r
	}
	err := w.end()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && w.name != c.killed {
		c.err = errors.Join(c.err, fmt.Errorf("%s: %w", w.name, err))
	}
}

// kill kills a worker with SIGKILL.
func (c *crew) kill(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.workers {
		if w.name == name {
			c.killed = name
			_ = w.cmd.Process.Kill()
		}
	}
}

// dismiss ends workers that were not started.
func (c *crew) dismiss() {
	for _, w := range c.workers {
		_ = w.stdin.Close()
	}
	for _, w := range c.workers {
		_ = w.end()
	}
}

// end waits for the end of a worker.
func (w *worker) end() error {
	defer func() { _ = w.stdin.Close() }()
	return w.cmd.Wait()
}
