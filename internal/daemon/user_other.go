//go:build !unix

package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// As returns [ErrCannot].
func As(string, string) (become func(*exec.Cmd), err error) {
	return nil, fmt.Errorf("%w: it is not started on %s", ErrCannot, runtime.GOOS)
}

// OwnGroup does nothing.
func OwnGroup(*exec.Cmd) {}

// TempDir returns the parent directory for a server's directory.
func TempDir() string { return os.TempDir() }
