//go:build unix

package redistest

import "syscall"

// SignalStop stops a process until it receives SignalContinue.
const (
	SignalStop     = syscall.SIGSTOP
	SignalContinue = syscall.SIGCONT
)
