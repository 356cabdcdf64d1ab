package batchfetch_test

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/batchfetch"
	"github.com/fetchonce/fetchonce/internal/flight"
)

const (
	width = 1200                 // loads that use Redis at once
	late  = 5 * time.Millisecond // for which late members are gathered
)

var (
	errNotFound = errors.New("not found")
	errFetch    = errors.New("the fetch failed")
)

// A source is the user's function and the Store. It returns each key as its own value.
type source struct {
	mu    sync.Mutex
	calls []string // the keys of each call, in order
	infos []batchfetch.Call
	ends  []error // of the observer

	before func(ctx context.Context) // runs in each call
	absent string                    // keys that the call does not return
	err    error                     // of the call

	store    map[string]string
	storeErr map[string]error
	enterErr error
	entered  int // less those that have left
}

func (s *source) config(ctx context.Context) batchfetch.Config[string] {
	c := batchfetch.Config[string]{
		Context: ctx, Fetch: s.fetch, NotFound: errNotFound,
		ForKeys: func(ctx context.Context, _ []string) context.Context { return ctx },
		Enter: func(ctx context.Context) (batchfetch.Entered, error) {
			s.add(1)
			return batchfetch.Entered{Context: ctx, Leave: func() { s.add(-1) }}, s.enterErr
		},
		Trace: func(_ context.Context, c batchfetch.Call) batchfetch.Observer {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.infos = append(s.infos, c)
			return s
		},
	}
	if s.store != nil {
		c.Lookup = func(context.Context, []string) (map[string]string, map[string]error) { return s.store, s.storeErr }
	}
	return c
}

func (s *source) add(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entered += n
}

func (s *source) Begin() {}

func (s *source) End(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends = append(s.ends, err)
}

func (s *source) fetch(ctx context.Context, keys []string) (map[string]string, error) {
	s.mu.Lock()
	s.calls = append(s.calls, strings.Join(slices.Sorted(slices.Values(keys)), " "))
	s.mu.Unlock()
	if s.before != nil {
		s.before(ctx)
	}
	values := make(map[string]string)
	for _, key := range keys {
		if !strings.Contains(s.absent, key) {
			values[key] = key
		}
	}
	return values, s.err
}

// wantCalls fails unless the calls so far had these keys.
func (s *source) wantCalls(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.calls, want) {
		t.Fatalf("calls for %q, want %q", s.calls, want)
	}
}

// An answer is what Fetch returned.
type answer struct {
	batchfetch.Result[string]
	err error
}

// want starts a Fetch, and returns where its answer arrives.
func want(ctx context.Context, load *batchfetch.Load[string], key string) <-chan answer {
	got := make(chan answer, 1)
	go func() {
		r, err := load.Fetch(ctx, key, false, false)
		got <- answer{r, err}
	}()
	synctest.Wait()
	return got
}

// all fetches keys in one batch, and returns the answers.
func all(ctx context.Context, s *source, keys ...string) map[string]answer {
	b := batchfetch.New(s.config(ctx))
	waiting := make(map[string]<-chan answer)
	for _, key := range keys {
		waiting[key] = want(ctx, b.Join(), key)
	}
	b.Decide()
	got := make(map[string]answer)
	for key, c := range waiting {
		got[key] = <-c
	}
	return got
}

func value(v string) answer { return answer{Result: batchfetch.Result[string]{Value: v}} }

func TestFetchStartsWhenEveryLoadIsDecided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		b := batchfetch.New(s.config(t.Context()))
		x, y, waits := b.Join(), b.Join(), b.Join()
		first := want(t.Context(), x, "x")
		b.Decide() // all have joined
		time.Sleep(time.Second)
		s.wantCalls(t)
		waits.Decide()
		waits.Decide() // counts once
		s.wantCalls(t)
		second := want(t.Context(), y, "y")
		if a, b := <-first, <-second; a != value("x") || b != value("y") {
			t.Errorf("answers %+v and %+v", a, b)
		}
		s.wantCalls(t, "x y")
	})
}

func TestFetchDoesNotStartBeforeAllHaveJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		b := batchfetch.New(s.config(t.Context()))
		first := want(t.Context(), b.Join(), "x")
		s.wantCalls(t)
		second := want(t.Context(), b.Join(), "y")
		s.wantCalls(t)
		b.Decide()
		<-first
		<-second
		s.wantCalls(t, "x y")
	})
}

func TestLateMembersShareACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		b := batchfetch.New(s.config(t.Context()))
		x, y, z := b.Join(), b.Join(), b.Join()
		for _, load := range []*batchfetch.Load[string]{x, y, z} {
			load.Decide() // it waits for another process
		}
		b.Decide()
		s.wantCalls(t)
		first := want(t.Context(), x, "x")
		time.Sleep(late - 1)
		second := want(t.Context(), y, "y")
		s.wantCalls(t)
		time.Sleep(time.Nanosecond)
		s.wantCalls(t, "x y")
		<-first
		<-second
		third := want(t.Context(), z, "z")
		s.wantCalls(t, "x y")
		<-third
		s.wantCalls(t, "x y", "z")
	})
}

func TestLastMemberThatLeavesCancelsTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent, cancel := context.WithCancel(t.Context())
		cause := make(chan error, 1)
		s := source{before: func(ctx context.Context) {
			<-ctx.Done()
			cause <- context.Cause(ctx)
		}}
		b := batchfetch.New(s.config(parent))
		one, leaveOne := context.WithCancel(t.Context())
		two, leaveTwo := context.WithCancelCause(t.Context())
		first, second := want(one, b.Join(), "x"), want(two, b.Join(), "y")
		b.Decide()
		s.wantCalls(t, "x y")
		cancel() // the end of the GetMany's own context does not count
		leaveOne()
		if a := <-first; !errors.Is(a.err, context.Canceled) {
			t.Errorf("the first got %+v", a)
		}
		synctest.Wait()
		if len(cause) > 0 {
			t.Fatal("the call was cancelled while a member waits")
		}
		leaveTwo(errFetch)
		if a := <-second; !errors.Is(a.err, context.Canceled) {
			t.Errorf("the second got %+v", a)
		}
		if err := <-cause; !errors.Is(err, errFetch) {
			t.Errorf("the call ended with cause %v", err)
		}
		synctest.Wait()
		if len(s.ends) == 0 || !errors.Is(s.ends[0], context.Canceled) {
			t.Errorf("the observer ended with %v, want first the end of the last member", s.ends)
		}
	})
}

func TestMemberThatLeavesBeforeTheCallIsNotFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		b := batchfetch.New(s.config(t.Context()))
		ctx, leave := context.WithCancel(t.Context())
		left, stays := want(ctx, b.Join(), "x"), want(t.Context(), b.Join(), "y")
		leave()
		<-left
		b.Decide()
		<-stays
		s.wantCalls(t, "y")
	})
}

func TestPanicAndGoexitReachAllMembers(t *testing.T) {
	for name, crash := range map[string]func(context.Context){
		"panic":  func(context.Context) { panic("oh") },
		"goexit": func(context.Context) { runtime.Goexit() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := source{before: crash, store: map[string]string{}} // the Store does not crash
				for key, a := range all(t.Context(), &s, "x", "y") {
					p, panicked := errors.AsType[*flight.PanicError](a.err)
					if name == "panic" && (!panicked || p.Value != "oh") || name == "goexit" && !errors.Is(a.err, flight.ErrGoexit) || a.FromStore {
						t.Errorf("%s got %+v", key, a)
					}
				}
				synctest.Wait()
				if s.entered != 0 || len(s.ends) != 1 || s.ends[0] == nil {
					t.Errorf("%d calls have not left, the observer ended with %v", s.entered, s.ends)
				}
			})
		})
	}
}

func TestPanicOfTheLookupIsTheStores(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := source{store: map[string]string{}}
		c := s.config(t.Context())
		c.Lookup = func(context.Context, []string) (map[string]string, map[string]error) { panic("oh") }
		b := batchfetch.New(c)
		got := want(t.Context(), b.Join(), "x")
		b.Decide()
		a := <-got
		if _, panicked := errors.AsType[*flight.PanicError](a.err); !panicked || !a.FromStore {
			t.Errorf("got %+v", a)
		}
	})
}

func TestLookupComesBeforeFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := source{store: map[string]string{"row": "stored"}, storeErr: map[string]error{"bad": errFetch}}
		got := all(t.Context(), &s, "row", "bad", "x")
		want := map[string]answer{
			"row": {Result: batchfetch.Result[string]{Value: "stored", FromStore: true}},
			"bad": {Result: batchfetch.Result[string]{FromStore: true}, err: errFetch},
			"x":   value("x"),
		}
		if !maps.Equal(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		s.wantCalls(t, "x")

		s = source{store: s.store, enterErr: errFetch}
		if got := all(t.Context(), &s, "row"); got["row"] != want["row"] || s.entered != 0 {
			t.Errorf("a batch of rows alone got %+v, and entered %d times", got, s.entered)
		}
	})
}

func TestKeysThatFetchDoesNotReturn(t *testing.T) {
	for _, err := range []error{nil, errFetch} {
		synctest.Test(t, func(t *testing.T) {
			s := source{absent: "y", err: err}
			missing := answer{err: err}
			if err == nil {
				missing.err = errNotFound
			}
			if got := all(t.Context(), &s, "x", "y"); got["x"] != value("x") || got["y"] != missing {
				t.Errorf("with error %v, got %+v", err, got)
			}
		})
	}
}

func TestErrorOfEnterReachesTheMembersWithoutARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := source{store: map[string]string{"row": "stored"}, enterErr: errFetch}
		got := all(t.Context(), &s, "row", "x")
		if got["row"].err != nil || got["x"] != (answer{err: errFetch}) {
			t.Errorf("got %+v", got)
		}
		s.wantCalls(t)
	})
}

func TestObserverKnowsWhatACallIsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, background := range []bool{true, false} {
			for _, unleased := range []bool{true, false} {
				var s source
				b := batchfetch.New(s.config(t.Context()))
				x, y := b.Join(), b.Join()
				b.Decide()
				go func() { _, _ = x.Fetch(t.Context(), "x", true, false) }()
				_, _ = y.Fetch(t.Context(), "y", background, unleased)
				synctest.Wait()
				if c := s.infos[0]; len(c.Keys) != 2 || c.Background != background || c.Unleased != unleased {
					t.Errorf("with background %v, unleased %v: the call is %+v", background, unleased, c)
				}
			}
		}
	})
}

// begins starts a Begin, and returns what is closed when it returns.
func begins(ctx context.Context, load *batchfetch.Load[string]) <-chan struct{} {
	begun := make(chan struct{})
	go func() {
		load.Begin(ctx)
		close(begun)
	}()
	synctest.Wait()
	return begun
}

func isClosed(c <-chan struct{}) bool {
	synctest.Wait()
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// fill returns loads that have all slots of a batch.
func fill(ctx context.Context, b *batchfetch.Batch[string]) []*batchfetch.Load[string] {
	loads := make([]*batchfetch.Load[string], width)
	for i := range loads {
		loads[i] = b.Join()
		loads[i].Begin(ctx)
	}
	return loads
}

func TestPauseFreesASlotOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		b := batchfetch.New(s.config(t.Context()))
		loads := fill(t.Context(), b)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		one, two, gone := begins(ctx, b.Join()), begins(ctx, b.Join()), b.Join()
		if isClosed(one) || isClosed(two) {
			t.Fatalf("more than %d loads use Redis", width)
		}
		loads[0].Pause()
		loads[0].Pause()
		if isClosed(one) == isClosed(two) {
			t.Errorf("one Pause let %v, %v begin, want one of both", isClosed(one), isClosed(two))
		}
		cancel()
		if !isClosed(one) || !isClosed(two) {
			t.Error("Begin waits on after the end of its context")
		}
		gone.Begin(ctx)
		gone.Pause() // it has no slot to free
	})
}

func TestRedisFailedFreesLoadsThatWaitForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		b := batchfetch.New(s.config(t.Context()))
		loads := fill(t.Context(), b)
		waits := begins(t.Context(), b.Join())
		if isClosed(waits) {
			t.Fatalf("more than %d loads use Redis", width)
		}
		loads[0].RedisFailed()
		loads[1].RedisFailed() // closes nothing twice
		if !isClosed(waits) || !isClosed(begins(t.Context(), b.Join())) {
			t.Error("a load waits for a slot though Redis fails")
		}
	})
}

// A load uses no Redis while the batch is fetched, and uses it again to store the value.
func TestFetchFreesTheSlotAndTakesOneAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s source
		b := batchfetch.New(s.config(t.Context()))
		loads := fill(t.Context(), b)
		fetched := want(t.Context(), loads[0], "x")
		other := b.Join()
		if !isClosed(begins(t.Context(), other)) {
			t.Fatal("a load that waits for the fetch has a slot")
		}
		for _, load := range loads[1:] {
			load.Decide()
		}
		other.Decide()
		b.Decide()
		s.wantCalls(t, "x")
		if len(fetched) > 0 {
			t.Fatal("the load goes on without a slot")
		}
		other.Pause()
		if a := <-fetched; a != value("x") {
			t.Errorf("got %+v", a)
		}
		if isClosed(begins(t.Context(), b.Join())) {
			t.Error("the load has no slot again")
		}
		loads[0].RedisFailed() // ends the waits of this test
	})
}

func TestMethodsOfANilLoadDoNothing(t *testing.T) {
	var load *batchfetch.Load[string]
	load.Begin(t.Context())
	load.Pause()
	load.RedisFailed()
	load.Decide()
}
