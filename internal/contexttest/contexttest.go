// Package contexttest has a context whose methods call back.
//
// A context is user code: its methods may do anything, also call the object that
// was given the context. A context of a lease does so: it ends itself when the lease is
// over. So no package calls a method of a context while it holds a mutex.
package contexttest

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// A Context calls Called from each of its methods, and then the embedded context.
type Context struct {
	context.Context
	Called func()
}

// Deadline calls Called.
func (c *Context) Deadline() (time.Time, bool) {
	c.Called()
	return c.Context.Deadline()
}

// Done calls Called.
func (c *Context) Done() <-chan struct{} {
	c.Called()
	return c.Context.Done()
}

// Err calls Called.
func (c *Context) Err() error {
	c.Called()
	return c.Context.Err()
}

// Value calls Called.
func (c *Context) Value(key any) any {
	c.Called()
	return c.Context.Value(key)
}

// IsFree reports whether mu can be locked. Other goroutines may hold it for a moment:
// IsFree tries until they have run many times. It returns false when the goroutine
// that calls it holds mu.
func IsFree(mu *sync.Mutex) bool {
	for range 200_000 {
		if mu.TryLock() {
			mu.Unlock()
			return true
		}
		runtime.Gosched()
	}
	return false
}
