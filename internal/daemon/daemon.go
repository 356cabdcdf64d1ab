// Package daemon runs a database server for tests. The server runs as a user that may
// start it, and ends when this process ends.
//
// A server is a child of a small shell script, which waits for the end of a pipe that
// this process holds open. A parent-death signal of the kernel is no alternative: it
// depends on a thread of the parent, exists on Linux only, and removes no files.
//
// Package daemon knows no particular server. Packages pgtest and mariadbtest use it.
package daemon

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// ErrCannot reports that this process cannot start a server on this machine.
var ErrCannot = errors.New("daemon: cannot start a server here")

// patience is how long a server may take to start or to stop.
const patience = time.Minute

//go:embed server.sh
var script string

// A Daemon is a running server. Its methods are safe for concurrent use.
type Daemon struct {
	stdin io.Closer
	ended chan struct{} // closed when the script has ended
}

// Options describe how to run a server.
type Options struct {
	Dir    string          // the server's directory; its log is in it
	Remove bool            // remove Dir when the server ends
	As     func(*exec.Cmd) // the result of the function As
	Signal string          // ends the server and its connections, such as "TERM"
	Ready  func() bool     // reports whether the server takes connections
}

// Start runs a server and returns when it is ready. If it fails to get ready, Start ends
// it, and removes Dir if Options.Remove is set.
func Start(opt Options, program string, args ...string) (*Daemon, error) {
	files := "keep"
	if opt.Remove {
		files = "remove"
	}
	cmd := Command("/bin/sh", append([]string{"-c", script, "server.sh", opt.Dir, files, opt.Signal, program}, args...)...)
	opt.As(cmd)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &Daemon{stdin: stdin, ended: make(chan struct{})}
	go func() { // ends with the script
		_ = cmd.Wait()
		close(d.ended)
	}()
	if err := d.await(opt.Ready); err != nil {
		said, _ := os.ReadFile(filepath.Join(opt.Dir, "log")) // before Stop removes it
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, bytes.TrimSpace(said)), d.Stop())
	}
	return d, nil
}

func (d *Daemon) await(ready func() bool) error {
	for deadline := time.Now().Add(patience); !ready(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("the server is not ready after %v", patience)
		}
		select {
		case <-d.ended:
			return errors.New("the server ended at once")
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// Stop ends the server and its clients' connections, and returns when the server has
// ended. A second Stop does nothing.
func (d *Daemon) Stop() error {
	_ = d.stdin.Close()
	select {
	case <-d.ended:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("the server has not stopped after %v", patience)
	}
}

// Command is exec.Command with PATH and LC_ALL as the only environment variables.
// Database programs read many others.
func Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Dir = "/" // The server's user may lack access to this process's directory.
	return cmd
}

// Run runs cmd. Its error contains the output of cmd.
func Run(cmd *exec.Cmd) error {
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, bytes.TrimSpace(said))
	}
	return nil
}
