package fetchonce_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// Redis refuses connections. One caller's lookup fails after another caller has started to fetch.
// It came before that fetch, so it receives the fetched value.
func TestSlowFailedLookupDoesNotFetchAgain(t *testing.T) {
	calls := map[string]func(ctx context.Context, l loader, o *testkit.Origin) (string, error){
		"Get": func(ctx context.Context, l loader, o *testkit.Origin) (string, error) {
			return l.Get(ctx, "k", o.Fetch)
		},
		"Load": func(ctx context.Context, l loader, o *testkit.Origin) (string, error) {
			r, err := l.Load(ctx, "k", func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) { return o.Fetch(ctx, f.Key) })
			return r.Value, err
		},
		"GetMany": func(ctx context.Context, l loader, o *testkit.Origin) (string, error) {
			m, err := l.GetMany(ctx, []string{"k"}, func(ctx context.Context, keys []string) (map[string]string, error) {
				v, err := o.Fetch(ctx, keys[0])
				return map[string]string{keys[0]: v}, err
			})
			return m["k"], err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				o := testkit.NewOrigin(t)
				rdb := r.Client()
				l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailOpen), func(opt *options) { opt.RedisTimeout = time.Minute })
				stopped, free := testkit.HoldFirst(rdb, "getrange")
				r.Kill()
				slow := make(chan testkit.Outcome, 1)
				go func() {
					v, err := call(t.Context(), l, o)
					slow <- testkit.Outcome{Value: v, Err: err}
				}()
				<-stopped
				quick := testkit.Get(t, t.Context(), l, "k", o)
				c := o.Next()
				close(free)
				synctest.Wait() // its lookup has failed
				late := testkit.Get(t, t.Context(), l, "k", o)
				synctest.Wait()
				c.Returns("v")
				quick.Want("v")
				if out := <-slow; out.Value != "v" || out.Err != nil {
					t.Errorf("%s = %q, %v; want v", name, out.Value, out.Err)
				}
				o.Next().Returns("later") // a caller that is late looks up again
				late.Want("later")
				o.Want(2)
			})
		})
	}
}

// Without Redis, each process fetches by itself, one fetch at a time: callers share one
// fetch, and callers that are late share the next.
func TestWithoutRedisOneFetchAtATime(t *testing.T) {
	const callers = 100
	redistest.Each(t, func(t *testing.T, r backend) {
		l := testkit.NewLoader(t, r)
		r.Kill()
		var running, most, fetches, returned atomic.Int64
		fetch := func(context.Context, string) (string, error) {
			fetches.Add(1)
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer running.Add(-1)
			for int(returned.Load())+l.Callers("k") < callers { // until all the others wait for this one
				time.Sleep(time.Millisecond)
			}
			return "v", nil
		}
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				defer returned.Add(1)
				if got, err := l.Get(t.Context(), "k", fetch); got != "v" || err != nil {
					t.Errorf("Get = %q, %v", got, err)
				}
			})
		}
		all.Wait()
		r.Restart()
		if most.Load() != 1 || fetches.Load() > 2 {
			t.Errorf("%d fetches, %d at once; want two, one after the other", fetches.Load(), most.Load())
		}
	})
}
