//go:build unix

package main

import (
	"errors"
	"net"
	"syscall"
)

// setBacklog sets how many connections wait in a listener's accept queue.
func setBacklog(l *net.TCPListener, n int) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = syscall.Listen(int(fd), n) })
	return errors.Join(err, set)
}
