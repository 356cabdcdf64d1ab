package fetchonce_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"

	"github.com/fetchonce/fetchonce"
)

// A batchStore has rows and creates none.
type batchStore struct {
	rows    map[string]string
	fails   func(keys []string) error // returns the error of a LookupMany
	lookups int
}

func (s *batchStore) Lookup(_ context.Context, key string) (string, error) {
	if v, ok := s.rows[key]; ok {
		return v, nil
	}
	return "", fetchonce.ErrNotFound
}

func (s *batchStore) Create(_ context.Context, _, v string) (string, error) { return v, nil }

func (s *batchStore) LookupMany(_ context.Context, keys []string) (map[string]string, error) {
	s.lookups++
	found := make(map[string]string)
	for _, key := range keys {
		if v, ok := s.rows[key]; ok {
			found[key] = v
		}
	}
	err := s.fails(keys)
	if err != nil {
		if _, ok := errors.AsType[*fetchonce.ManyError](err); !ok {
			return nil, err
		}
		delete(found, "bad")
	}
	return found, err
}

// A Store's LookupMany fails because of one key. Only that key fails, whether the Store's error
// names it or not. If the Store is unreachable, GetMany calls it once.
func TestOneBadKeyOfAStoreFailsAlone(t *testing.T) {
	mine := errors.New("mine")
	for name, test := range map[string]struct {
		err     error
		failed  int
		lookups int // before the fetch and again under the lease
	}{
		"the error names the key":  {&fetchonce.ManyError{Errors: map[string]error{"bad": mine}}, 1, 1 + 1},
		"the error names no key":   {mine, 1, 1 + 2 + 2 + 2 + 1},
		"the Store is unreachable": {io.EOF, 6, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				s := &batchStore{rows: map[string]string{"a": "row", "b": "row", "c": "row", "d": "row"}}
				s.fails = func(keys []string) error {
					if slices.Contains(keys, "bad") {
						return test.err
					}
					return nil
				}
				l := newLoader(t, r, func(opt *options) { opt.Store, opt.TTL = s, fetchonce.Off })
				got, err := l.GetMany(t.Context(), []string{"a", "b", "bad", "c", "d", "e"},
					func(_ context.Context, keys []string) (map[string]string, error) {
						return map[string]string{keys[0]: "fetched"}, nil
					})
				many, ok := errors.AsType[*fetchonce.ManyError](err)
				if !ok || len(many.Errors) != test.failed || test.failed == 1 && many.Errors["bad"] != mine {
					t.Errorf("GetMany's error is %v; want that of %d keys", err, test.failed)
				}
				want := map[string]string{"a": "row", "b": "row", "c": "row", "d": "row", "e": "fetched"}
				if test.failed == 1 && !maps.Equal(got, want) {
					t.Errorf("GetMany = %v; want %v", got, want)
				}
				if s.lookups != test.lookups {
					t.Errorf("%d lookups; want %d", s.lookups, test.lookups)
				}
			})
		})
	}
}
