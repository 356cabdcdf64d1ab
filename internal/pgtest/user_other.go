//go:build !unix

package pgtest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

func unprivileged(string) (become func(*exec.Cmd), err error) {
	return nil, fmt.Errorf("%w: it is not started on %s", ErrNotInstalled, runtime.GOOS)
}

func tempDir() string { return os.TempDir() }
