// Package guard turns a panic of a user's Redis client into an error.
//
// A client calls its hooks and its dialer, which are the user's code. fetchonce calls some
// methods of a client on goroutines of its own, where a panic would end the process.
package guard

import (
	"fmt"
	"runtime/debug"
)

// A PanicError is the error of a call during which the client, a hook or a dialer panicked.
type PanicError struct {
	Value any    // the argument of panic
	Stack []byte // the stack of the goroutine when it panicked
}

// Panicked returns a PanicError for a value that recover returned. The function that recovers
// calls it, so that Stack shows the place of the panic.
func Panicked(value any) *PanicError {
	return &PanicError{Value: value, Stack: debug.Stack()}
}

// Call calls f, which calls methods of a client, and returns the error of f. If f panics,
// Call returns a [*PanicError].
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

// Unwrap returns Value if it is an error, and nil otherwise.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}
