package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A table is a Store in memory.
type table struct {
	mu      sync.Mutex
	rows    map[string]string
	lookups int
	creates int
	err     error // of every call
}

func newTable() *table { return &table{rows: make(map[string]string)} }

func (s *table) Lookup(_ context.Context, key string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookups++
	v, ok := s.rows[key]
	if !ok && s.err == nil {
		return "", fmt.Errorf("no row for %q: %w", key, fetchonce.ErrNotFound)
	}
	return v, s.err
}

func (s *table) Create(ctx context.Context, key, v string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creates++
	if s.err != nil || ctx.Err() != nil {
		return "", errors.Join(s.err, ctx.Err())
	}
	if kept, ok := s.rows[key]; ok {
		return kept, nil
	}
	s.rows[key] = v
	return v, nil
}

func (s *table) row(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rows[key]
}

func (s *table) counts() (lookups, creates int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lookups, s.creates
}

// storeForms runs a test with a table behind Redis, and with a table alone.
func storeForms(t *testing.T, test func(t *testing.T, r backend, s *table, with func(*options))) {
	t.Helper()
	for name, ttl := range map[string]time.Duration{"Redis and Store": 0, "Store only": fetchonce.Off} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				s := newTable()
				test(t, r, s, func(opt *options) { opt.Store, opt.TTL = s, ttl })
			})
		})
	}
}

func TestCreatorsMakeOneFetchAndOneRow(t *testing.T) {
	storeForms(t, func(t *testing.T, r backend, s *table, with func(*options)) {
		o := testkit.NewOrigin(t)
		var all []*testkit.Getter
		for range 4 {
			l := newLoader(t, r, with)
			for range 50 {
				all = append(all, testkit.Get(t, t.Context(), l, "k", o))
			}
		}
		c := o.Next()
		r.Settle()
		c.Returns("v")
		for _, g := range all {
			g.Want("v")
		}
		o.Want(1)
		if _, creates := s.counts(); creates != 1 || s.row("k") != "v" {
			t.Errorf("the row is %q, after %d creates", s.row("k"), creates)
		}
	})
}

// A key that has a row is not fetched.
func TestRowThatExistsIsNotFetched(t *testing.T) {
	storeForms(t, func(t *testing.T, r backend, s *table, with func(*options)) {
		s.rows["k"] = "row"
		l := newLoader(t, r, with)
		for range 3 {
			got, err := l.Load(t.Context(), "k", func(context.Context, *fetchonce.Fetch[string]) (string, error) {
				t.Error("fetched")
				return "", nil
			})
			if got.Value != "row" || err != nil {
				t.Errorf("Load = %+v, %v", got, err)
			}
		}
		want := 1 // then Redis has it
		if _, err := l.Peek(t.Context(), "other"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek = %v", err)
		}
		if got, err := l.Peek(t.Context(), "k"); got.Source == fetchonce.SourceStore {
			want = 5 // each Load and each Peek calls the table
		} else if err != nil {
			t.Error(err)
		}
		if lookups, _ := s.counts(); lookups != want {
			t.Errorf("%d lookups, want %d", lookups, want)
		}
	})
}

// The lookups of two processes return no row. The second looks up again under its lease.
func TestStoreIsLookedUpAgainUnderTheLease(t *testing.T) {
	storeForms(t, func(t *testing.T, r backend, s *table, with func(*options)) {
		o := testkit.NewOrigin(t)
		slow := r.Client()
		gate := testkit.NewGate(slow)
		gate.Shut()
		second := testkit.Get(t, t.Context(), testkit.LoaderOf(t, slow, with), "k", o)
		<-gate.Stopped
		first := testkit.Get(t, t.Context(), newLoader(t, r, with), "k", o)
		o.Next().Returns("v")
		first.Want("v")
		gate.Open()
		second.Want("v")
		o.Want(1)
	})
}

// The lease is deleted in Redis, and two processes fetch. One row is kept, and both return it.
func TestTwoCreatorsReceiveTheSameRow(t *testing.T) {
	storeForms(t, func(t *testing.T, r backend, s *table, with func(*options)) {
		o := testkit.NewOrigin(t)
		o.Ignore = true
		rdb := r.Client()
		a := testkit.Get(t, t.Context(), newLoader(t, r, with), "k", o)
		first := o.Next()
		rdb.Del(t.Context(), "test:m:{k}") // without a notification to the first
		b := testkit.Get(t, t.Context(), newLoader(t, r, with), "k", o)
		o.Next().Returns("kept")
		b.Want("kept")
		first.Returns("lost")
		a.Want("kept")
		if s.row("k") != "kept" {
			t.Errorf("the row is %q", s.row("k"))
		}
	})
}

func TestErrorOfTheStoreIsReturnedUnchanged(t *testing.T) {
	storeForms(t, func(t *testing.T, r backend, s *table, with func(*options)) {
		s.err = errors.New("the database is down")
		o := testkit.NewOrigin(t)
		out := testkit.Get(t, t.Context(), newLoader(t, r, with), "k", o).Outcome()
		if out.Err != s.err {
			t.Errorf("Get = %v, want the Store's error", out.Err)
		}
		o.Want(0)
	})
}

// Without Redis, each process fetches. The unique key of the table keeps one row.
func TestWithoutRedisTheStoreKeepsOneRow(t *testing.T) {
	storeForms(t, func(t *testing.T, r backend, s *table, with func(*options)) {
		o := testkit.NewOrigin(t)
		a, b := newLoader(t, r, with), newLoader(t, r, with)
		r.Kill()
		here, there := testkit.Get(t, t.Context(), a, "k", o), testkit.Get(t, t.Context(), b, "k", o)
		first, second := o.Next(), o.Next()
		first.Returns("v")
		r.Until("the row is there", func() bool { return s.row("k") != "" })
		second.Returns("another")
		here.Want("v")
		there.Want("v")
	})
}

func TestSetNeedsTTL(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, func(opt *options) { opt.Store, opt.TTL = newTable(), fetchonce.Off })
		if e, ok := errors.AsType[*fetchonce.Error](l.Set(t.Context(), "k", "v")); !ok || e.Op != "set" {
			t.Errorf("Set = %v, want an *Error", e)
		}
	})
}

// Redis may have a value from a time when the options had a TTL, which may be large.
func TestStoreWithoutTTLIgnoresAValueInRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		for _, left := range []string{"small", strings.Repeat("large", 10_000)} {
			if err := newLoader(t, r).Set(t.Context(), "k", left); err != nil {
				t.Fatal(err)
			}
			l := newLoader(t, r, func(opt *options) { opt.TTL, opt.Store = fetchonce.Off, newTable() })
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			o := testkit.NewOrigin(t)
			g := testkit.Get(t, ctx, l, "k", o)
			o.Next().Returns("v")
			g.Want("v")
			o.Want(1)
			if left := testkit.Keys(t, r); len(left) != 0 {
				t.Errorf("left in Redis: %q", left)
			}
		}
	})
}
