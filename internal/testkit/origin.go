package testkit

import (
	"context"
	"sync"
	"testing"
	"time"
)

// An Origin stands for the slow remote system. Its Fetch counts, and waits until the test gives
// an answer.
type Origin struct {
	t      *testing.T
	Began  chan *Call // receives each fetch when it starts
	Ignore bool       // if Fetch ignores that its context ends

	mu    sync.Mutex
	count int
}

// A Call is one fetch.
type Call struct {
	Ctx    context.Context
	Answer chan Reply
}

// A Reply is what a fetch returns.
type Reply struct {
	Value string
	Err   error
	do    func() // what Fetch does before it returns
}

// NewOrigin returns an Origin without a fetch.
func NewOrigin(t *testing.T) *Origin {
	t.Helper()
	return &Origin{t: t, Began: make(chan *Call, 10_000)}
}

// Fetch is a fetch of a Loader.
func (o *Origin) Fetch(ctx context.Context, _ string) (string, error) {
	o.mu.Lock()
	c := &Call{Ctx: ctx, Answer: make(chan Reply, 1)}
	o.count++
	o.mu.Unlock()
	o.Began <- c
	if o.Ignore {
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case a := <-c.Answer:
		if a.do != nil {
			a.do()
		}
		return a.Value, a.Err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Count returns how many fetches have started.
func (o *Origin) Count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

// Next waits for the next fetch to start.
func (o *Origin) Next() *Call {
	o.t.Helper()
	select {
	case c := <-o.Began:
		return c
	case <-time.After(time.Minute):
		o.t.Fatal("no fetch started")
		return nil
	}
}

// Want fails the test unless there were n fetches.
func (o *Origin) Want(n int) {
	o.t.Helper()
	if got := o.Count(); got != n {
		o.t.Errorf("%d fetches, want %d", got, n)
	}
}

// Returns makes the fetch return a value.
func (c *Call) Returns(value string) { c.Answer <- Reply{Value: value} }

// Fails makes the fetch return an error.
func (c *Call) Fails(err error) { c.Answer <- Reply{Err: err} }

// Does makes the fetch call a function, which may panic.
func (c *Call) Does(do func()) { c.Answer <- Reply{do: do} }
