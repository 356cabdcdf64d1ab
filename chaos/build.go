//go:build linux

package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/fetchonce/fetchonce"
)

// A thing is a value. It has its key, so that a wrong value is noticed.
type thing struct {
	Key     string
	Version int64
	Secret  string
}

// A renamedThing is a thing in another build of the program. No field has both the name and the type
// of a field of thing.
type renamedThing struct {
	Name     string
	Revision int64
	Secret   []byte
}

// things is a Loader of things, whatever their type in Redis.
type things interface {
	Load(ctx context.Context, key string, fetch func(ctx context.Context, key string, fence int64) (thing, error)) (fetchonce.Result[thing], error)
	Update(ctx context.Context, key string, write func(ctx context.Context) error) error
	Delete(ctx context.Context, keys ...string) error
	Close() error
}

// openThings opens the Loader of the worker's build.
func (w *worker) openThings(logger *slog.Logger) (things, error) {
	if w.Build == 0 {
		return open(w, logger, func(v thing) thing { return v }, func(v thing) thing { return v })
	}
	return open(w, logger,
		func(v thing) renamedThing { return renamedThing{v.Key, v.Version, []byte(v.Secret)} },
		func(v renamedThing) thing { return thing{v.Name, v.Revision, string(v.Secret)} })
}

func open[V any](w *worker, logger *slog.Logger, to func(thing) V, from func(V) thing) (things, error) {
	l, err := fetchonce.New(w.rdb, fetchonce.Options[V]{
		Prefix: prefix, TTL: time.Hour, Lease: rules.Lease, FetchTimeout: rules.FetchTimeout, RedisTimeout: redisTimeout,
		RedisBreaker: redisBreaker, Logger: logger, OnRedisDown: w.onRedisDown(),
	})
	return shaped[V]{l, to, from}, err
}

// A shaped converts things to the values of a Loader of one build.
type shaped[V any] struct {
	*fetchonce.Loader[V]
	to   func(thing) V
	from func(V) thing
}

func (s shaped[V]) Load(ctx context.Context, key string, fetch func(ctx context.Context, key string, fence int64) (thing, error)) (fetchonce.Result[thing], error) {
	r, err := s.Loader.Load(ctx, key, func(ctx context.Context, f *fetchonce.Fetch[V]) (V, error) {
		v, err := fetch(ctx, f.Key, f.Fence)
		return s.to(v), err
	})
	return fetchonce.Result[thing]{Value: s.from(r.Value), Source: r.Source, Age: r.Age, Stale: r.Stale}, err
}
