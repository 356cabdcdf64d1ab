package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A traceRecorder records what a Trace reports.
type traceRecorder struct {
	t *testing.T

	mu      sync.Mutex
	gets    []fetchonce.TraceGet
	fetches []fetchonce.TraceFetch
	waits   []fetchonce.TraceWait
	stores  []fetchonce.TraceStore
	leases  []fetchonce.TraceLease
	redis   map[string]int // failed operations
	drops   []fetchonce.TraceNearDrop
	locks   []fetchonce.TraceLock
	unlocks []fetchonce.TraceUnlock
}

// hook returns a Trace function that calls record under the lock.
func hook[E any](x *traceRecorder, record func(e E)) func(context.Context, E) {
	return func(ctx context.Context, e E) {
		if ctx == nil {
			x.t.Errorf("%+v was reported with a nil context", e)
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		record(e)
	}
}

func (x *traceRecorder) trace() *fetchonce.Trace {
	x.redis = make(map[string]int)
	return &fetchonce.Trace{
		Got:         hook(x, func(e fetchonce.TraceGet) { x.gets = append(x.gets, e) }),
		Fetched:     hook(x, func(e fetchonce.TraceFetch) { x.fetches = append(x.fetches, e) }),
		Waited:      hook(x, func(e fetchonce.TraceWait) { x.waits = append(x.waits, e) }),
		Stored:      hook(x, func(e fetchonce.TraceStore) { x.stores = append(x.stores, e) }),
		LeaseLost:   hook(x, func(e fetchonce.TraceLease) { x.leases = append(x.leases, e) }),
		RedisFailed: hook(x, func(e fetchonce.TraceRedisError) { x.redis[e.Op]++ }),
		NearDropped: hook(x, func(e fetchonce.TraceNearDrop) { x.drops = append(x.drops, e) }),
		Locked:      hook(x, func(e fetchonce.TraceLock) { x.locks = append(x.locks, e) }),
		Unlocked:    hook(x, func(e fetchonce.TraceUnlock) { x.unlocks = append(x.unlocks, e) }),
	}
}

// with sets x as the Trace of a loader.
func (x *traceRecorder) with(opt *options) { opt.Trace = x.trace() }

// kinds returns how many Gets of each kind there were.
func (x *traceRecorder) kinds() map[fetchonce.GetKind]int {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := make(map[fetchonce.GetKind]int)
	for _, g := range x.gets {
		n[g.Kind]++
	}
	return n
}

// saved returns how many fetches were saved, by the formula in the Trace's documentation.
func (x *traceRecorder) saved() int {
	n := x.kinds()
	saved := n[fetchonce.GetMiss] + n[fetchonce.GetJoined]
	for _, f := range x.fetches {
		if !f.Background {
			saved -= f.Keys
		}
	}
	return saved
}

func (x *traceRecorder) wantKinds(hits, misses, joined, failed int) {
	x.t.Helper()
	n := x.kinds()
	got := [4]int{n[fetchonce.GetHit], n[fetchonce.GetMiss], n[fetchonce.GetJoined], n[fetchonce.GetFailed]}
	if want := [4]int{hits, misses, joined, failed}; got != want {
		x.t.Errorf("hits, misses, joined, failed: %v; want %v", got, want)
	}
}

// wantEach fails the test unless got and want are the same events in the same order.
func wantEach[E any](t *testing.T, got []E, want ...E) {
	t.Helper()
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) && len(got)+len(want) > 0 {
		t.Errorf("the Trace reported\n%+v, want\n%+v", got, want)
	}
}

// 50 callers in two processes get a key that has no value. After that, one gets the value.
func TestTraceOfAColdMiss(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, here, there := testkit.NewOrigin(t), &traceRecorder{t: t}, &traceRecorder{t: t}
		a, b := newLoader(t, r, here.with), newLoader(t, r, there.with)
		var all []*testkit.Getter
		for range 25 {
			all = append(all, testkit.Get(t, t.Context(), a, "k", o))
		}
		c := o.Next()
		for range 25 {
			all = append(all, testkit.Get(t, t.Context(), b, "k", o))
		}
		synctest.Wait()
		time.Sleep(3 * time.Second)
		c.Returns("v")
		for _, g := range all {
			g.Want("v")
		}
		synctest.Wait()

		here.wantKinds(0, 1, 24, 0)
		there.wantKinds(0, 1, 24, 0)
		if saved := here.saved() + there.saved(); saved != 49 {
			t.Errorf("%d fetches were saved, want 49", saved)
		}
		wantEach(t, here.fetches, fetchonce.TraceFetch{Key: "k", Keys: 1, Took: 3 * time.Second})
		wantEach(t, there.fetches)
		wantEach(t, here.waits)
		wantEach(t, there.waits, fetchonce.TraceWait{Key: "k", Took: 3 * time.Second, Answered: true})
		if len(here.stores) != 1 || here.stores[0].Bytes == 0 || here.stores[0].Superseded || here.stores[0].Err != nil {
			t.Errorf("stored: %+v; want one value", here.stores)
		}
		for _, x := range []*traceRecorder{here, there} {
			source := fetchonce.SourceFetch
			if x == there {
				source = fetchonce.SourcePeer
			}
			for _, g := range x.gets {
				if g.Source != source || g.Took != 3*time.Second || g.Err != nil || g.Stale || g.Key != "k" {
					t.Errorf("a Get: %+v; want it from %v after 3 s", g, source)
				}
			}
			x.gets = nil
		}

		testkit.Get(t, t.Context(), b, "k", o).Want("v")
		wantEach(t, there.gets, fetchonce.TraceGet{Key: "k", Kind: fetchonce.GetHit, Source: fetchonce.SourceRedis})
	})
}

// A fetch finds that the key does not exist. The next Get is a hit that says so.
func TestTraceOfAnAbsence(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, x := testkit.NewOrigin(t), &traceRecorder{t: t}
		l := newLoader(t, r, x.with)
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Fails(fetchonce.ErrNotFound)
		g.WantErr(fetchonce.ErrNotFound)
		testkit.Get(t, t.Context(), l, "k", o).WantErr(fetchonce.ErrNotFound)
		none := fetchonce.ErrNotFound
		wantEach(t, x.gets,
			fetchonce.TraceGet{Key: "k", Kind: fetchonce.GetMiss, Source: fetchonce.SourceFetch, Err: none},
			fetchonce.TraceGet{Key: "k", Kind: fetchonce.GetHit, Source: fetchonce.SourceRedis, Err: none})
		wantEach(t, x.fetches, fetchonce.TraceFetch{Key: "k", Keys: 1, Err: none})
	})
}

// A stale value is a hit, and its refresh is a background fetch. If that fails, it is
// logged, as no caller receives the error.
func TestTraceOfARefresh(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, x, log := testkit.NewOrigin(t), &traceRecorder{t: t}, &testkit.Log{}
		l := newLoader(t, r, x.with, aging(func(opt *options) {
			opt.StaleWhileRevalidate, opt.Logger = time.Hour, log.Logger()
		}))
		testkit.Set(t, l, "k", "old")
		time.Sleep(61 * time.Second)
		for range 3 {
			wantResult(t, result(t, l, o), "old", true)
		}
		time.Sleep(time.Second)
		boom := errors.New("boom")
		o.Next().Fails(boom)
		synctest.Wait()
		wantResult(t, result(t, l, o), "old", true) // during the backoff
		if n := log.Count("refresh failed"); n != 1 {
			t.Errorf("the log says %d times that the refresh failed, want once", n)
		}
		stale := fetchonce.TraceGet{Key: "k", Kind: fetchonce.GetHit, Source: fetchonce.SourceRedis, Stale: true}
		wantEach(t, x.gets, stale, stale, stale, stale)
		wantEach(t, x.fetches, fetchonce.TraceFetch{Key: "k", Keys: 1, Background: true, Took: time.Second, Err: boom})
		if saved := x.saved(); saved != 0 {
			t.Errorf("%d fetches were saved, want none", saved)
		}
	})
}

func TestTraceReportsThePanicOfARefresh(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, x, log := testkit.NewOrigin(t), &traceRecorder{t: t}, &testkit.Log{}
		l := newLoader(t, r, x.with, aging(func(opt *options) {
			opt.StaleWhileRevalidate, opt.Logger = time.Hour, log.Logger()
		}))
		testkit.Set(t, l, "k", "old")
		time.Sleep(61 * time.Second)
		wantResult(t, result(t, l, o), "old", true)
		o.Next().Does(func() { panic("the teapot is empty") })
		synctest.Wait()
		if log.Count("refresh failed") != 1 || log.Count("the teapot is empty") != 1 || log.Count("trace_test.go") == 0 {
			t.Errorf("the log is %q; want the panic and where it was, once", &log.Text)
		}
		if len(x.fetches) != 1 {
			t.Fatalf("fetches: %+v, want one", x.fetches)
		}
		if p, ok := errors.AsType[*fetchonce.PanicError](x.fetches[0].Err); !ok || p.Value != "the teapot is empty" {
			t.Errorf("the fetch's error is %v, want a PanicError", x.fetches[0].Err)
		}
	})
}

// The fetch fails, so Get returns the fallback value.
func TestTraceOfAFallbackValue(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, x := testkit.NewOrigin(t), &traceRecorder{t: t}
		l := newLoader(t, r, x.with, aging(func(opt *options) { opt.StaleIfError = time.Hour }))
		testkit.Set(t, l, "k", "old")
		time.Sleep(61 * time.Second)
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Fails(errors.New("boom"))
		g.Want("old")
		testkit.Get(t, t.Context(), l, "k", o).Want("old") // during the backoff
		wantEach(t, x.gets,
			fetchonce.TraceGet{Key: "k", Kind: fetchonce.GetMiss, Source: fetchonce.SourceRedis, Stale: true},
			fetchonce.TraceGet{Key: "k", Kind: fetchonce.GetHit, Source: fetchonce.SourceRedis, Stale: true})
	})
}

// A key is deleted during its fetch. A fetch that obeys its context ends and is repeated; one
// that ignores its context returns a value that is not stored.
func TestTraceOfALostLease(t *testing.T) {
	for _, obeys := range []bool{true, false} {
		t.Run(fmt.Sprintf("obeys=%v", obeys), func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				o, x := testkit.NewOrigin(t), &traceRecorder{t: t}
				o.Ignore = !obeys
				l, other := newLoader(t, r, x.with), newLoader(t, r)
				g := testkit.Get(t, t.Context(), l, "k", o)
				c := o.Next()
				time.Sleep(time.Second)
				if err := other.Delete(t.Context(), "k"); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if obeys {
					c = o.Next()
				}
				c.Returns("v")
				g.Want("v")
				wantEach(t, x.leases, fetchonce.TraceLease{Key: "k", Held: time.Second})
				if len(x.stores) != 1 || x.stores[0].Superseded == obeys {
					t.Errorf("stored: %+v; want one, superseded: %v", x.stores, !obeys)
				}
				if obeys {
					wantEach(t, x.fetches,
						fetchonce.TraceFetch{Key: "k", Keys: 1, Took: time.Second, Err: fetchonce.ErrLockLost},
						fetchonce.TraceFetch{Key: "k", Keys: 1})
				} else {
					wantEach(t, x.fetches, fetchonce.TraceFetch{Key: "k", Keys: 1, Took: time.Second})
				}
				x.wantKinds(0, 1, 0, 0)
			})
		})
	}
}

// A fetch that ignores its context is reported when the load abandons it, and not again
// when it returns.
func TestTraceOfAnAbandonedFetch(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, x := testkit.NewOrigin(t), &traceRecorder{t: t}
		o.Ignore = true
		l := newLoader(t, r, x.with)
		g := testkit.Get(t, t.Context(), l, "k", o)
		late := o.Next()
		g.WantErr(fetchonce.ErrFetchTimeout)
		ctx, cancel := context.WithCancel(t.Context())
		g = testkit.Get(t, ctx, l, "k", o)
		left := o.Next()
		time.Sleep(time.Second)
		cancel()
		g.WantErr(context.Canceled)
		synctest.Wait()
		late.Returns("late")
		left.Returns("late")
		synctest.Wait()
		wantEach(t, x.fetches,
			fetchonce.TraceFetch{Key: "k", Keys: 1, Took: time.Minute, Err: fetchonce.ErrFetchTimeout},
			fetchonce.TraceFetch{Key: "k", Keys: 1, Took: time.Second, Err: context.Canceled})
		x.wantKinds(0, 2, 0, 0)
	})
}

// The process that holds the lease dies while another waits for it.
func TestTraceOfAWaitForADeadProcess(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, x := testkit.NewOrigin(t), &traceRecorder{t: t}
		rdb := r.Client()
		dead, l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailClosed)), newLoader(t, r, x.with)
		testkit.Get(t, t.Context(), dead, "k", o)
		o.Next()
		g := testkit.Get(t, t.Context(), l, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		redistest.WireOf(rdb).Down()
		o.Next().Returns("v")
		g.Want("v")
		if len(x.waits) != 1 || x.waits[0].Answered || x.waits[0].Took < time.Second || x.waits[0].Took > 6*time.Second {
			t.Errorf("waits: %+v; want one of 1 to 6 s that was not answered", x.waits)
		}
		wantEach(t, x.fetches, fetchonce.TraceFetch{Key: "k", Keys: 1})
	})
}

func TestTraceWithoutRedis(t *testing.T) {
	for name, policy := range map[string]fetchonce.Policy{"FailOpen": fetchonce.FailOpen, "FailClosed": fetchonce.FailClosed} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				o, x := testkit.NewOrigin(t), &traceRecorder{t: t}
				l := newLoader(t, r, x.with, testkit.WithPolicy(policy))
				r.Kill()
				g := testkit.Get(t, t.Context(), l, "k", o)
				if policy == fetchonce.FailClosed {
					testkit.WantRedisDown(t, g.Outcome())
					x.wantKinds(0, 0, 0, 1)
				} else {
					o.Next().Returns("unleased")
					g.Want("unleased")
					x.wantKinds(0, 1, 0, 0)
					wantEach(t, x.fetches, fetchonce.TraceFetch{Key: "k", Keys: 1, Unleased: true})
				}
				if err := l.Set(t.Context(), "k", "v"); err == nil {
					t.Error("Set without Redis = nil, want an error")
				}
				if want := map[string]int{"read": 1, "set": 1}; !maps.Equal(x.redis, want) {
					t.Errorf("failed operations: %v; want %v", x.redis, want)
				}
				wantEach(t, x.stores)
			})
		})
	}
}

// A fetched value is not stored because it is too large, and another because Redis is down.
func TestTraceOfAValueThatIsNotStored(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, x := testkit.NewOrigin(t), &traceRecorder{t: t}
		l := newLoader(t, r, x.with, testkit.WithPolicy(fetchonce.FailOpen), func(opt *options) { opt.MaxBytes = 10 })
		g := testkit.Get(t, t.Context(), l, "large", o)
		o.Next().Returns(strings.Repeat("x", 100))
		g.Want(strings.Repeat("x", 100))
		g = testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		r.Kill()
		c.Returns("v")
		g.Want("v")
		if len(x.stores) != 2 || x.stores[0].Err == nil || x.stores[1].Err == nil {
			t.Errorf("stored: %+v; want two with errors", x.stores)
		}
	})
}

// One GetMany has a hit, a joined key, and three keys that are fetched.
func TestTraceOfAGetMany(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, x := testkit.NewOrigin(t), &traceRecorder{t: t}
		l := newLoader(t, r, x.with)
		testkit.Set(t, l, "kept", "v")
		single := testkit.Get(t, t.Context(), l, "joined", o)
		c := o.Next()
		done := make(chan struct{})
		go func() {
			defer close(done)
			got, err := l.GetMany(t.Context(), []string{"kept", "joined", "a", "b", "none", "a"},
				func(_ context.Context, keys []string) (map[string]string, error) {
					time.Sleep(time.Second)
					return map[string]string{"a": "v", "b": "v"}, nil
				})
			if len(got) != 4 || err != nil {
				t.Errorf("GetMany = %v, %v", got, err)
			}
		}()
		time.Sleep(2 * time.Second)
		c.Returns("v")
		single.Want("v")
		<-done
		x.wantKinds(1, 1+3, 1, 0)
		wantEach(t, x.fetches,
			fetchonce.TraceFetch{Keys: 3, Took: time.Second},
			fetchonce.TraceFetch{Key: "joined", Keys: 1, Took: 2 * time.Second})
		if saved := x.saved(); saved != 1 {
			t.Errorf("%d fetches were saved, want 1: the joined key's", saved)
		}
		for _, g := range x.gets {
			if want := 2 * time.Second; g.Key != "kept" && g.Took != want {
				t.Errorf("%s took %v, want %v, until GetMany returned", g.Key, g.Took, want)
			}
			if isNone := errors.Is(g.Err, fetchonce.ErrNotFound); isNone != (g.Key == "none") {
				t.Errorf("%s has the error %v", g.Key, g.Err)
			}
		}
	})
}

// The only caller of a batch fetch leaves it, and another batch fetch panics.
func TestTraceOfAFailedBatchFetch(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		x := &traceRecorder{t: t}
		l := newLoader(t, r, x.with)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		proceed := make(chan struct{})
		_, _ = l.GetMany(ctx, []string{"a", "b"}, func(context.Context, []string) (map[string]string, error) {
			<-proceed
			return nil, nil
		})
		synctest.Wait()
		close(proceed)
		synctest.Wait()
		wantEach(t, x.fetches, fetchonce.TraceFetch{Keys: 2, Took: time.Second, Err: context.Canceled})
		x.wantKinds(0, 2, 0, 0)

		x.fetches = nil
		func() {
			defer func() { _ = recover() }()
			_, _ = l.GetMany(t.Context(), []string{"a", "b"}, func(context.Context, []string) (map[string]string, error) { panic("boom") })
		}()
		x.wantKinds(0, 4, 0, 0)
		if len(x.fetches) != 1 {
			t.Fatalf("fetches: %+v; want one", x.fetches)
		}
		if _, ok := errors.AsType[*fetchonce.PanicError](x.fetches[0].Err); !ok {
			t.Errorf("the fetch's error is %v, want a PanicError", x.fetches[0].Err)
		}
	})
}

// A near entry is served until its value changes. Two others are dropped when Redis hangs.
func TestTraceOfNearEntries(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		x := &traceRecorder{t: t}
		l, other := newLoader(t, r, x.with, testkit.WithNear), newLoader(t, r)
		testkit.Set(t, other, "k", "v")
		testkit.WarmNear(t, r, l, "k", "v")
		x.gets = nil
		for range 2 {
			if _, err := l.Get(t.Context(), "k", nothingFetched); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = testkit.Source(t, l, "k")
		hit := fetchonce.TraceGet{Key: "k", Kind: fetchonce.GetHit, Source: fetchonce.SourceNear}
		wantEach(t, x.gets, hit, hit, hit)

		testkit.Set(t, other, "never kept here", "v")
		testkit.Set(t, other, "k", "new")
		r.Settle()
		wantEach(t, x.drops, fetchonce.TraceNearDrop{Copies: 1})

		x.drops = nil
		testkit.Set(t, other, "another", "v")
		testkit.WarmNear(t, r, l, "k", "new")
		testkit.WarmNear(t, r, l, "another", "v")
		r.Pause()
		time.Sleep(5 * time.Second)
		r.Resume()
		testkit.WarmNear(t, r, l, "k", "new")
		wantEach(t, x.drops, fetchonce.TraceNearDrop{Copies: 2, Reset: true})
	})
}

func nothingFetched(context.Context, string) (string, error) { return "fetched", nil }

// Three callers wait in one process, and one of them gives up. Later calls only try.
func TestTraceOfALock(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		x := &traceRecorder{t: t}
		lk := testkit.NewLocker(t, r, func(opt *lockOptions) { opt.Trace = x.trace() })
		first := testkit.Taken(t, r, lk)
		first.Release(nil)
		holder := testkit.Taken(t, r, testkit.NewLocker(t, r))
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		a := testkit.Take(t.Context(), t, r, lk)
		r.Settle()
		b := testkit.Take(t.Context(), t, r, lk)
		r.Settle()
		c := testkit.Take(impatient, t, r, lk)
		c.Ended()
		time.Sleep(time.Second)
		holder.Release(nil)
		a.Has()
		if err := lk.TryDo(t.Context(), "it", testkit.Nothing); !errors.Is(err, fetchonce.ErrLocked) {
			t.Errorf("TryDo = %v, want ErrLocked", err)
		}
		time.Sleep(5 * time.Millisecond)
		a.Release(nil)
		b.Has()
		b.Release(nil)
		if err := lk.TryDo(t.Context(), "other", testkit.Nothing); err != nil {
			t.Error(err)
		}
		wantEach(t, x.locks,
			fetchonce.TraceLock{Name: "it"},
			fetchonce.TraceLock{Name: "it", Waited: time.Second, Err: c.Err},
			fetchonce.TraceLock{Name: "it", Waited: 2 * time.Second},
			fetchonce.TraceLock{Name: "it", Try: true, Err: fetchonce.ErrLocked},
			fetchonce.TraceLock{Name: "it", Waited: 2*time.Second + 5*time.Millisecond, LocalHandoff: true},
			fetchonce.TraceLock{Name: "other", Try: true})
		wantEach(t, x.unlocks,
			fetchonce.TraceUnlock{Name: "it"},
			fetchonce.TraceUnlock{Name: "it", Held: 5 * time.Millisecond},
			fetchonce.TraceUnlock{Name: "it"},
			fetchonce.TraceUnlock{Name: "other"})
	})
}

func TestTraceOfALostLock(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		x := &traceRecorder{t: t}
		rdb := r.Client()
		lk := testkit.LockerOf(t, rdb, func(opt *lockOptions) { opt.Trace, opt.Lease = x.trace(), 5*time.Second })
		a := testkit.Taken(t, r, lk)
		redistest.WireOf(rdb).Down()
		<-a.Ctx.Done()
		time.Sleep(time.Second)
		a.Release(fetchonce.ErrLockLost)
		synctest.Wait() // the release is repeated in the background
		if len(x.unlocks) != 1 || !errors.Is(x.unlocks[0].Err, fetchonce.ErrLockLost) || x.unlocks[0].Held < 5*time.Second {
			t.Errorf("unlocked: %+v; want one that was lost", x.unlocks)
		}
		if x.redis["renew lock"] == 0 || x.redis["unlock"] != 2 || len(x.redis) != 2 {
			t.Errorf("failed operations: %v; want renewals and two unlocks", x.redis)
		}
		x.locks = nil
		if _, _, err := lk.Acquire(t.Context(), "it"); err == nil {
			t.Error("Acquire without Redis has a lock")
		}
		synctest.Wait()
		if len(x.locks) != 1 || x.locks[0].Err == nil || x.redis["lock"] != 1 {
			t.Errorf("locked: %+v, failed operations: %v; want one failure", x.locks, x.redis)
		}
	})
}

// Values become stale, are deleted and fail to be fetched, and callers in three processes leave
// early. Every Get is reported once, with what it returned.
func TestTraceReportsEveryGetOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		var fetched, keys, gets, failed atomic.Int64
		x := &traceRecorder{t: t}
		trace := x.trace()
		var all sync.WaitGroup
		for p := range 3 {
			l := newLoader(t, r, aging(func(opt *options) {
				opt.Trace, opt.StaleWhileRevalidate, opt.StaleIfError, opt.SoftTimeout = trace, time.Minute, 2*time.Minute, 50*time.Millisecond
			}))
			fetch := func(_ context.Context, ks []string) (map[string]string, error) {
				n := fetched.Add(1)
				keys.Add(int64(len(ks)))
				time.Sleep(time.Duration(n%7) * 30 * time.Millisecond)
				if n%5 == 0 {
					return nil, errors.New("boom")
				}
				found := make(map[string]string)
				for _, k := range ks {
					found[k] = "v"
				}
				return found, nil
			}
			one := func(ctx context.Context, k string) (string, error) {
				found, err := fetch(ctx, []string{k})
				return found[k], err
			}
			for g := range 10 {
				all.Go(func() {
					for i := range 40 {
						key := fmt.Sprint((p + g + i) % 6)
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i%4)*40*time.Millisecond)
						var err error
						switch i % 8 {
						case 0:
							_ = l.Delete(t.Context(), key)
						case 1:
							gets.Add(4)
							_, err = l.GetMany(ctx, []string{"0", "1", "2", key + "x"}, fetch)
							many, _ := errors.AsType[*fetchonce.ManyError](err)
							if err = nil; many != nil {
								failed.Add(int64(len(many.Errors)))
							}
						default:
							gets.Add(1)
							_, err = l.Get(ctx, key, one)
						}
						if err != nil {
							failed.Add(1)
						}
						cancel()
						time.Sleep(time.Duration(g*i%11) * time.Second)
					}
				})
			}
		}
		all.Wait()
		time.Sleep(time.Minute) // for the background fetches
		n := x.kinds()
		t.Logf("%v, %d fetches of %d keys, %d saved", n, fetched.Load(), keys.Load(), x.saved())
		if sum := n[fetchonce.GetHit] + n[fetchonce.GetMiss] + n[fetchonce.GetJoined] + n[fetchonce.GetFailed]; int64(sum) != gets.Load() || sum != len(x.gets) {
			t.Errorf("%d Gets were reported, as %v; there were %d", len(x.gets), n, gets.Load())
		}
		var reportedKeys, reportedFailed int64
		for _, f := range x.fetches {
			reportedKeys += int64(f.Keys)
		}
		for _, g := range x.gets {
			if g.Err != nil {
				reportedFailed++
			}
		}
		if int64(len(x.fetches)) != fetched.Load() || reportedKeys != keys.Load() {
			t.Errorf("%d fetches of %d keys were reported; there were %d of %d", len(x.fetches), reportedKeys, fetched.Load(), keys.Load())
		}
		if reportedFailed != failed.Load() {
			t.Errorf("%d failures were reported; there were %d", reportedFailed, failed.Load())
		}
	})
}

// Every function of a Trace panics. The Loader works and logs the panics.
func TestPanicInATraceIsLogged(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o, log := testkit.NewOrigin(t), &testkit.Log{}
		trace := &fetchonce.Trace{
			Got:         func(context.Context, fetchonce.TraceGet) { panic("Got") },
			Fetched:     func(context.Context, fetchonce.TraceFetch) { panic("Fetched") },
			Waited:      func(context.Context, fetchonce.TraceWait) { panic("Waited") },
			Stored:      func(context.Context, fetchonce.TraceStore) { panic("Stored") },
			LeaseLost:   func(context.Context, fetchonce.TraceLease) { panic("LeaseLost") },
			RedisFailed: func(context.Context, fetchonce.TraceRedisError) { panic("RedisFailed") },
			NearDropped: func(context.Context, fetchonce.TraceNearDrop) { panic("NearDropped") },
			Locked:      func(context.Context, fetchonce.TraceLock) { panic("Locked") },
			Unlocked:    func(context.Context, fetchonce.TraceUnlock) { panic("Unlocked") },
		}
		with := func(opt *options) { opt.Trace, opt.Logger = trace, log.Logger() }
		a, b := newLoader(t, r, with, testkit.WithNear), newLoader(t, r, with, testkit.WithNear)
		here := testkit.Get(t, t.Context(), a, "k", o)
		o.Next()
		there := testkit.Get(t, t.Context(), b, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		if err := a.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		c := o.Next()
		c.Returns("v")
		here.Want("v")
		there.Want("v")
		testkit.WarmNear(t, r, a, "k", "v")
		testkit.Set(t, b, "k", "new")
		lk := testkit.NewLocker(t, r, func(opt *lockOptions) { opt.Trace, opt.Logger = trace, log.Logger() })
		if err := lk.Do(t.Context(), "it", testkit.Nothing); err != nil {
			t.Error(err)
		}
		r.Kill()
		testkit.Get(t, t.Context(), a, "k", o)
		o.Next().Returns("unleased")
		if log.Count("trace function panicked") == 0 {
			t.Error("the log has no panic")
		}
	})
}

// A Trace is read when the Loader is made.
func TestTraceIsReadOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		x := &traceRecorder{t: t}
		trace := x.trace()
		l := newLoader(t, r, func(opt *options) { opt.Trace = trace })
		*trace = fetchonce.Trace{}
		_, _ = l.Get(t.Context(), "k", nothingFetched)
		x.wantKinds(0, 1, 0, 0)
	})
}

// A Trace adds no allocation to a near hit or to a hit.
func TestTraceDoesNotAllocate(t *testing.T) {
	r := redistest.Server(t).Backend()
	counting := &counted{}
	plain, traced := newLoader(t, r, testkit.WithNear), newLoader(t, r, testkit.WithNear, counting.with)
	far, farTraced := newLoader(t, r), newLoader(t, r, counting.with)
	testkit.Set(t, plain, "k", "v")
	testkit.WarmNear(t, r, plain, "k", "v")
	testkit.WarmNear(t, r, traced, "k", "v")
	// The race detector empties pools at random, so the limits are fractions.
	const runs = 2000
	allocs := func(l loader) float64 {
		return testing.AllocsPerRun(1, func() {
			for range runs {
				_, _ = l.Get(t.Context(), "k", nothingFetched)
			}
		}) / runs
	}
	before := counting.gets.Load()
	if with, without := allocs(traced), allocs(plain); with > 0.5 || without > 0.5 {
		t.Errorf("a near hit makes %v allocations with a Trace and %v without", with, without)
	}
	if with, without := allocs(farTraced), allocs(far); with > without+0.5 {
		t.Errorf("a hit makes %v allocations with a Trace and %v without", with, without)
	}
	if n := counting.gets.Load() - before; n != 2*2*runs {
		t.Errorf("%d Gets were reported, want %d", n, 2*2*runs)
	}
}

// A counted makes the smallest Trace: it counts Gets.
type counted struct{ gets atomic.Int64 }

func (c *counted) with(opt *options) {
	opt.Trace = &fetchonce.Trace{Got: func(context.Context, fetchonce.TraceGet) { c.gets.Add(1) }}
}

// BenchmarkTrace compares hits without a Trace and with the smallest.
func BenchmarkTrace(b *testing.B) {
	r := redistest.Server(b).Backend()
	for _, place := range []string{"near", "redis"} {
		for _, traced := range []bool{false, true} {
			opt := options{Prefix: "test"}
			if place == "near" {
				opt.Near.Entries = 10
			}
			if traced {
				new(counted).with(&opt)
			}
			l, err := fetchonce.New(r.Client(), opt)
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			r.Until("it is a hit", func() bool {
				got, err := l.Load(b.Context(), "k", func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "v", nil })
				return err == nil && got.Source.String() == place
			})
			b.Run(fmt.Sprintf("%s/traced=%v", place, traced), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := l.Get(b.Context(), "k", nothingFetched); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
