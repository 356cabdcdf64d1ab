//go:build !unix

package main

import (
	"errors"
	"net"
)

func setBacklog(*net.TCPListener, int) error { return errors.ErrUnsupported }
