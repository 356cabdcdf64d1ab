package client

import (
	"fmt"
	"runtime/debug"
)

// A PanicError is a panic of a client's method, or of a hook or a dialer that it
// calls, as the error of that call.
type PanicError struct {
	Value any    // what the method panicked with
	Stack []byte // the stack of the goroutine when it panicked
}

// Panicked returns the error for what recover returned. It is to be called by the
// function that recovers, so that Stack has the place of the panic.
func Panicked(value any) *PanicError {
	return &PanicError{Value: value, Stack: debug.Stack()}
}

// Call calls f, which calls methods of a client, and returns f's error. If f
// panics, Call returns a [*PanicError].
func Call(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(p)
		}
	}()
	return f()
}

// Error returns the value and the stack.
func (e *PanicError) Error() string {
	return fmt.Sprintf("the Redis client panicked: %v\n\n%s", e.Value, e.Stack)
}

// Unwrap returns the value if that is an error, else nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}
