// Package backoff remembers the keys whose failed refresh must not be repeated yet.
//
// While an origin is down, callers receive a stale value, and only a few of them may fetch.
// The backoff of a key is a quarter of the time for which its value has been stale. So it
// grows without a counter, and all processes agree on it.
package backoff

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	shortest = time.Second
	longest  = 30 * time.Second
	share    = 4 // a backoff is a quarter of the time for which the value has been stale

	// Longest is an upper bound of the results of After.
	Longest = longest * 5 / 4

	maxKeys = 10_000 // Redis also stores the backoff: to forget one costs a command
)

// After returns the backoff after a failed refresh, with jitter. stale is how long the value has
// been stale.
func After(stale time.Duration) time.Duration {
	d := min(max(stale/share, shortest), longest)
	return d*3/4 + rand.N(d/2)
}

// Keys has the end of the backoff of each key. Its zero value is ready.
type Keys struct {
	mu    sync.Mutex
	until map[string]time.Time
}

// Set starts a backoff.
func (k *Keys) Set(key string, d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.until == nil || len(k.until) >= maxKeys {
		k.until = make(map[string]time.Time)
	}
	k.until[key] = time.Now().Add(d)
}

// Active reports whether the backoff of a key has not ended.
func (k *Keys) Active(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	until, ok := k.until[key]
	if ok && !time.Now().Before(until) {
		delete(k.until, key)
		ok = false
	}
	return ok
}
