// Package peer wraps the libraries that the benchmarks measure: fetchonce and its
// alternatives. Each library has its own file and the same few methods. Package peer
// contains no workload and measures nothing. A floor is not a peer but a lower bound: a bare
// client or a bare map.
package peer

import (
	"context"
	"time"
)

// Thing is the value that is fetched. Encoded, it has about 200 bytes and the length of
// Blob.
type Thing struct {
	ID      int64
	Name    string
	Email   string
	Tags    []string
	Created time.Time
	Score   float64
	Blob    []byte
}

// Fetch is the slow remote call.
type Fetch func(ctx context.Context, key string) (Thing, error)

// Config is the configuration of an Adapter.
type Config struct {
	Addr  string        // host:port of the Redis
	TTL   time.Duration // how long a value is fresh
	Near  bool          // use the near cache; set only for a Loader with Kind.Near
	Lease time.Duration // how long a dead holder blocks a key
}

// An Adapter is a library as one process uses it. Its methods are safe for concurrent use.
type Adapter interface {
	// Get returns the value of key, from the cache or else from fetch.
	Get(ctx context.Context, key string, fetch Fetch) (Thing, error)
	Close() error
}

// A ManyGetter is an Adapter that reads many keys in one call. All keys must be in the
// cache.
type ManyGetter interface {
	GetMany(ctx context.Context, keys []string) (map[string]Thing, error)
}

// A Deleter is an Adapter that can drop a value for all processes.
type Deleter interface {
	Delete(ctx context.Context, key string) error
}

// Kind describes a Loader. Workloads select their Loaders by it.
type Kind struct {
	Floor      bool // a bound, not a peer
	Once       bool // fetches once across all processes, so it locks across them
	Locks      bool // is floor-goredis with a lock
	Many       bool // is a ManyGetter
	Near       bool // has a near cache
	Subscribes bool // drops a near entry when another process changes the value
	Always     bool // its near cache cannot be switched off; without Near it is minimal
	Local      bool // has only a near cache and no Redis
	Late       bool // a Get just after a fetch may miss: the store, or its notification, comes late
}

// A Loader is a library that can be opened.
type Loader struct {
	Name string
	Kind Kind
	Open func(ctx context.Context, cfg Config) (Adapter, error)
}

// A Lock is a distributed lock as one process uses it.
type Lock interface {
	// Do runs fn while it holds the lock called name.
	Do(ctx context.Context, name string, fn func(ctx context.Context) error) error
	Close() error
}

// A Locker is a lock library that can be opened.
type Locker struct {
	Name string
	Open func(ctx context.Context, cfg Config) (Lock, error)
}
