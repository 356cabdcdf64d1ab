package fetchonce

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// permits limits the fetches of a loader that run at once to MaxFetches.
//
// A fetch holds its permit until its function returns. A fetch that ignores its
// context keeps the permit after its callers have left and its lease has ended.
type permits struct {
	free    *semaphore.Weighted
	timeout time.Duration // FetchTimeout; 0 for none
	began   time.Time     // freed counts from here
	freed   atomic.Int64  // when a permit was last released
}

func newPermits(n int, timeout time.Duration) *permits {
	return &permits{free: semaphore.NewWeighted(int64(n)), timeout: timeout, began: time.Now()}
}

// permitRecheck is how often acquire calls again.
const permitRecheck = time.Second

// errNoPermit is the error of a load that got no permit for FetchTimeout.
var errNoPermit = &Error{
	Op:  "fetch",
	Err: fmt.Errorf("every MaxFetches permit is held by a fetch that ignores its context: %w", ErrFetchTimeout),
}

// acquire waits for a permit. It calls again once a second, and returns no permit and
// no error when again returns true. Its error is the cause of ctx, or errNoPermit when
// no permit is released for FetchTimeout: then no fetch that holds one heeds its context.
func (p *permits) acquire(ctx context.Context, again func() bool) (*permit, error) {
	if p.free.TryAcquire(1) {
		return p.granted(), nil
	}
	waiting, leave := context.WithCancel(ctx)
	defer leave()
	acquired := make(chan error, 1)
	go func() { acquired <- p.free.Acquire(waiting, 1) }() // ends with waiting
	ticks := time.NewTicker(permitRecheck)
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
				stuck = errNoPermit
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

func (p *permits) granted() *permit {
	released, release := context.WithCancel(context.Background())
	return &permit{permits: p, released: released, end: release, held: true}
}

// isStuck reports that no permit was released for FetchTimeout, while a load has
// waited since began.
func (p *permits) isStuck(began time.Time) bool {
	idle := min(time.Since(began), time.Since(p.began)-time.Duration(p.freed.Load()))
	return p.timeout > 0 && idle >= p.timeout
}

func (p *permits) release() {
	p.freed.Store(int64(time.Since(p.began)))
	p.free.Release(1)
}

// A permit is one of MaxFetches. A run acquires it, and its fetch releases it.
//
// A fetch that Gets another key yields its permit while the Get waits. Otherwise such
// fetches could hold all permits, and each could wait for one.
type permit struct {
	permits  *permits
	released context.Context // ends with release
	end      context.CancelFunc

	mu   sync.Mutex
	gets int  // Gets of the fetch that wait
	held bool // it counts
	over bool // it was released
}

// permitOf is the key under which the context of a fetch has its permit.
type permitOf struct{ loader any }

// yieldPermit yields the permit of the fetch that calls with ctx, if a fetch does. The
// caller calls reacquire when its Get has ended.
func (l *Loader[V]) yieldPermit(ctx context.Context) (reacquire func()) {
	p, ok := ctx.Value(permitOf{l}).(*permit)
	if !ok {
		return func() {}
	}
	p.yield()
	return func() { p.reacquire(ctx) }
}

// yield lets another fetch have the permit while a Get of this one waits.
func (p *permit) yield() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gets++
	p.free()
}

// reacquire waits for a permit again once no Get waits. If ctx ends first, the fetch
// continues, and a goroutine waits for the permit in its place: until then one
// fetch more than MaxFetches runs.
func (p *permit) reacquire(ctx context.Context) {
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

// keep holds what was acquired, unless the fetch does not need it any more.
func (p *permit) keep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held || p.over || p.gets > 0 {
		p.permits.release()
		return
	}
	p.held = true
}

// getEnded notes the end of a Get, and reports whether the fetch needs its permit again.
func (p *permit) getEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gets--
	return p.gets == 0 && !p.held && !p.over
}

// release ends the permit. It may be called more than once, and on no permit at all.
func (p *permit) release() {
	if p == nil {
		return
	}
	p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.free()
}

// free lets another fetch have the permit. The caller holds p.mu.
func (p *permit) free() {
	if p.held {
		p.held = false
		p.permits.release()
	}
}
