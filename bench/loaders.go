package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// forLong is a TTL that does not end during a run.
const forLong = 10 * time.Minute

// loaders returns a function that returns the names of the Loaders that which selects, for
// any parameters.
func loaders(which func(l peer.Loader) bool) func(run.Params) []string {
	return func(run.Params) []string {
		var names []string
		for _, l := range peer.Loaders {
			if which(l) {
				names = append(names, l.Name)
			}
		}
		return names
	}
}

// openLoader opens the Loader that a worker measures. The Loader uses its near cache if near
// is set, or if the near cache cannot be switched off.
func openLoader(ctx context.Context, w *run.Worker, ttl time.Duration, near bool) (peer.Adapter, error) {
	l, ok := peer.LoaderOf(w.Peer)
	if !ok {
		return nil, fmt.Errorf("no loader %q", w.Peer)
	}
	return l.Open(ctx, peer.Config{Addr: w.Redis, TTL: ttl, Near: near})
}

// asItComes is the argument near of openLoader for workloads that do not measure near
// caches. It is true for a Loader whose near cache cannot be switched off.
func asItComes(w *run.Worker) bool {
	l, _ := peer.LoaderOf(w.Peer)
	return l.Kind.Always
}

// thing returns the value of a key: about 200 bytes, and more bytes in addition.
func thing(key string, more int) peer.Thing {
	t := peer.Thing{
		ID:      int64(len(key)) << 40,
		Name:    "The thing that is called " + key,
		Email:   key + "@things.example",
		Tags:    []string{"slow", "remote", "call"},
		Created: time.Unix(1_700_000_000, 0),
		Score:   0.8125,
	}
	if more > 0 {
		t.Blob = make([]byte, more)
		for i := range t.Blob {
			t.Blob[i] = byte(i * 7)
		}
	}
	return t
}

func someKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = "thing:" + strconv.Itoa(i)
	}
	return keys
}

// errFetched is the error of a Get that must hit but fetches.
var errFetched = errors.New("a key that was in the cache was fetched")

func noFetch(context.Context, string) (peer.Thing, error) { return peer.Thing{}, errFetched }

// fill puts keys into a cache. It gets all keys until none is fetched, because some
// libraries store in the background. It uses 64 goroutines, so that the connections are
// open as well.
func fill(ctx context.Context, a peer.Adapter, keys []string, more int) error {
	const goroutines, passes = 64, 100
	var fetched atomic.Int64
	fetch := func(_ context.Context, key string) (peer.Thing, error) {
		fetched.Add(1)
		return thing(key, more), nil
	}
	for range passes {
		fetched.Store(0)
		if err := getAll(ctx, a, keys, goroutines, fetch); err != nil {
			return err
		}
		if fetched.Load() == 0 {
			return nil
		}
	}
	return fmt.Errorf("%d of %d keys are not in the cache after %d passes", fetched.Load(), len(keys), passes)
}

func getAll(ctx context.Context, a peer.Adapter, keys []string, goroutines int, fetch peer.Fetch) error {
	var all sync.WaitGroup
	errs := make([]error, goroutines)
	for g := range goroutines {
		all.Go(func() {
			for i := g; i < len(keys) && errs[g] == nil; i += goroutines {
				_, errs[g] = a.Get(ctx, keys[i], fetch)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
