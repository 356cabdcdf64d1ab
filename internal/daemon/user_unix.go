//go:build unix

package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// As returns a function that makes a command run as a user that may start a server. That
// is the user of this process. If this process is root, it is the user called name, and
// As makes that user the owner of dir. The error is [ErrCannot] if there is no such user.
func As(name, dir string) (become func(*exec.Cmd), err error) {
	// The command has its own process group, so that a ^C at the terminal reaches only
	// this process. The server stops when this process ends.
	attr := syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 {
		u, err := user.Lookup(name)
		if err != nil {
			return nil, fmt.Errorf("%w: root may not start it, and there is no other user for it: %w", ErrCannot, err)
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			return nil, err
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return func(cmd *exec.Cmd) { cmd.SysProcAttr = &attr }, nil
}

// OwnGroup makes cmd run in its own process group.
func OwnGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// TempDir returns the parent directory for a server's directory. It is not os.TempDir,
// which the server's user may be unable to access, and which may be too long for the path
// of a socket, about a hundred bytes.
func TempDir() string { return "/tmp" }
