//go:build !unix

package redistest

import "syscall"

// No signal stops a process here. [Binary] skips the tests that would send one.
const (
	SignalStop     = syscall.Signal(-1)
	SignalContinue = syscall.Signal(-1)
)
