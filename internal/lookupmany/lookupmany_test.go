package lookupmany_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/lookupmany"
)

var errNone, errBad = errors.New("not found"), errors.New("bad row")

// keysError is an error that says which keys failed.
type keysError map[string]error

func (keysError) Error() string { return "some failed" }

// rows is a Store with the rows a and b, in which the key bad fails and the key boom panics.
func rows(many bool) *lookupmany.Store[string] {
	s := &lookupmany.Store[string]{
		NotFound: errNone,
		Lookup: func(_ context.Context, key string) (string, error) {
			switch key {
			case "a", "b":
				return "row " + key, nil
			case "bad":
				return "", errBad
			case "boom":
				panic("boom")
			}
			return "", errNone
		},
		ErrorsByKey: func(err error) (map[string]error, bool) {
			errs, ok := errors.AsType[keysError](err)
			return errs, ok
		},
	}
	if many {
		s.LookupMany = func(ctx context.Context, keys []string) (map[string]string, error) {
			found := make(map[string]string)
			for _, key := range keys {
				v, err := s.Lookup(ctx, key)
				if errors.Is(err, errBad) {
					return nil, err
				}
				if err == nil {
					found[key] = v
				}
			}
			return found, nil
		}
	}
	return s
}

func TestOneBadKeyFailsAlone(t *testing.T) {
	for name, many := range map[string]bool{"one by one": false, "together": true} {
		t.Run(name, func(t *testing.T) {
			found, errs := rows(many).Keys(t.Context(), []string{"a", "none", "bad", "b"})
			if !maps.Equal(found, map[string]string{"a": "row a", "b": "row b"}) {
				t.Errorf("found are %v", found)
			}
			if len(errs) != 1 || !errors.Is(errs["bad"], errBad) {
				t.Errorf("errors are %v, want that of bad", errs)
			}
		})
	}
}

func TestPanicOfALookupIsTheErrorOfItsKey(t *testing.T) {
	found, errs := rows(false).Keys(t.Context(), []string{"a", "boom"})
	if _, ok := errors.AsType[*flight.PanicError](errs["boom"]); !ok || found["a"] != "row a" {
		t.Errorf("found are %v, errors %v", found, errs)
	}
}

// The keys that an error names are not looked up again, and those with a value have no error.
func TestErrorsByKeyAreTakenAsTheyAre(t *testing.T) {
	calls := 0
	s := rows(false)
	s.LookupMany = func(context.Context, []string) (map[string]string, error) {
		calls++
		return map[string]string{"a": "row a"}, keysError{"a": errBad, "bad": errBad, "none": errNone}
	}
	found, errs := s.Keys(t.Context(), []string{"a", "bad", "none"})
	if calls != 1 || found["a"] != "row a" || !slices.Equal(slices.Collect(maps.Keys(errs)), []string{"bad"}) {
		t.Errorf("%d calls, found are %v, errors %v", calls, found, errs)
	}
}

// After the end of the context, no halves are looked up.
func TestEndedContextEndsTheSearchForABadKey(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	s := rows(false)
	s.LookupMany = func(context.Context, []string) (map[string]string, error) {
		calls++
		cancel()
		return nil, ctx.Err()
	}
	if _, errs := s.Keys(ctx, []string{"a", "b", "c", "d"}); calls != 1 || len(errs) != 4 {
		t.Errorf("%d calls, errors %v; want one, and an error for each key", calls, errs)
	}
}
