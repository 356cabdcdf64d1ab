package fetchonce_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// Two builds run at once during a deployment. They have the same prefix and keys, and different
// types and Schemas.
type (
	customerOld struct {
		Name string
		Age  int
	}
	customerNew struct {
		FullName string
		Age      string // msgpack cannot read a number into it
	}
)

// A build is one process of a build.
type build[V any] struct {
	t       *testing.T
	l       *fetchonce.Loader[V]
	v       V
	fetches *atomic.Int64
}

func newBuild[V any](t *testing.T, r backend, schema string, v V, change ...func(*fetchonce.Options[V])) build[V] {
	t.Helper()
	opt := fetchonce.Options[V]{Prefix: "test", Schema: schema, RedisTimeout: 10 * time.Second, Logger: slog.New(noLog{t})}
	for _, f := range change {
		f(&opt)
	}
	l, err := fetchonce.New(r.Client(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return build[V]{t, l, v, new(atomic.Int64)}
}

// noLog fails the test if a record is logged: another build's value is no reason to log.
type noLog struct{ t *testing.T }

func (noLog) Enabled(context.Context, slog.Level) bool { return true }
func (l noLog) WithAttrs([]slog.Attr) slog.Handler     { return l }
func (l noLog) WithGroup(string) slog.Handler          { return l }
func (l noLog) Handle(_ context.Context, r slog.Record) error {
	l.t.Errorf("logged: %s", r.Message)
	return nil
}

// get is a Get of "k" whose fetches are counted.
func (b build[V]) get() V {
	b.t.Helper()
	got, err := b.l.Get(b.t.Context(), "k", func(context.Context, string) (V, error) {
		b.fetches.Add(1)
		return b.v, nil
	})
	if err != nil {
		b.t.Error("Get:", err)
	}
	return got
}

func wantFetches[V any](t *testing.T, what string, b build[V], want int64) {
	t.Helper()
	if n := b.fetches.Load(); n != want {
		t.Errorf("%s: %d fetches, want %d", what, n, want)
	}
}

func TestChangeByOneBuildEndsTheValuesOfAll(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		before := newBuild(t, r, "1", customerOld{"Ada", 36})
		after := newBuild(t, r, "2", customerNew{"Ada Lovelace", "36"})
		for _, change := range []struct {
			name      string
			do        func() error
			refetches int64 // of the build that made the change
		}{
			{"Delete", func() error { return before.l.Delete(t.Context(), "k") }, 1},
			{"Set", func() error { return before.l.Set(t.Context(), "k", before.v) }, 0},
			{"Update", func() error {
				return before.l.Update(t.Context(), "k", func(context.Context) error { return nil })
			}, 1},
		} {
			for range 2 {
				before.get()
				after.get()
			}
			before.fetches.Store(0)
			after.fetches.Store(0)
			if err := change.do(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got := after.get(); got != after.v {
					t.Errorf("%s: the other build got %+v, want %+v", change.name, got, after.v)
				}
				if got := before.get(); got != before.v {
					t.Errorf("%s: its own build got %+v, want %+v", change.name, got, before.v)
				}
			}
			wantFetches(t, change.name+", the other build", after, 1)
			wantFetches(t, change.name+", its own build", before, change.refetches)
		}
	})
}

// Each build finds its own value for its whole TTL, although the other build stores its own.
func TestBuildsDoNotOverwriteEachOther(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		before := newBuild(t, r, "1", customerOld{"Ada", 36}, func(opt *fetchonce.Options[customerOld]) {
			opt.TTL, opt.Jitter = 3*time.Second, fetchonce.Off
		})
		after := newBuild(t, r, "2", customerNew{"Ada Lovelace", "36"}, func(opt *fetchonce.Options[customerNew]) {
			opt.TTL, opt.Jitter = 4*time.Second, fetchonce.Off
		})
		for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
			if got := before.get(); got != before.v {
				t.Fatalf("the old build got %+v, want %+v", got, before.v)
			}
			if got := after.get(); got != after.v {
				t.Fatalf("the new build got %+v, want %+v", got, after.v)
			}
		}
		if n := before.fetches.Load(); n > 4 {
			t.Errorf("the old build fetched %d times in 10 s, want 4 at most with a TTL of 3 s", n)
		}
		if n := after.fetches.Load(); n > 3 {
			t.Errorf("the new build fetched %d times in 10 s, want 3 at most with a TTL of 4 s", n)
		}
	})
}

// MaxBytes of one build does not apply to the values of another build.
func TestLargeValueOfOneBuildDoesNotHideTheOthers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		small := newBuild(t, r, "1", "small", func(opt *fetchonce.Options[string]) { opt.MaxBytes = 1000 })
		large := newBuild(t, r, "2", []byte(strings.Repeat("large", 100_000)))
		fetchMany := func(context.Context, []string) (map[string]string, error) {
			t.Error("GetMany fetched")
			return nil, nil
		}
		small.get()
		large.get()
		for range 3 {
			if got := small.get(); got != small.v {
				t.Errorf("the small value is %q, want %q", got, small.v)
			}
			if got := large.get(); !bytes.Equal(got, large.v) {
				t.Errorf("the large value has %d bytes, want %d", len(got), len(large.v))
			}
			if got, err := small.l.GetMany(t.Context(), []string{"k"}, fetchMany); err != nil || got["k"] != small.v {
				t.Errorf("GetMany = %q, %v; want %q", got, err, small.v)
			}
		}
		wantFetches(t, "the small one", small, 1)
		wantFetches(t, "the large one", large, 1)
	})
}

func TestDeleteByOneBuildDropsNearEntriesOfTheOther(t *testing.T) {
	r := redistest.Server(t).Backend()
	near := fetchonce.Near{Entries: 100, TTL: time.Hour}
	before := newBuild(t, r, "1", "old", func(opt *fetchonce.Options[string]) { opt.Near = near })
	after := newBuild(t, r, "2", "new", func(opt *fetchonce.Options[string]) { opt.Near = near })
	before.get()
	after.get()
	testkit.WarmNear(t, r, before.l, "k", "old")
	testkit.WarmNear(t, r, after.l, "k", "new")
	if err := before.l.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	r.Until("the other build fetches again", func() bool {
		after.get()
		return after.fetches.Load() == 2
	})
}

// A build whose fetch sets a TTL of -1 stores nothing and keeps the other build's value.
func TestBuildThatKeepsNothingLeavesTheOthersValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		before := newBuild(t, r, "1", "old")
		after := newBuild(t, r, "2", "new")
		before.get()
		for range 3 {
			_, err := after.l.Load(t.Context(), "k", func(_ context.Context, f *fetchonce.Fetch[string]) (string, error) {
				f.TTL = -1
				return "new", nil
			})
			if err != nil {
				t.Fatal(err)
			}
			before.get()
		}
		wantFetches(t, "the other build", before, 1)
	})
}
