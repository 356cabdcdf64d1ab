package fetchonce

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Where an old value is at hand, a fetch that failed is not repeated at once: the
// longer the value has been old, the longer is the pause. So it grows while an
// origin stays down, without anybody having to count, and all processes agree.
const (
	shortestPause = time.Second
	longestPause  = 30 * time.Second
	pausePerStale = 4 // the pause is what the value has been old, over this
)

// A pausedError is the failure of an earlier fetch, which is shared with those who
// have an old value.
type pausedError struct{ err error }

func (e *pausedError) Error() string { return e.err.Error() }
func (e *pausedError) Unwrap() error { return e.err }

// pause returns how long to let the origin be.
func (r *run[V]) pause() time.Duration {
	pause := min(max(r.staleFor/pausePerStale, shortestPause), longestPause)
	return pause*3/4 + rand.N(pause/2)
}

// pauseFor makes this process pause for a key, if there is an old value.
func (r *run[V]) pauseFor(pause time.Duration) {
	if r.old != nil {
		r.pauses.set(r.k.user, pause)
	}
}

// mostPauses bounds the keys for which a process remembers a pause. It only saves
// asking Redis, which knows of the pause too.
const mostPauses = 10_000

// A pauses is the keys for which this process knows of a pause.
type pauses struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (p *pauses) set(key string, pause time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.until == nil || len(p.until) >= mostPauses {
		p.until = make(map[string]time.Time)
	}
	p.until[key] = time.Now().Add(pause)
}

func (p *pauses) active(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, ok := p.until[key]
	if ok && !time.Now().Before(until) {
		delete(p.until, key)
		ok = false
	}
	return ok
}
