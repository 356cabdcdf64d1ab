package flight

import (
	"errors"
	"runtime/debug"
)

// ErrGoexit is the error of a load that called runtime.Goexit.
var ErrGoexit = errors.New("runtime.Goexit was called")

// A PanicError is the error of a load that panicked.
type PanicError struct {
	Value any
	Stack []byte
}

func (p *PanicError) Error() string { return "panic" }

// Protect calls f and passes its result to done. A panic of f becomes a [*PanicError] and a
// Goexit becomes [ErrGoexit]. done always runs. After a Goexit, Protect does not return: the
// goroutine ends once done has returned.
func Protect[V any](f func() (V, error), done func(V, error)) {
	var v V
	err := ErrGoexit
	defer func() { done(v, err) }()
	defer func() {
		// After a Goexit, recover returns nil and err is still ErrGoexit.
		if r := recover(); r != nil {
			err = &PanicError{Value: r, Stack: debug.Stack()}
		}
	}()
	v, err = f()
}

// IsCrash reports whether the error of a load is a panic or a Goexit.
func IsCrash(err error) bool {
	_, panicked := errors.AsType[*PanicError](err)
	return panicked || errors.Is(err, ErrGoexit)
}
