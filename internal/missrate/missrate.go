// Package missrate predicts whether a key is absent, from the recent lookups of all keys.
//
// While nearly all lookups miss, a Get skips its lookup and sends ACQUIRE, which also
// returns a stored value. That saves one of three round trips of a miss: 15 to 20 % of its time
// (docs/internals/design.md, "What does each mechanism for speed gain?").
package missrate

import "sync/atomic"

// A miss adds 1 and a hit subtracts hit. So the prediction is "absent" where fewer than
// about one lookup in nine hits.
const (
	absent = 24
	most   = 32
	hit    = 8
)

// A Rate counts misses, less hits. Its zero value predicts that keys are present. It is
// atomic and not exact: a lost count does no harm. At its bounds it is only read.
type Rate struct{ misses atomic.Int32 }

// Absent reports whether the next key is most likely absent.
func (r *Rate) Absent() bool { return r.misses.Load() >= absent }

// Miss counts a lookup that found nothing.
func (r *Rate) Miss() {
	if n := r.misses.Load(); n < most {
		r.misses.Store(n + 1)
	}
}

// Hit counts a lookup that found something.
func (r *Rate) Hit() {
	if n := r.misses.Load(); n > 0 {
		r.misses.Store(max(n-hit, 0))
	}
}

// Reset forgets all counts.
func (r *Rate) Reset() {
	if r.misses.Load() > 0 {
		r.misses.Store(0)
	}
}
