// Package lookupmany looks many keys up in a Store: together, if the Store can, or else some at
// a time. One key or row that fails, fails alone.
//
// GetMany uses it, for its lookup and for the lookup under its leases.
package lookupmany

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/fetchonce/fetchonce/internal/bisect"
	"github.com/fetchonce/fetchonce/internal/flight"
)

// atOnce is how many calls of Lookup run at once.
const atOnce = 64

// A Store is where keys are looked up.
type Store[V any] struct {
	Lookup     func(ctx context.Context, key string) (V, error)
	LookupMany func(ctx context.Context, keys []string) (map[string]V, error) // nil if the Store has none
	NotFound   error

	// ErrorsByKey returns the errors of single keys that an error of LookupMany consists of. It
	// reports false for an error that does not say which keys failed.
	ErrorsByKey func(err error) (map[string]error, bool)
}

// Keys returns the values of keys, and the errors of those that failed. A key that is in
// neither has no value.
func (s *Store[V]) Keys(ctx context.Context, keys []string) (found map[string]V, errs map[string]error) {
	if s.LookupMany == nil {
		return s.each(ctx, keys)
	}
	return s.together(ctx, keys)
}

// each looks keys up one by one. A Lookup that panics is the error of its key.
func (s *Store[V]) each(ctx context.Context, keys []string) (found map[string]V, errs map[string]error) {
	found, errs = make(map[string]V), make(map[string]error)
	var mu sync.Mutex // guards both
	var all errgroup.Group
	all.SetLimit(atOnce)
	for _, key := range keys {
		all.Go(func() error {
			flight.Protect(
				func() (V, error) { return s.Lookup(ctx, key) },
				func(v V, err error) {
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						found[key] = v
					case !errors.Is(err, s.NotFound):
						errs[key] = err
					}
				})
			return nil
		})
	}
	_ = all.Wait() // the errors are in errs
	return found, errs
}

// together looks keys up in one call. If that fails, and the error does not say for which keys,
// halves of them are looked up.
func (s *Store[V]) together(ctx context.Context, keys []string) (found map[string]V, errs map[string]error) {
	found = make(map[string]V, len(keys))
	byKey := make(map[string]error)
	errs = bisect.Keys([][]string{keys}, func(some []string) error {
		values, err := s.LookupMany(ctx, some)
		maps.Copy(found, values)
		if failed, ok := s.ErrorsByKey(err); ok {
			maps.Copy(byKey, failed)
			return nil
		}
		if errors.Is(err, s.NotFound) {
			return nil
		}
		return err
	}, func(err error) bool { return ctx.Err() != nil || isLost(err) })
	maps.Copy(errs, byKey)
	maps.DeleteFunc(errs, func(key string, err error) bool {
		_, ok := found[key]
		return ok || errors.Is(err, s.NotFound)
	})
	return found, errs
}

// isLost reports whether a Store's error says that it cannot be reached.
func isLost(err error) bool {
	_, ok := errors.AsType[net.Error](err)
	return ok || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}
