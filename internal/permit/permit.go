// Package permit limits how many fetches of a Loader run at once (Options.MaxFetches).
//
// A fetch holds its permit until its function returns. A fetch that ignores its context
// keeps the permit after its callers have left and its lease has ended.
//
// A fetch that Gets another key yields its permit while that Get waits. Otherwise such
// fetches could hold all permits, and each could wait for one.
package permit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// Permits are the permits of one Loader.
type Permits struct {
	free    *semaphore.Weighted
	timeout time.Duration // FetchTimeout; 0 for none
	began   time.Time     // freed is relative to it
	freed   atomic.Int64  // when a permit was last released
}

// New returns n permits. If the timeout is not 0, Acquire fails when no permit is released for
// that long.
func New(n int, timeout time.Duration) *Permits {
	return &Permits{free: semaphore.NewWeighted(int64(n)), timeout: timeout, began: time.Now()}
}

// recheck is how often Acquire calls again.
const recheck = time.Second

// ErrNone says that no permit was released for the timeout.
var ErrNone = errors.New("every MaxFetches permit is held by a fetch that ignores its context")

// Acquire waits for a permit. It calls again once a second. When again returns true, it
// returns neither a permit nor an error. Its error is the cause of ctx, or ErrNone when no
// permit is released for the timeout: then every permit is held by a fetch that ignores its
// context.
func (p *Permits) Acquire(ctx context.Context, again func() bool) (*Permit, error) {
	if p.free.TryAcquire(1) {
		return p.granted(), nil
	}
	waiting, leave := context.WithCancel(ctx)
	defer leave()
	acquired := make(chan error, 1)
	go func() { acquired <- p.free.Acquire(waiting, 1) }() // ends with waiting
	ticks := time.NewTicker(recheck)
	defer ticks.Stop()
	for began := time.Now(); ; {
		var stuck error
		select {
		case err := <-acquired:
			if err != nil {
				return nil, context.Cause(ctx)
			}
			return p.granted(), nil
		case <-ticks.C:
			if p.isStuck(began) {
				stuck = ErrNone
			} else if !again() {
				continue
			}
		}
		leave()
		if <-acquired == nil { // granted at the same moment
			return p.granted(), nil
		}
		return nil, stuck
	}
}

func (p *Permits) granted() *Permit {
	released, release := context.WithCancel(context.Background())
	return &Permit{permits: p, released: released, end: release, held: true}
}

// isStuck reports whether no permit was released for the timeout, and a load has waited since
// began for that long.
func (p *Permits) isStuck(began time.Time) bool {
	idle := min(time.Since(began), time.Since(p.began)-time.Duration(p.freed.Load()))
	return p.timeout > 0 && idle >= p.timeout
}

func (p *Permits) release() {
	p.freed.Store(int64(time.Since(p.began)))
	p.free.Release(1)
}

// A Permit is the right of one fetch to run.
type Permit struct {
	permits  *Permits
	released context.Context // ends with release
	end      context.CancelFunc

	mu   sync.Mutex
	gets int  // Gets of the fetch that wait
	held bool // it counts towards the limit
	over bool // Release was called
}

// of is the key of a context value: the Permit of an owner's fetch.
type of struct{ owner any }

// Context returns a context for a fetch that holds the permit. Yield finds the permit in it by the
// owner.
func (p *Permit) Context(ctx context.Context, owner any) context.Context {
	return context.WithValue(ctx, of{owner}, p)
}

// Yield yields the permit of the fetch to which ctx belongs, if it is one of the owner. The caller
// calls reacquire when its Get has ended.
func Yield(ctx context.Context, owner any) (reacquire func()) {
	p, ok := ctx.Value(of{owner}).(*Permit)
	if !ok {
		return func() {}
	}
	p.yield()
	return func() { p.reacquire(ctx) }
}

// yield gives the permit to other fetches while a Get of this fetch waits.
func (p *Permit) yield() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gets++
	p.free()
}

// reacquire waits for a permit when no Get of the fetch waits any more. If ctx ends first, the
// fetch continues, and a goroutine waits for the permit instead. Until it has the permit, one
// fetch more than MaxFetches runs.
func (p *Permit) reacquire(ctx context.Context) {
	switch {
	case !p.getEnded():
	case p.permits.free.Acquire(ctx, 1) == nil:
		p.keep()
	default:
		go func() {
			if p.permits.free.Acquire(p.released, 1) == nil {
				p.keep()
			}
		}()
	}
}

// keep keeps the acquired permit, or releases it if the fetch no longer needs it.
func (p *Permit) keep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held || p.over || p.gets > 0 {
		p.permits.release()
		return
	}
	p.held = true
}

// getEnded counts the end of a Get, and reports whether the fetch needs its permit again.
func (p *Permit) getEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gets--
	return p.gets == 0 && !p.held && !p.over
}

// Release ends the permit. It may be called more than once, and on nil.
func (p *Permit) Release() {
	if p == nil {
		return
	}
	p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.free()
}

// free gives the permit to other fetches. The caller holds p.mu.
func (p *Permit) free() {
	if p.held {
		p.held = false
		p.permits.release()
	}
}
