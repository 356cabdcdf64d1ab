package fetchonce_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A caller may change its value if Clone is set. The fetch that replaces the value still has
// it as its Old.
func TestCallerAndFetchDoNotShareTheOldValue(t *testing.T) {
	type options = fetchonce.Options[[]int]
	for name, change := range map[string]func(*options){
		"stale":    func(o *options) { o.StaleWhileRevalidate = time.Hour },
		"fallback": func(o *options) { o.StaleIfError, o.SoftTimeout = time.Hour, time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				opt := options{Prefix: "test", TTL: time.Minute, Jitter: fetchonce.Off, Clone: slices.Clone[[]int], Logger: slog.New(slog.DiscardHandler)}
				change(&opt)
				l, err := fetchonce.New(r.Client(), opt)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				if err := l.Set(t.Context(), "k", []int{1}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Minute)

				changed, old := make(chan struct{}), make(chan int, 1)
				got, err := l.Load(t.Context(), "k", func(_ context.Context, f *fetchonce.Fetch[[]int]) ([]int, error) {
					<-changed
					old <- f.Old.Value[0]
					return []int{3}, nil
				})
				if err != nil || !got.Stale {
					t.Fatalf("Load = %+v, %v; want the stale value", got, err)
				}
				got.Value[0] = 2
				close(changed)
				if v := <-old; v != 1 {
					t.Errorf("the fetch has the value %d of its caller as Old, want 1", v)
				}
			})
		})
	}
}

// A hangingStore ignores the contexts of its Lookups, which take as long as it says.
type hangingStore struct{ takes time.Duration }

func (s hangingStore) Lookup(context.Context, string) (string, error) {
	time.Sleep(s.takes)
	return "", fetchonce.ErrNotFound
}

func (s hangingStore) Create(_ context.Context, _, v string) (string, error) { return v, nil }

// A Lookup ignores its context, and returns after the load has lost its lease and goes on
// without the old value. The fetch that follows the Lookup has the old value of its start.
func TestLateFetchKeepsItsOldValue(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, aging(func(opt *options) {
			opt.StaleWhileRevalidate, opt.FetchTimeout = time.Hour, time.Second
			opt.Store = hangingStore{3 * time.Second}
		}))
		other := newLoader(t, r)
		testkit.Set(t, l, "k", "old")
		time.Sleep(2 * time.Minute)
		olds := make(chan *fetchonce.Result[string], 10)
		got, err := l.Load(t.Context(), "k", func(_ context.Context, f *fetchonce.Fetch[string]) (string, error) {
			olds <- f.Old
			return "", errors.New("too late")
		})
		if got.Value != "old" || err != nil {
			t.Fatalf("Load = %+v, %v; want the stale value", got, err)
		}
		time.Sleep(time.Millisecond)
		if err := other.Delete(t.Context(), "k"); err != nil { // it ends the lease
			t.Fatal(err)
		}
		if old := <-olds; old == nil || old.Value != "old" {
			t.Errorf("the first fetch has Old = %v", old)
		}
		if old := <-olds; old != nil {
			t.Errorf("the second fetch, after the Delete, has Old = %v", old)
		}
	})
}
