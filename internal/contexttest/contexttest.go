// Package contexttest provides a context whose methods call a function of the test.
//
// A context is user code: its methods may do anything, also call the object that
// received the context. The context of a lease ends itself when the lease is over.
// So no package calls a method of a context while it holds a mutex.
package contexttest

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// A Context calls Called in each of its methods, and then the same method of the
// embedded context.
type Context struct {
	context.Context
	Called func()
}

// Deadline calls Called, and then Deadline of the embedded context.
func (c *Context) Deadline() (time.Time, bool) {
	c.Called()
	return c.Context.Deadline()
}

// Done calls Called, and then Done of the embedded context.
func (c *Context) Done() <-chan struct{} {
	c.Called()
	return c.Context.Done()
}

// Err calls Called, and then Err of the embedded context.
func (c *Context) Err() error {
	c.Called()
	return c.Context.Err()
}

// Value calls Called, and then Value of the embedded context.
func (c *Context) Value(key any) any {
	c.Called()
	return c.Context.Value(key)
}

// IsFree reports whether mu can be locked. Other goroutines may hold mu briefly, so IsFree
// tries 200,000 times and yields the processor in between. It returns false if the calling
// goroutine holds mu.
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
