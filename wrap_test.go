package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
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

// A query is the argument of a wrapped function.
type query struct {
	Shop int
	tags []string
}

// A search records the arguments of its runs.
type search struct {
	mu   sync.Mutex
	runs []string
}

func (s *search) fetch(_ context.Context, q query) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs = append(s.runs, fmt.Sprint(q))
	return fmt.Sprintf("%v found %d", q, len(s.runs)), nil
}

func (s *search) want(t *testing.T, runs ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if fmt.Sprint(s.runs) != fmt.Sprint(runs) {
		t.Errorf("fetched %q, want %q", s.runs, runs)
	}
}

func wantGet[A any](t *testing.T, f fetchonce.Func[A, string], arg A, want string) {
	t.Helper()
	if got, err := f.Get(t.Context(), arg); got != want || err != nil {
		t.Errorf("Get(%v) = %q, %v; want %q", arg, got, err, want)
	}
}

func TestWrapKeepsAResultForEachArgument(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		s := &search{}
		here := fetchonce.Wrap(newLoader(t, r), nil, s.fetch)
		there := fetchonce.Wrap(newLoader(t, r), nil, s.fetch)
		hot, cold := query{1, []string{"hot"}}, query{1, []string{"cold"}}

		wantGet(t, here, hot, "{1 [hot]} found 1")
		wantGet(t, there, query{1, []string{"hot"}}, "{1 [hot]} found 1")
		wantGet(t, there, cold, "{1 [cold]} found 2")
		s.want(t, "{1 [hot]}", "{1 [cold]}")

		if err := there.Delete(t.Context(), hot); err != nil {
			t.Fatal(err)
		}
		wantGet(t, here, cold, "{1 [cold]} found 2")
		wantGet(t, here, hot, "{1 [hot]} found 3")
	})
}

func TestWrapUsesTheKeysItIsGiven(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r)
		s := &search{}
		byShop := fetchonce.Wrap(l, func(q query) string { return fmt.Sprintf("shop:%d", q.Shop) }, s.fetch)
		wantGet(t, byShop, query{1, []string{"hot"}}, "{1 [hot]} found 1")
		wantGet(t, byShop, query{1, []string{"cold"}}, "{1 [hot]} found 1")
		wantGet(t, byShop, query{2, nil}, "{2 []} found 2")
		if got, err := l.Peek(t.Context(), "shop:2"); got.Value != "{2 []} found 2" || err != nil {
			t.Errorf("Peek = %v, %v", got, err)
		}
		if err := byShop.Delete(t.Context(), query{2, nil}); err != nil {
			t.Error(err)
		}
		if got, err := l.Peek(t.Context(), "shop:2"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek = %v, %v after a Delete", got, err)
		}
	})
}

// Wrap makes the key of an argument as Key does, whatever its type.
func TestKeysOfWrapAreThoseOfKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := testkit.LoaderOf(t, redistest.Bubble(t).Client())
		wantKey(t, l, "tea pot")
		wantKey(t, l, 42)
		wantKey(t, l, int64(42))
		wantKey(t, l, query{1, []string{"hot"}})
		wantKey(t, l, &query{2, nil})
		wantKey(t, l, any("in an interface"))
		wantKey(t, l, fmt.Stringer(3*time.Second))
		wantKey(t, l, any(nil))
		wantKey(t, l, [2]query{{1, nil}, {2, nil}})
		wantKey(t, l, strings.Repeat("long", 100))
	})
}

func wantKey[A any](t *testing.T, l loader, arg A) {
	t.Helper()
	want := fmt.Sprintf("%T %v", arg, arg)
	f := fetchonce.Wrap(l, nil, func(context.Context, A) (string, error) { return want, nil })
	wantGet(t, f, arg, want)
	if got, err := l.Peek(t.Context(), fetchonce.Key(arg)); got.Value != want || err != nil {
		t.Errorf("Peek(Key(%v)) = %q, %v; want %q", arg, got.Value, err, want)
	}
}

func TestWrappedFunctionRunsOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		var runs atomic.Int32
		slow := func(ctx context.Context, n int) (string, error) {
			time.Sleep(50 * time.Millisecond)
			return fmt.Sprint(n, " run ", runs.Add(1)), ctx.Err()
		}
		var callers sync.WaitGroup
		for range 4 {
			f := fetchonce.Wrap(newLoader(t, r), nil, slow)
			for range 25 {
				callers.Go(func() { wantGet(t, f, 7, "7 run 1") })
			}
		}
		callers.Wait()
	})
}

func TestErrorOfAWrappedFunctionIsReturnedUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failure := errors.New("no tea")
		f := fetchonce.Wrap(testkit.LoaderOf(t, redistest.Bubble(t).Client()), nil,
			func(context.Context, int) (string, error) { return "", failure })
		if _, err := f.Get(t.Context(), 1); err != failure {
			t.Errorf("Get = %v, want %v", err, failure)
		}
	})
}

// wantPanic checks that do panics with an *Error whose text contains want.
func wantPanic(t *testing.T, what, want string, do func()) {
	t.Helper()
	defer func() {
		t.Helper()
		err, ok := recover().(*fetchonce.Error)
		if !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: panic with %v, want an *Error with %q", what, err, want)
		}
	}()
	do()
}

func TestWrapPanicsForATypeThatHasNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		l, lk := testkit.LoaderOf(t, r.Client()), testkit.LockerOf(t, r.Client())
		wantPanic(t, "no Loader", "fetchonce: wrap: the Loader is nil", func() { fetchonce.Wrap[int, string](nil, nil, wrapped[int]) })
		wantPanic(t, "no fetch", "fetchonce: wrap: the fetch is nil", func() { fetchonce.Wrap[int](l, nil, nil) })
		wantPanic(t, "no Locker", "fetchonce: serialize: the Locker is nil", func() { fetchonce.Serialize(nil, nil, wrapped[int]) })
		wantPanic(t, "no function", "fetchonce: serialize: the function is nil", func() { fetchonce.Serialize[int, int](lk, nil, nil) })
		refuse[func()](t, l, lk, "a func() has no text")
		refuse[chan int](t, l, lk, "a chan int has no text")
		refuse[*struct{ Do []func() }](t, l, lk, "Do of struct { Do []func() }: a func() has no text")
		refuse[*sync.Mutex](t, l, lk, "a sync.Mutex has no text")
		refuse[map[chan int]string](t, l, lk, "a chan int has no text")
		refuse[interface{ F() }](t, l, lk, "an interface with methods needs a name")
	})
}

func wrapped[A any](context.Context, A) (string, error) { return "", nil }

// refuse checks that Wrap and Serialize panic for the type A, and work with a key function.
func refuse[A any](t *testing.T, l loader, lk *fetchonce.Locker, want string) {
	t.Helper()
	what := fmt.Sprintf("%T", *new(A))
	wantPanic(t, what, want, func() { fetchonce.Wrap(l, nil, wrapped[A]) })
	wantPanic(t, what, want, func() { fetchonce.Serialize(lk, nil, wrapped[A]) })
	named := func(A) string { return "it" }
	wantGet(t, fetchonce.Wrap(l, named, wrapped[A]), *new(A), "")
	if _, err := fetchonce.Serialize(lk, named, wrapped[A])(t.Context(), *new(A)); err != nil {
		t.Errorf("%s with a name: %v", what, err)
	}
}

// The dynamic type in an interface is known only at the call, so Get returns the error.
func TestArgumentThatHasNoKeyIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		run := func(context.Context, any) (string, error) {
			t.Error("it ran")
			return "", nil
		}
		f, do := fetchonce.Wrap(testkit.LoaderOf(t, r.Client()), nil, run), fetchonce.Serialize(testkit.LockerOf(t, r.Client()), nil, run)
		cyclic := make([]any, 1)
		cyclic[0] = cyclic
		for _, arg := range []any{func() {}, []any{1, make(chan int)}, cyclic} {
			_, errGet := f.Get(t.Context(), arg)
			_, errDo := do(t.Context(), arg)
			for _, err := range []error{errGet, f.Delete(t.Context(), arg), errDo} {
				if e, ok := errors.AsType[*fetchonce.Error](err); !ok || e.Op != "key" {
					t.Errorf("%T: %v, want an *Error of key", arg, err)
				}
			}
		}
	})
}

func TestKeyPanicsWithoutAText(t *testing.T) {
	wantPanic(t, "a func", "fetchonce: key: argument 2 of 2: a func() has no text", func() { fetchonce.Key(1, func() {}) })
}

func TestKeysOfDifferentTypesOrValuesDiffer(t *testing.T) {
	three, zero := 3, 0
	keys := map[string]int{}
	for i, args := range [][]any{
		{},
		{nil},
		{""},
		{"1"},
		{1},
		{int64(1)},
		{1.0},
		{true},
		{"true"},
		{"nil"},
		{"a", "b"},
		{"a,b"},
		{`a","b`},
		{[]string{"a", "b"}},
		{[]any{"a", "b"}},
		{[2]string{"a", "b"}},
		{&three},
		{three},
		{&zero},
		{zero},
		{(*int)(nil)},
		{(*string)(nil)},
		{[]int{}},
		{[]int(nil)},
		{[]byte("a")},
		{query{}},
		{&query{}},
		{query{0, []string{}}},
		{query{1, nil}},
		{map[string]int{"a": 1}},
		{map[string]int{"a": 2}},
		{map[string]any{"a": 1}},
		{time.Second},
		{int64(time.Second)},
	} {
		key := fetchonce.Key(args...)
		if other, ok := keys[key]; ok {
			t.Errorf("lists %d and %d have the key %s", other, i, key)
		}
		keys[key] = i
	}
}

// A turnstile counts how many are in it at once.
type turnstile struct{ now, most, all atomic.Int32 }

func (s *turnstile) pass(d time.Duration) {
	now := s.now.Add(1)
	s.all.Add(1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	time.Sleep(d)
	s.now.Add(-1)
}

func TestSerializeRunsOneCallAtATime(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		var in turnstile
		var callers sync.WaitGroup
		for p := range 4 {
			double := fetchonce.Serialize(testkit.NewLocker(t, r), func(int) string { return "it" }, func(_ context.Context, n int) (int, error) {
				in.pass(2 * time.Millisecond)
				return 2 * n, nil
			})
			for i := range 5 {
				n := 5*p + i
				callers.Go(func() {
					if got, err := double(t.Context(), n); got != 2*n || err != nil {
						t.Errorf("%d, %v; want %d", got, err, 2*n)
					}
				})
			}
		}
		callers.Wait()
		if in.most.Load() != 1 || in.all.Load() != 20 {
			t.Errorf("of %d runs, %d at once; want 20 runs, one at a time", in.all.Load(), in.most.Load())
		}
	})
}

// Calls with different arguments run at once, and calls with equal ones do not.
func TestSerializeHasOneLockPerArgument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		var in turnstile
		do := fetchonce.Serialize(testkit.LockerOf(t, r.Client()), nil, func(_ context.Context, q query) (bool, error) {
			in.pass(time.Second)
			return true, nil
		})
		began := time.Now()
		var callers sync.WaitGroup
		for _, q := range []query{{1, nil}, {2, nil}, {1, nil}} {
			callers.Go(func() { _, _ = do(t.Context(), q) })
		}
		callers.Wait()
		if took := time.Since(began); in.most.Load() != 2 || took < 2*time.Second || took > 3*time.Second {
			t.Errorf("%d at once, in %v; want 2, in 2s", in.most.Load(), took)
		}
	})
}

func TestSerializeReturnsResultAndErrorUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		lk := testkit.LockerOf(t, r.Client())
		failure := errors.New("no tea")
		do := fetchonce.Serialize(lk, nil, func(context.Context, int) (string, error) { return "cold", failure })
		if got, err := do(t.Context(), 1); got != "cold" || err != failure {
			t.Errorf("%q, %v; want both unchanged", got, err)
		}

		// While the lock is held, the call waits until its context ends. The function does not run.
		_, lease, err := lk.Acquire(t.Context(), fetchonce.Key(1))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got, err := do(ctx, 1); got != "" || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, fetchonce.ErrLocked) {
			t.Errorf("%q, %v; want a deadline and ErrLocked", got, err)
		}
		if err := lease.Release(); err != nil {
			t.Error(err)
		}
	})
}

func TestSerializeReturnsErrLockLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		var cause error
		do := fetchonce.Serialize(testkit.LockerOf(t, r.Client()), nil, func(ctx context.Context, _ int) (string, error) {
			r.Kill()
			<-ctx.Done()
			cause = context.Cause(ctx)
			return "late", nil
		})
		if got, err := do(t.Context(), 1); got != "late" || !errors.Is(err, fetchonce.ErrLockLost) || cause != fetchonce.ErrLockLost {
			t.Errorf("%q, %v, cause %v; want the result and ErrLockLost", got, err, cause)
		}
		if got, err := do(t.Context(), 1); got != "" {
			t.Errorf("%q, %v without a Redis", got, err)
		} else if _, ok := errors.AsType[*fetchonce.Error](err); !ok {
			t.Errorf("%v without a Redis, want an *Error", err)
		}
	})
}

func TestPanicOfASerializedFunctionReleasesTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := true
		do := fetchonce.Serialize(testkit.LockerOf(t, redistest.Bubble(t).Client()), nil, func(context.Context, int) (string, error) {
			if bad {
				panic("no tea")
			}
			return "tea", nil
		})
		func() {
			defer func() {
				if p := recover(); p != "no tea" {
					t.Errorf("panic with %v", p)
				}
			}()
			_, _ = do(t.Context(), 1)
		}()
		bad = false
		began := time.Now()
		if got, err := do(t.Context(), 1); got != "tea" || err != nil || time.Since(began) > time.Second {
			t.Errorf("%q, %v after %v", got, err, time.Since(began))
		}
	})
}

// BenchmarkHit compares a hit of Wrap with one of Get, on a real server.
func BenchmarkHit(b *testing.B) {
	rdb := redistest.Server(b).Client()
	l, err := fetchonce.New(rdb, options{Prefix: "test"})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	miss := errors.New("a benchmark of hits fetches")
	byString := fetchonce.Wrap(l, nil, func(context.Context, string) (string, error) { return "", miss })
	byStruct := fetchonce.Wrap(l, nil, func(context.Context, query) (string, error) { return "", miss })
	fetch := func(context.Context, string) (string, error) { return "", miss }
	key, q := fetchonce.Key("teapot"), query{1, []string{"hot"}}
	for _, k := range []string{key, fetchonce.Key(q)} {
		if err := l.Set(b.Context(), k, "value"); err != nil {
			b.Fatal(err)
		}
	}
	for name, get := range map[string]func() (string, error){
		"Get":             func() (string, error) { return l.Get(b.Context(), key, fetch) },
		"Wrap/arg=string": func() (string, error) { return byString.Get(b.Context(), "teapot") },
		"Wrap/arg=struct": func() (string, error) { return byStruct.Get(b.Context(), q) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if v, err := get(); v != "value" || err != nil {
					b.Fatal(v, err)
				}
			}
		})
	}
}

func BenchmarkKey(b *testing.B) {
	for name, args := range map[string][]any{
		"string": {"teapot"}, "two": {"teapot", 42}, "struct": {query{1, []string{"hot"}}}, "long": {strings.Repeat("teapot", 100)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				fetchonce.Key(args...)
			}
		})
	}
}
