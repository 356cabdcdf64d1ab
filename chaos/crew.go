//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A seat is one worker and its proxies. If the worker dies, another one takes its seat.
type seat struct {
	number  int
	proxies *proxies

	worker *process
	lives  int // workers so far
}

// A process is a worker, in its supervisor.
type process struct {
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // its output; closed when it has ended
	ended chan error  // receives one result
}

// startProcess starts a worker and waits until it is ready.
func startProcess(j job) (*process, error) {
	description, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	stderr, err := os.OpenFile(filepath.Join(j.Dir, "stderr-"+j.Process), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stderr.Close() }()
	p := &process{name: j.Process, cmd: exec.Command(program), lines: make(chan string, 100), ended: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), jobVariable+"="+string(description))
	p.cmd.Stderr = stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := launch(p.cmd); err != nil {
		return nil, err
	}
	go func() { // ends with the process
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
		close(p.lines)
		p.ended <- p.cmd.Wait()
	}()
	if p.nextLine(patience) != ready {
		return nil, fmt.Errorf("%s did not start: see its stderr", j.Process)
	}
	return p, nil
}

// nextLine returns the next line of the output, or "" if none comes in time.
func (p *process) nextLine(within time.Duration) string {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case line := <-p.lines:
		return line
	case <-timer.C:
		return ""
	}
}

// send sends the worker an order.
func (p *process) send(order string) { _, _ = fmt.Fprintln(p.in, order) }

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// awaitKilled waits for the end of a process that was killed.
func (p *process) awaitKilled() error {
	err := <-p.ended
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if err == nil || !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		return fmt.Errorf("%s ended, but was not killed: %v", p.name, p.cmd.ProcessState)
	}
	return nil
}

// stop lets a process end normally. A process that does not end records no Ended, which is a
// violation.
func (p *process) stop() error {
	_ = p.in.Close()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(drainLimit + 10*time.Second):
		p.signal(syscall.SIGKILL)
		return errors.Join(fmt.Errorf("%s did not end", p.name), <-p.ended)
	}
}
