package systemtest_test

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

var stressFor = flag.Duration("stress", 600*time.Millisecond, "how long each stress test runs")

// A truth is an origin whose values are version numbers, which only rise.
type truth struct {
	version  atomic.Int64 // the current version
	deleted  atomic.Int64 // the newest version whose Delete has returned
	fetching atomic.Int64 // fetches that run
}

var errOrigin = errors.New("the origin fails")

// fetch reads the version, waits, and returns it: the oldest value that it may return.
func (o *truth) fetch(ctx context.Context, longest time.Duration, fails bool) (string, error) {
	v := o.version.Load()
	select {
	case <-time.After(rand.N(longest)):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if fails && rand.N(20) == 0 {
		return "", errOrigin
	}
	return strconv.FormatInt(v, 10), nil
}

// A stress is several processes that get the same few keys all the time.
type stress struct {
	*testing.T
	loaders []loader
	truths  map[string]*truth
	keys    []string
	ctx     context.Context // ends when the test does
	running sync.WaitGroup

	gets, fetches, deletes atomic.Int64
}

func newStress(t *testing.T, r backend, change ...func(*options)) *stress {
	t.Helper()
	s := &stress{T: t, keys: []string{"a", "b", "c"}, truths: make(map[string]*truth)}
	for _, key := range s.keys {
		s.truths[key] = &truth{}
	}
	for range 4 {
		s.loaders = append(s.loaders, testkit.NewLoader(t, r, change...))
	}
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithTimeout(t.Context(), *stressFor)
	t.Cleanup(cancel)
	return s
}

// callers starts 25 callers in each process, which call get repeatedly.
func (s *stress) callers(get func(l loader, key string, o *truth)) {
	for _, l := range s.loaders {
		for range 25 {
			s.running.Go(func() {
				for s.ctx.Err() == nil {
					key := s.keys[rand.N(len(s.keys))]
					get(l, key, s.truths[key])
					s.gets.Add(1)
				}
			})
		}
	}
}

// every calls do repeatedly, with about this pause between calls.
func (s *stress) every(pause time.Duration, do func()) {
	s.running.Go(func() {
		for s.ctx.Err() == nil {
			time.Sleep(pause/2 + rand.N(pause))
			do()
		}
	})
}

// write makes a new version and deletes the stored one.
func (s *stress) write() {
	key := s.keys[rand.N(len(s.keys))]
	o, l := s.truths[key], s.loaders[rand.N(len(s.loaders))]
	v := o.version.Add(1)
	if l.Delete(s.Context(), key) != nil {
		return // the Delete may have had no effect
	}
	s.deletes.Add(1)
	for {
		known := o.deleted.Load()
		if v <= known || o.deleted.CompareAndSwap(known, v) {
			return
		}
	}
}

// end waits until every caller has returned.
func (s *stress) end() {
	s.Helper()
	ended := make(chan struct{})
	go func() {
		s.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(*stressFor + 20*time.Second):
		s.Fatal("a caller never returned")
	}
	s.Logf("%d Gets, %d fetches, %d Deletes", s.gets.Load(), s.fetches.Load(), s.deletes.Load())
}

// Values expire all the time. A key never has two fetches at once.
func TestOneFetchAtATimeUnderStress(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		s := newStress(t, r, func(opt *options) { opt.TTL, opt.Jitter = 10*time.Millisecond, 0.5 })
		s.callers(func(l loader, key string, o *truth) {
			_, err := l.Get(t.Context(), key, func(ctx context.Context, _ string) (string, error) {
				if o.fetching.Add(1) > 1 {
					t.Errorf("two fetches of %s at once", key)
				}
				defer o.fetching.Add(-1)
				s.fetches.Add(1)
				return o.fetch(ctx, 5*time.Millisecond, true)
			})
			if err != nil && !strings.Contains(err.Error(), errOrigin.Error()) {
				t.Error(err)
			}
		})
		s.end()
		if s.fetches.Load() < 10 {
			t.Error("too few calls: the test shows nothing")
		}
	})
}

// Callers leave, fetches fail and connections are killed. A Get that began after a Delete had
// returned never returns an older value.
func TestNoStaleValueUnderStress(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		s := newStress(t, r)
		admin := r.Client()
		s.callers(func(l loader, key string, o *truth) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if rand.N(10) == 0 {
				time.AfterFunc(rand.N(5*time.Millisecond), cancel)
			}
			least := o.deleted.Load()
			text, err := l.Get(ctx, key, func(ctx context.Context, _ string) (string, error) {
				s.fetches.Add(1)
				return o.fetch(ctx, 5*time.Millisecond, true)
			})
			if err != nil {
				if ctx.Err() == nil && !strings.Contains(err.Error(), errOrigin.Error()) {
					t.Error(err)
				}
				return
			}
			if v, err := strconv.ParseInt(text, 10, 64); err != nil || v < least {
				t.Errorf("%s = %q, but version %d was deleted before", key, text, least)
			}
		})
		s.every(15*time.Millisecond, s.write)
		s.every(200*time.Millisecond, func() {
			_ = testkit.KillClients(t.Context(), admin, []string{"normal", "pubsub"}[rand.N(2)])
		})
		s.end()
		if s.deletes.Load() < 3 || s.gets.Load() < 200 {
			t.Error("too few calls: the test shows nothing")
		}
		testkit.WantNoKeyForEver(t, r)
	})
}
