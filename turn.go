package fetchonce

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// A turn is one of MaxFetches, which a run has for its fetch.
//
// A fetch that waits for another fetch of the same loader, by a Get of another
// key, does not count meanwhile: else such fetches could have all turns, and each
// wait for one.
type turn struct {
	turns *semaphore.Weighted

	mu   sync.Mutex
	away int  // Gets of the fetch that wait
	held bool // it counts
	over bool // the run has given it back
}

// turnOf is the key under which the context of a fetch has its turn.
type turnOf struct{ loader any }

// lend lets another fetch have the turn while a Get of this one waits.
func (t *turn) lend() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.away++
	t.free()
}

// takeBack waits for a turn again once no Get waits. If ctx ends first, the fetch
// goes on without.
func (t *turn) takeBack(ctx context.Context) {
	if !t.back() || t.turns.Acquire(ctx, 1) != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held || t.over || t.away > 0 { // things have changed meanwhile
		t.turns.Release(1)
		return
	}
	t.held = true
}

// back notes the end of a Get, and reports whether the fetch now counts again.
func (t *turn) back() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.away--
	return t.away == 0 && !t.held && !t.over
}

// giveBack ends the turn.
func (t *turn) giveBack() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	t.free()
}

// free lets the next one fetch. The caller holds t.mu.
func (t *turn) free() {
	if t.held {
		t.held = false
		t.turns.Release(1)
	}
}
