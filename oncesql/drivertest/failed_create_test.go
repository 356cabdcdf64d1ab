package drivertest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
	"github.com/fetchonce/fetchonce/oncetest"
)

// A value is fetched, and the database refuses its row. Callers of that process get the
// driver's error and no value. Callers of another process get an Error without the driver's
// error. The next Get fetches again.
func TestFailedCreateDropsTheValue(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			outside := newDatabase(t)
			synctest.Test(t, func(t *testing.T) {
				s := slugStore(t, outside.again(t))
				if _, err := s.Create(t.Context(), "other", "slug"); err != nil {
					t.Fatal(err)
				}
				rdb := oncetest.Redis(t)
				l, other := pagesLoader(t, rdb, s), pagesLoader(t, oncetest.NewClient(t, rdb), s)
				fetching, fetched := make(chan struct{}), 0
				fetch := func(context.Context, string) (string, error) {
					fetched++
					<-fetching
					return "slug", nil
				}
				gets := []<-chan result[string]{getInBackground(t, l, fetch)}
				synctest.Wait() // it fetches
				gets = append(gets, getInBackground(t, l, fetch), getInBackground(t, other, fetch))
				synctest.Wait() // they wait for it
				close(fetching)
				for _, got := range gets[:2] {
					if r := <-got; r.v != "" || !isDriversUniqueViolation(r.err) {
						t.Errorf("Get here = %v; want nothing, and the driver's unique violation", r)
					}
				}
				r := <-gets[2]
				e, ok := errors.AsType[*fetchonce.Error](r.err)
				if !ok || e.Op != "fetch" || e.Key != "k" || isDriversUniqueViolation(e.Err) {
					t.Errorf("Get in another process = %v; want an Error of fetch, without the driver's", r)
				}
				if fetched != 1 {
					t.Errorf("%d fetches; want 1", fetched)
				}
				v, err := l.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "free", nil })
				if v != "free" || err != nil {
					t.Errorf("Get after it = %q, %v; want free, nil", v, err)
				}
			})
		})
	}
}

func pagesLoader(t *testing.T, rdb redis.UniversalClient, s *oncesql.Store[string]) *fetchonce.Loader[string] {
	t.Helper()
	l, err := fetchonce.New(rdb, fetchonce.Options[string]{Prefix: "pages", Store: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func getInBackground(t *testing.T, l *fetchonce.Loader[string], fetch func(context.Context, string) (string, error)) <-chan result[string] {
	t.Helper()
	done := make(chan result[string], 1)
	go func() {
		v, err := l.Get(t.Context(), "k", fetch)
		done <- result[string]{v, err}
	}()
	return done
}
