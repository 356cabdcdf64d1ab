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

// A seat is the place of one worker: if it dies, another takes its place, behind
// the same proxies.
type seat struct {
	number  int
	proxies *proxies

	worker *process
	lives  int
}

// A process is a worker as its supervisor sees it.
type process struct {
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	says  chan string // closed when it has ended
	ended chan error  // has one
}

// startProcess starts a worker, and returns when it works.
func startProcess(j job) (*process, error) {
	description, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	said, err := os.OpenFile(filepath.Join(j.Dir, "stderr-"+j.Process), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = said.Close() }()
	p := &process{name: j.Process, cmd: exec.Command(program), says: make(chan string, 100), ended: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), jobVariable+"="+string(description))
	p.cmd.Stderr = said
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
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.says <- lines.Text()
		}
		close(p.says)
		p.ended <- p.cmd.Wait()
	}()
	if p.hear(patience) != ready {
		return nil, fmt.Errorf("%s did not start: see its stderr", j.Process)
	}
	return p, nil
}

// hear returns the next line that the process says, if it says one in time.
func (p *process) hear(within time.Duration) string {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case line := <-p.says:
		return line
	case <-timer.C:
		return ""
	}
}

func (p *process) tell(order string) { _, _ = fmt.Fprintln(p.in, order) }

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// buried waits for the end of a process that was killed.
func (p *process) buried() error {
	err := <-p.ended
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if err == nil || !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		return fmt.Errorf("%s was not killed, but: %v", p.name, p.cmd.ProcessState)
	}
	return nil
}

// retire lets a process end in peace. One that does not is a violation: it has
// not written down that it ended.
func (p *process) retire() error {
	_ = p.in.Close()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(drainLimit + 10*time.Second):
		p.signal(syscall.SIGKILL)
		return errors.Join(fmt.Errorf("%s did not end", p.name), <-p.ended)
	}
}
