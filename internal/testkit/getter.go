package testkit

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
)

// An Outcome is the end of one Get.
type Outcome struct {
	Value    string
	Err      error
	Panicked any
}

// A Getter is one Get that has started.
type Getter struct {
	t    *testing.T
	Done chan Outcome // receives one Outcome
}

// Get starts a Get.
func Get(t *testing.T, ctx context.Context, l Loader, key string, o *Origin) *Getter {
	t.Helper()
	return GetWith(t, ctx, l, key, o.Fetch)
}

// GetWith starts a Get with a fetch of its own.
func GetWith(t *testing.T, ctx context.Context, l Loader, key string, fetch func(context.Context, string) (string, error)) *Getter {
	t.Helper()
	g := &Getter{t, make(chan Outcome, 1)}
	go func() {
		var out Outcome
		defer func() {
			out.Panicked = recover()
			g.Done <- out
		}()
		out.Value, out.Err = l.Get(ctx, key, fetch)
	}()
	return g
}

// Outcome waits until the Get has ended.
func (g *Getter) Outcome() Outcome {
	g.t.Helper()
	select {
	case out := <-g.Done:
		return out
	case <-time.After(2 * time.Minute):
		g.t.Fatal("a Get never returned")
		return Outcome{}
	}
}

// Want fails the test unless the Get returns a value.
func (g *Getter) Want(value string) {
	g.t.Helper()
	if out := g.Outcome(); out.Value != value || out.Err != nil || out.Panicked != nil {
		g.t.Errorf("Get = %q, %v, panic %v; want %q, nil", out.Value, out.Err, out.Panicked, value)
	}
}

// WantErr fails the test unless the Get returns an error.
func (g *Getter) WantErr(want error) {
	g.t.Helper()
	if out := g.Outcome(); !errors.Is(out.Err, want) {
		g.t.Errorf("Get = %q, %v; want error %v", out.Value, out.Err, want)
	}
}

// Returned reports whether the Get has returned.
func (g *Getter) Returned() bool { return len(g.Done) > 0 }

// WantRedisDown fails the test unless a Get failed because of Redis.
func WantRedisDown(t *testing.T, out Outcome) {
	t.Helper()
	if e, ok := errors.AsType[*fetchonce.Error](out.Err); !ok || e.Op != "read" && e.Op != "acquire" {
		t.Errorf("Get = %q, %v; want an *Error of Redis", out.Value, out.Err)
	}
}
