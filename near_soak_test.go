package fetchonce_test

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// travel is how long after a Delete elsewhere an old copy may still be used, on a
// machine that gets around to everything at once.
const travel = 50 * time.Millisecond

// A history is the versions that one key's source has had.
type history struct {
	version atomic.Int64 // of now

	mu   sync.Mutex
	gone []gone // versions that are no longer allowed
}

// gone says that a Delete has returned, in a process, before which the source had
// been changed to this version.
type gone struct {
	version int64
	at      time.Time
	process int
}

// floor returns the least version that a Get which begins now may return in the
// process where it was changed.
func (h *history) floor(process int) (least int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.gone {
		if g.process == process {
			least = max(least, g.version)
		}
	}
	return least
}

// since returns how long a version had been gone at a time.
func (h *history) since(version int64, at time.Time) (stale time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.gone {
		if g.version > version && g.at.Before(at) {
			stale = max(stale, at.Sub(g.at))
		}
	}
	return stale
}

// Four processes have near copies of the keys that they change all the time. No
// Get returns what a Delete that had returned in the same process has removed,
// nor what one elsewhere had removed 50 ms before. FETCHONCE_SOAK is for how long
// (the default is 2 s).
func TestNearSoak(t *testing.T) {
	length := 2 * time.Second
	if s := os.Getenv("FETCHONCE_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	redistest.EachReal(t, func(t *testing.T, r backend) {
		const processes, keys, readers = 4, 8, 4
		var (
			histories [keys]history
			gets      atomic.Int64
			near      atomic.Int64
			stale     atomic.Int64
			longest   atomic.Int64 // staleness of another process's change
			lag       atomic.Int64 // by which this machine is late
			all       sync.WaitGroup
		)
		end := time.Now().Add(length)
		all.Go(func() {
			for time.Now().Before(end) {
				before := time.Now()
				time.Sleep(time.Millisecond)
				lag.Store(max(lag.Load(), int64(time.Since(before)-time.Millisecond)))
			}
		})
		for p := range processes {
			l := newLoader(t, r, withNear)
			for range readers {
				all.Go(func() {
					for time.Now().Before(end) {
						k := rand.N(keys)
						h := &histories[k]
						least := h.floor(p)
						began := time.Now()
						got, err := l.Load(t.Context(), strconv.Itoa(k), func(context.Context, *fetchonce.Fetch[string]) (string, error) {
							return strconv.FormatInt(h.version.Load(), 10), nil
						})
						if err != nil {
							t.Error(err)
							return
						}
						gets.Add(1)
						if got.Source == fetchonce.SourceNear {
							near.Add(1)
						}
						version, _ := strconv.ParseInt(got.Value, 10, 64)
						if version < least {
							t.Errorf("version %d from %v after a Delete in the same process had removed what was before %d", version, got.Source, least)
							return
						}
						if s := h.since(version, began); s > 0 {
							stale.Add(1)
							longest.Store(max(longest.Load(), int64(s)))
						}
						if rand.N(100) == 0 {
							time.Sleep(time.Millisecond)
						}
					}
				})
			}
			all.Go(func() {
				for time.Now().Before(end) {
					k := rand.N(keys)
					h := &histories[k]
					version := h.version.Add(1)
					if err := l.Delete(t.Context(), strconv.Itoa(k)); err != nil {
						t.Error(err)
						return
					}
					h.mu.Lock()
					h.gone = append(h.gone, gone{version, time.Now(), p})
					if len(h.gone) > 1000 {
						h.gone = h.gone[500:]
					}
					h.mu.Unlock()
					time.Sleep(5*time.Millisecond + rand.N(20*time.Millisecond))
				}
			})
		}
		all.Wait()
		allowed := travel + 2*time.Duration(lag.Load())
		t.Logf("%d Gets, %d of them near; %d were old, by %v at most; the machine was late by up to %v",
			gets.Load(), near.Load(), stale.Load(), time.Duration(longest.Load()), time.Duration(lag.Load()))
		if got := time.Duration(longest.Load()); got > allowed {
			t.Errorf("an old copy was used %v after its Delete elsewhere, more than %v", got, allowed)
		}
		if near.Load() == 0 {
			t.Error("no copy was ever used")
		}
	})
}

// A hit allocates nothing, for usual keys.
func TestNearHitDoesNotAllocate(t *testing.T) {
	r := redistest.Server(t).Backend()
	l := newLoader(t, r, withNear)
	set(t, l, "user:42", "v")
	warmNear(t, r, l, "user:42", "v")
	fetch := func(context.Context, string) (string, error) { return "fetched", nil }
	if n := testing.AllocsPerRun(1000, func() { _, _ = l.Get(t.Context(), "user:42", fetch) }); n != 0 {
		t.Errorf("a hit makes %v allocations", n)
	}
	if _, from := source(t, l, "user:42"); from != fetchonce.SourceNear {
		t.Errorf("it came from %v", from)
	}
}
