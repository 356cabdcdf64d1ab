package fetchonce_test

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// inBubble runs a test with a Redis in memory on a fake clock.
func inBubble(t *testing.T, test func(t *testing.T, r backend)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, redistest.Bubble(t).Backend()) })
}

// aging returns options with a TTL of one minute, which change may alter.
func aging(change func(*options)) func(*options) {
	return func(opt *options) {
		opt.TTL, opt.Jitter = time.Minute, fetchonce.Off
		change(opt)
	}
}

// result returns the result of a Load and checks that it takes no time.
func result(t *testing.T, l loader, o *testkit.Origin) fetchonce.Result[string] {
	t.Helper()
	started := time.Now()
	got, err := l.Load(t.Context(), "k", func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) {
		return o.Fetch(ctx, f.Key)
	})
	if err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(started); waited > 0 {
		t.Errorf("Load took %v, want no time", waited)
	}
	return got
}

func wantResult(t *testing.T, got fetchonce.Result[string], value string, stale bool) {
	t.Helper()
	if got.Value != value || got.Stale != stale {
		t.Errorf("got %q, stale %v; want %q, %v", got.Value, got.Stale, value, stale)
	}
}

// The lookups of two processes return a stale value. Both return it at once; one fetches,
// and both have the new value afterwards.
func TestStaleValueIsServedDuringItsRefresh(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		opt := aging(func(opt *options) { opt.StaleWhileRevalidate = time.Minute })
		a, b := newLoader(t, r, opt), newLoader(t, r, opt)
		if err := a.Set(t.Context(), "k", "old"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(61 * time.Second)
		for range 5 {
			wantResult(t, result(t, a, o), "old", true)
			wantResult(t, result(t, b, o), "old", true)
		}
		o.Next().Returns("new")
		synctest.Wait()
		wantResult(t, result(t, a, o), "new", false)
		wantResult(t, result(t, b, o), "new", false)
		o.Want(1)

		time.Sleep(2*time.Minute + time.Second) // beyond StaleWhileRevalidate
		g := testkit.Get(t, t.Context(), a, "k", o)
		o.Next().Returns("newer")
		g.Want("newer")
	})
}

func TestRefreshOutlivesTheCallerThatStartedIt(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, aging(func(opt *options) { opt.StaleWhileRevalidate = time.Minute }))
		_ = l.Set(t.Context(), "k", "old")
		time.Sleep(61 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		testkit.Get(t, ctx, l, "k", o).Want("old")
		c := o.Next()
		cancel()
		synctest.Wait()
		if c.Ctx.Err() != nil {
			t.Error("the refresh was cancelled:", context.Cause(c.Ctx))
		}
		c.Returns("new")
		synctest.Wait()
		testkit.WantKept(t, l, "new")
	})
}

// A value expires while it is refreshed. The next Get waits for that refresh, in the same process
// and in another.
func TestGetWaitsForTheRefreshOfAValueThatEnded(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		opt := aging(func(opt *options) { opt.StaleWhileRevalidate, opt.FetchTimeout = 10*time.Second, time.Hour })
		l, other := newLoader(t, r, opt), newLoader(t, r, opt)
		_ = l.Set(t.Context(), "k", "old")
		time.Sleep(65 * time.Second)
		testkit.Get(t, t.Context(), l, "k", o).Want("old")
		c := o.Next()
		time.Sleep(time.Minute)
		wantNothingKept(t, l)
		here, there := testkit.Get(t, t.Context(), l, "k", o), testkit.Get(t, t.Context(), other, "k", o)
		synctest.Wait()
		c.Returns("new")
		here.Want("new")
		there.Want("new")
		o.Want(1)
	})
}

func TestHungRefreshHoldsAKeyForTheFetchTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		o.Ignore = true
		l := newLoader(t, r, aging(func(opt *options) { opt.StaleWhileRevalidate, opt.FetchTimeout = time.Hour, 30*time.Second }))
		_ = l.Set(t.Context(), "k", "old")
		time.Sleep(61 * time.Second)
		wantResult(t, result(t, l, o), "old", true)
		c := o.Next()
		time.Sleep(29 * time.Second)
		wantResult(t, result(t, l, o), "old", true)
		o.Want(1)
		time.Sleep(3 * time.Second) // the fetch is abandoned, and the backoff has ended
		wantResult(t, result(t, l, o), "old", true)
		o.Next().Returns("new")
		synctest.Wait()
		wantResult(t, result(t, l, o), "new", false)
		c.Returns("too late")
		synctest.Wait()
		testkit.WantKept(t, l, "new")
	})
}

// The origin is down for an hour. Every caller receives the stale value. The backoff bounds
// the fetches.
func TestStaleValueIsServedWhenTheFetchFails(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		opt := aging(func(opt *options) { opt.StaleIfError = 2 * time.Hour })
		processes := []loader{newLoader(t, r, opt), newLoader(t, r, opt), newLoader(t, r, opt)}
		_ = processes[0].Set(t.Context(), "k", "old")
		time.Sleep(61 * time.Second)
		fetches := 0
		boom := errors.New("boom")
		load := func(l loader) {
			t.Helper()
			got, err := l.Load(t.Context(), "k", func(_ context.Context, f *fetchonce.Fetch[string]) (string, error) {
				fetches++
				if f.Old == nil || f.Old.Value != "old" || !f.Old.Stale {
					t.Errorf("Fetch.Old = %+v, want the stale value", f.Old)
				}
				return "", boom
			})
			if got.Value != "old" || !got.Stale || err != nil {
				t.Fatalf("Load = %+v, %v; want the old value", got, err)
			}
		}
		for range 3600 {
			for _, l := range processes {
				load(l)
			}
			time.Sleep(time.Second)
		}
		if fetches < 60 || fetches > 200 {
			t.Errorf("10,800 Gets in an hour made %d fetches; want about two a minute", fetches)
		}
		t.Logf("%d fetches in an hour", fetches)

		// The origin is up again. All processes have the new value after the backoff.
		o := testkit.NewOrigin(t)
		var g *testkit.Getter
		for o.Count() == 0 {
			time.Sleep(time.Second)
			g = testkit.Get(t, t.Context(), processes[1], "k", o)
			synctest.Wait()
		}
		o.Next().Returns("new")
		g.Want("new")
		testkit.Get(t, t.Context(), processes[2], "k", o).Want("new")
	})
}

// ErrNotFound is a result of the fetch and no failure, so the fallback value is not used.
func TestNotFoundReplacesAStaleValue(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, aging(func(opt *options) { opt.StaleIfError = time.Hour }))
		_ = l.Set(t.Context(), "k", "old")
		time.Sleep(61 * time.Second)
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Fails(fetchonce.ErrNotFound)
		g.WantErr(fetchonce.ErrNotFound)
		testkit.Get(t, t.Context(), l, "k", o).WantErr(fetchonce.ErrNotFound)
		o.Want(1)
	})
}

// A backoff does not apply to a process that serves no stale values.
func TestBackoffIsForCallersWithAStaleValue(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		old := newLoader(t, r, aging(func(opt *options) { opt.StaleIfError = time.Hour }))
		strict := newLoader(t, r, aging(func(*options) {}))
		_ = old.Set(t.Context(), "k", "old")
		time.Sleep(61 * time.Second)
		g := testkit.Get(t, t.Context(), old, "k", o)
		o.Next().Fails(errors.New("boom"))
		g.Want("old")
		g = testkit.Get(t, t.Context(), strict, "k", o)
		o.Next().Returns("new")
		g.Want("new")
	})
}

func TestSoftTimeoutServesTheStaleValue(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, aging(func(opt *options) { opt.StaleIfError, opt.SoftTimeout = time.Hour, 100*time.Millisecond }))
		_ = l.Set(t.Context(), "k", "old")
		time.Sleep(61 * time.Second)
		started := time.Now()
		var all []*testkit.Getter
		for range 20 {
			all = append(all, testkit.Get(t, t.Context(), l, "k", o))
		}
		c := o.Next()
		for _, g := range all {
			g.Want("old")
		}
		if waited := time.Since(started); waited != 100*time.Millisecond {
			t.Errorf("the callers waited %v, want SoftTimeout", waited)
		}
		if c.Ctx.Err() != nil {
			t.Error("the fetch was cancelled:", context.Cause(c.Ctx))
		}
		quick := testkit.Get(t, t.Context(), l, "k", o)
		synctest.Wait()
		c.Returns("new")
		quick.Want("new")
		o.Want(1)
	})
}

// Two processes would both refresh the value early. One of them does.
func TestOneProcessRefreshesEarly(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		opt := aging(func(opt *options) { opt.EarlyRefresh = 1000 })
		a, b := newLoader(t, r, opt), newLoader(t, r, opt)
		g := testkit.Get(t, t.Context(), a, "k", o)
		c := o.Next()
		time.Sleep(10 * time.Second) // the cost of the fetch
		c.Returns("old")
		g.Want("old")
		time.Sleep(30 * time.Second)
		for range 10 {
			wantResult(t, result(t, a, o), "old", false)
			wantResult(t, result(t, b, o), "old", false)
		}
		synctest.Wait()
		o.Want(2)
		o.Next().Returns("new")
		synctest.Wait()
		testkit.WantKept(t, a, "new")
		testkit.WantKept(t, b, "new")
	})
}

// With EarlyRefresh 1, a Get that comes x before the value expires refreshes it with the
// probability exp(-x/d), where d is the time that a fetch takes. With n Gets per d, the first
// refresh comes at x = d*(ln(n) + 0.58) on average; 0.58 is Euler's constant.
func TestEarlyRefreshFollowsTheFormula(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		const cost, every, rounds = time.Second, 25 * time.Millisecond, 50
		l := newLoader(t, r, aging(func(opt *options) { opt.EarlyRefresh = 1 }))
		o := testkit.NewOrigin(t)
		g := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		time.Sleep(cost)
		c.Returns("v")
		g.Want("v")
		var lead time.Duration
		for range rounds {
			stored := time.Now()
			time.Sleep(45 * time.Second) // no caller refreshes this early
			for len(o.Began) == 0 {
				wantResult(t, result(t, l, o), "v", false) // at once, and not ended
				time.Sleep(every)
				synctest.Wait()
			}
			lead += time.Minute - time.Since(stored)
			c := o.Next()
			for deadline := time.Now().Add(cost); time.Now().Before(deadline); time.Sleep(every) {
				wantResult(t, result(t, l, o), "v", false)
			}
			c.Returns("v")
			synctest.Wait()
		}
		o.Want(1 + rounds) // one at a time
		mean := (lead / rounds).Seconds()
		want := cost.Seconds() * (math.Log(float64(cost/every)) + 0.5772)
		t.Logf("refreshed %.2f s before the end on average; the formula says %.2f", mean, want)
		if math.Abs(mean-want) > 1 { // four standard deviations are 0.73
			t.Errorf("refreshed %.2f s before the end on average, want about %.2f", mean, want)
		}
	})
}

// One process keeps stale values in Redis. To another without the option, they are misses.
func TestStaleValueIsAMissWithoutTheOption(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		old := newLoader(t, r, aging(func(opt *options) { opt.StaleIfError = time.Hour }))
		strict := newLoader(t, r, aging(func(*options) {}))
		_ = old.Set(t.Context(), "k", "old")
		testkit.Get(t, t.Context(), strict, "k", o).Want("old") // while it is fresh
		time.Sleep(61 * time.Second)
		wantNothingKept(t, strict)
		g := testkit.Get(t, t.Context(), strict, "k", o)
		o.Next().Returns("new")
		g.Want("new")
	})
}

// A Delete leaves no stale value.
func TestDeleteLeavesNoStaleValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		opt := aging(func(opt *options) { opt.StaleIfError, opt.StaleWhileRevalidate = time.Hour, time.Hour })
		l := newLoader(t, r, opt)
		_ = l.Set(t.Context(), "k", "old")
		if err := l.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		g := testkit.Get(t, t.Context(), l, "k", o)
		boom := errors.New("boom")
		o.Next().Fails(boom)
		g.WantErr(boom)
		testkit.WantNoKeyForEver(t, r)
	})
}

// A caller may change its value if Clone is set. The fetch that replaces the value still has
// it as its Old.
func TestCallerAndFetchDoNotShareTheStaleValue(t *testing.T) {
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

// A hangingStore ignores the contexts of its Lookups.
type hangingStore struct{ takes time.Duration }

func (s hangingStore) Lookup(context.Context, string) (string, error) {
	time.Sleep(s.takes)
	return "", fetchonce.ErrNotFound
}

func (s hangingStore) Create(_ context.Context, _, v string) (string, error) { return v, nil }

// A Lookup ignores its context, and returns after the load has lost its lease and continues
// without the stale value. The fetch after the Lookup still has the stale value of its start.
func TestLateFetchKeepsItsStaleValue(t *testing.T) {
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
