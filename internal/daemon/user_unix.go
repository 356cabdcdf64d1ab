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

// As returns what to do to a command that is to run as a user who may start a
// server, and makes dir that user's: ours, or, if we are root, the user of that
// name. The error is [ErrCannot] if there is no such user.
func As(name, dir string) (become func(*exec.Cmd), err error) {
	// A group of its own: a ^C at the terminal is for us, and the server is
	// stopped when we end.
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

// OwnGroup has cmd run in a process group of its own.
func OwnGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// TempDir returns where to make a server's directory. It is not os.TempDir:
// that may be out of reach for the server's user, and too long for the path of
// a socket, which has a hundred bytes.
func TempDir() string { return "/tmp" }
