package harness

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"
)

// jobVariable is the environment variable that makes a program a worker. Its value is an
// assignment in JSON. Unlike arguments, the environment is hidden from other users; a job
// may contain a password.
const jobVariable = "FETCHONCE_EXAMPLE_JOB"

// An assignment is a worker's name and its job.
type assignment struct {
	Name string
	Job  json.RawMessage
}

// A Worker is a process that this program started. It runs the same program with a job.
type Worker struct {
	Name string

	cmd      *exec.Cmd
	input    io.WriteCloser
	messages *json.Decoder
}

// StartWorker starts a worker. The worker ends when its input does: when ctx ends, when Stop
// is called or when this process dies. So it can release its leases. A worker that takes
// longer than [Patience] to end is killed.
func StartWorker(ctx context.Context, name string, job any) (*Worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	description, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(assignment{Name: name, Job: description})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), jobVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.Cancel, cmd.WaitDelay = input.Close, Patience
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &Worker{Name: name, cmd: cmd, input: input, messages: json.NewDecoder(bufio.NewReader(output))}, nil
}

// Receive reads the next message that the worker sent. It fails after the worker ended.
func (w *Worker) Receive(message any) error { return w.messages.Decode(message) }

// Start closes the worker's [Parent.Started]. If the worker has ended, Receive reports it.
func (w *Worker) Start() { _, _ = io.WriteString(w.input, "start\n") }

// Kill kills the worker with SIGKILL.
func (w *Worker) Kill() { _ = w.cmd.Process.Kill() }

// Stop ends the worker and returns how it ended.
func (w *Worker) Stop() error {
	_ = w.input.Close()
	late := time.AfterFunc(Patience, w.Kill)
	defer late.Stop()
	if err := w.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", w.Name, err)
	}
	return nil
}

// StopAll stops workers, all at once.
func StopAll(workers []*Worker) error {
	errs := make([]error, len(workers))
	var all sync.WaitGroup
	for i, w := range workers {
		all.Go(func() { errs[i] = w.Stop() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// A Parent is the process that started this worker.
type Parent struct {
	messages *json.Encoder
	started  chan struct{}
}

// Send sends a message to the parent.
func (p *Parent) Send(message any) error { return p.messages.Encode(message) }

// Started returns a channel that is closed when the parent calls [Worker.Start].
func (p *Parent) Started() <-chan struct{} { return p.started }

// work is the main function of a worker. It returns the exit status.
func (p Program[J]) work(text string) int {
	signal.Ignore(os.Interrupt) // ^C also reaches the parent, which ends the worker's input
	var a assignment
	var job J
	err := json.Unmarshal([]byte(text), &a)
	if err == nil {
		err = json.Unmarshal(a.Job, &job)
	}
	if err == nil {
		parent := &Parent{messages: json.NewEncoder(os.Stdout), started: make(chan struct{})}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go parent.listen(os.Stdin, cancel) // ends with this process
		err = p.Work(ctx, parent, job)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s: %v\n", p.Name, a.Name, err)
		return 1
	}
	return 0
}

// listen waits for the parent's start line, then for the end of the input.
func (p *Parent) listen(input io.Reader, end func()) {
	lines := bufio.NewScanner(input)
	if lines.Scan() {
		close(p.started)
	}
	for lines.Scan() { // the parent sends no more lines
	}
	end()
}
