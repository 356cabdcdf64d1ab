package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// A hog is a fetch that ignores its context until open is called.
type hog struct {
	gate chan struct{}

	mu        sync.Mutex
	now, most int
}

func newHog() *hog { return &hog{gate: make(chan struct{})} }

func (h *hog) open() { close(h.gate) }

func (h *hog) count(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now += n
	h.most = max(h.most, h.now)
}

func (h *hog) running() (now, most int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now, h.most
}

func (h *hog) fetch(context.Context, string) (string, error) {
	h.count(1)
	defer h.count(-1)
	<-h.gate
	return "v", nil
}

func (h *hog) fetchMany(ctx context.Context, keys []string) (map[string]string, error) {
	v, err := h.fetch(ctx, "")
	found := make(map[string]string)
	for _, key := range keys {
		found[key] = v
	}
	return found, err
}

// permitted returns a loader with n permits, and a FetchTimeout of a second.
func permitted(t *testing.T, r redistest.Redis, n int, change ...func(*options)) loader {
	t.Helper()
	return newLoader(t, r.Backend(), append([]func(*options){func(opt *options) {
		opt.MaxFetches, opt.FetchTimeout, opt.RedisTimeout = n, time.Second, 100*time.Millisecond
	}}, change...)...)
}

// A fetch that ignores its context holds its permit until it returns, even if its callers left,
// its FetchTimeout passed and its lease ended.
func TestAFetchHoldsItsPermitUntilItReturns(t *testing.T) {
	const limit, many = 2, 40
	nth := func(i int) string { return fmt.Sprint("k", i) }
	for name, test := range map[string]struct {
		key   func(i int) string
		limit int
		down  bool // Redis
		batch bool
	}{
		"many keys":          {key: nth, limit: limit},
		"one key":            {key: func(int) string { return "k" }, limit: limit},
		"redis unavailable":  {key: nth, limit: limit, down: true},
		"batches":            {key: nth, limit: limit, batch: true},
		"batches of one key": {key: func(int) string { return "k" }, limit: limit, batch: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, h := redistest.Bubble(t), newHog()
				l := permitted(t, r, test.limit)
				if test.down {
					r.Kill()
				}
				for i := range many {
					ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
					if i%2 == 0 {
						ctx = t.Context() // ends by FetchTimeout
					}
					began, err := time.Now(), error(nil)
					if test.batch {
						_, err = l.GetMany(ctx, []string{test.key(i)}, h.fetchMany)
					} else {
						_, err = l.Get(ctx, test.key(i), h.fetch)
					}
					cancel()
					if took := time.Since(began); err == nil || took > 5*time.Second {
						t.Fatalf("Get %d returned %v after %v", i, err, took)
					}
				}
				if now, most := h.running(); now != test.limit || most != test.limit {
					t.Errorf("%d fetches run, at most %d at once; want %d", now, most, test.limit)
				}
				h.open()
				if test.down {
					r.Restart()
				}
				synctest.Wait()
				if v, err := l.Get(t.Context(), "after", h.fetch); v != "v" || err != nil {
					t.Errorf("once the fetches have returned, Get = %q, %v", v, err)
				}
			})
		})
	}
}

// Every permit is held by a fetch that ignores its context. A Get without a deadline still ends.
func TestAGetWithoutAPermitEndsWithErrFetchTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, h := redistest.Bubble(t), newHog()
		l := permitted(t, r, 1)
		for _, key := range []string{"k", "k", "other"} {
			_, err := l.Get(t.Context(), key, h.fetch)
			if own, ok := errors.AsType[*fetchonce.Error](err); !ok || own.Op != "fetch" || !errors.Is(err, fetchonce.ErrFetchTimeout) {
				t.Errorf("Get of %q returned %v, want an *Error with ErrFetchTimeout", key, err)
			}
		}
		if _, most := h.running(); most != 1 {
			t.Errorf("%d fetches at once", most)
		}
		h.open()
		synctest.Wait()
	})
}

// A Get waits for a permit longer than FetchTimeout, as long as other fetches end meanwhile.
func TestAGetWaitsForAPermitWhileFetchesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := permitted(t, redistest.Bubble(t), 1)
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				_, err := l.Get(t.Context(), fmt.Sprint("k", i), func(context.Context, string) (string, error) {
					time.Sleep(900 * time.Millisecond)
					return "v", nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

// A fetch yields its permit to the fetch of its own Get, and its context ends
// meanwhile. It continues, so it counts again before another load fetches.
func TestAFetchThatYieldedItsPermitCountsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := permitted(t, redistest.Bubble(t), 1, func(opt *options) { opt.FetchTimeout = fetchonce.Off })
		outer, inner, last := newHog(), newHog(), newHog()
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			_, _ = l.Get(ctx, "outer", func(ctx context.Context, key string) (string, error) {
				_, _ = l.Get(ctx, "inner", inner.fetch)
				return outer.fetch(ctx, key)
			})
		}()
		synctest.Wait()
		leave()
		synctest.Wait()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = l.Get(t.Context(), "last", last.fetch)
		}()
		synctest.Wait()
		inner.open()
		synctest.Wait()
		if out, _ := outer.running(); out != 1 {
			t.Fatalf("%d outer fetches run, want 1", out)
		}
		if now, _ := last.running(); now != 0 {
			t.Error("two fetches at once: the outer one has no permit")
		}
		outer.open()
		last.open()
		<-done
	})
}
