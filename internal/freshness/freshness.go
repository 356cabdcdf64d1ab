// Package freshness decides how long a value is kept and whether a stored value may be returned.
// The loader uses it.
//
// [Rules] decide by a value's header and its age. Only early refresh and jitter are random. [Clock]
// estimates the clock of the Redis server. The package sends nothing to Redis.
//
// The states of a value follow each other. RFC 5861 has the terms.
//
//	0 ───── TTL ──── TTL + StaleWhileRevalidate ──── TTL + StaleIfError ────►
//	  Fresh      Stale                        Fallback               Expired
//
// A fresh value is Early for a caller that XFetch selects: this caller refreshes it. There is a
// Fallback only if StaleIfError is longer than StaleWhileRevalidate.
package freshness

import (
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

// The bounds of a TTL.
const (
	Least   = time.Millisecond
	Longest = 100 * 365 * 24 * time.Hour
)

// Rules are the options of a Loader that decide on freshness. A zero is off.
type Rules struct {
	TTL                  time.Duration
	NotFoundTTL          time.Duration
	Jitter               float64 // the largest share that is taken off a TTL
	StaleWhileRevalidate time.Duration
	StaleIfError         time.Duration
	EarlyRefresh         float64 // beta of XFetch
}

// A State says what may be done with a stored value.
type State int

// The states.
const (
	Fresh    State = iota // it is returned
	Early                 // it is returned, and this caller refreshes it
	Stale                 // it is returned at once, and refreshed in the background
	Fallback              // it is returned if the fetch fails
	Expired               // it is not returned
)

// Judge returns the state of a value by its age. If a value is kept no longer than it is fresh, its
// age does not matter: Redis removes it at its end. The caller checks for a value that outlives its
// Keep.
func (r *Rules) Judge(h envelope.Header, age time.Duration) State {
	switch {
	case age < h.Fresh || h.Keep <= h.Fresh:
		if r.IsEarly(h, age) {
			return Early
		}
		return Fresh
	case age-h.Fresh < r.StaleWhileRevalidate:
		return Stale
	case age-h.Fresh < r.StaleIfError:
		return Fallback
	}
	return Expired
}

// IsEarly decides by XFetch whether a caller refreshes a value that is still fresh: the more
// likely, the longer its fetch took and the less time it has left. See Vattani, Chierichetti and
// Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.
func (r *Rules) IsEarly(h envelope.Header, age time.Duration) bool {
	if r.EarlyRefresh == 0 {
		return false
	}
	return float64(h.Cost)*r.EarlyRefresh*rand.ExpFloat64() >= float64(h.Fresh-age) // ExpFloat64 is -ln(random)
}

// Lifetime returns for how long a value, or an absence, is fresh and is kept. own is the TTL that
// the fetch has set, or 0. Both results are 0 for a value that is not to be stored.
func (r *Rules) Lifetime(kind envelope.Kind, own time.Duration) (fresh, keep time.Duration) {
	ttl, extra := r.TTL, max(r.StaleWhileRevalidate, r.StaleIfError)
	if kind == envelope.NotFound {
		ttl, extra = r.NotFoundTTL, 0
	}
	if own != 0 {
		ttl = own
	}
	if r.TTL == 0 || ttl < Least || ttl > Longest {
		return 0, 0
	}
	fresh = r.jitter(ttl)
	return fresh, fresh + extra
}

// jitter takes a random share off a TTL, so that values that were stored together do not
// end together.
func (r *Rules) jitter(ttl time.Duration) time.Duration {
	return max(ttl-time.Duration(rand.Float64()*r.Jitter*float64(ttl)), min(ttl, Least))
}

// A Clock estimates the clock of the Redis server, which stamps all values. Its zero value is
// the clock of this process.
type Clock struct {
	ahead atomic.Int64 // by how many ns the server's clock is ahead of ours
}

// Learn takes the server's time from the answer to a request that was sent at sent. It assumes that
// the server read its clock halfway between then and now. A zero time is ignored.
func (c *Clock) Learn(server, sent time.Time) {
	if server.IsZero() {
		return
	}
	took := time.Since(sent)
	c.ahead.Store(int64(server.Sub(sent.Round(0).Add(took / 2))))
}

// Now returns the server's time.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// Age returns how long ago a value was created, and 0 for one of the future.
func (c *Clock) Age(h envelope.Header) time.Duration {
	return max(c.Now().Sub(time.UnixMilli(h.Created)), 0)
}
