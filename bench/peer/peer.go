// Package peer has the libraries that are measured: fetchonce and those that its users would choose
// instead, one file for each, all with the same few methods. It knows no workload and measures nothing.
// A floor is no peer but a lower bound: a bare client or a bare map.
package peer

import (
	"context"
	"time"
)

// Thing is the value that is fetched: about 200 bytes when it is encoded, and as
// much more as Blob has.
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

// Config is what a workload asks of an Adapter.
type Config struct {
	Addr  string        // of the Redis, host:port
	TTL   time.Duration // how long a value is fresh
	Near  bool          // keep copies in the process; only what has Kind.Near is asked
	Lease time.Duration // how long a dead holder blocks a key
}

// An Adapter is a library as one process uses it. It is used by many goroutines.
type Adapter interface {
	// Get returns the value of key, from the cache or else from fetch.
	Get(ctx context.Context, key string, fetch Fetch) (Thing, error)
	Close() error
}

// A ManyGetter is an Adapter that reads many keys at once. The keys are in the
// cache.
type ManyGetter interface {
	GetMany(ctx context.Context, keys []string) (map[string]Thing, error)
}

// A Deleter is an Adapter that can drop a value for all processes.
type Deleter interface {
	Delete(ctx context.Context, key string) error
}

// Kind says in which comparisons a Loader stands.
type Kind struct {
	Floor      bool // a bound, not a peer
	Once       bool // fetches once over all processes, so it locks across them
	Locks      bool // by a lock around what is else floor-goredis
	Many       bool // is a ManyGetter
	Near       bool // has copies in the process
	Subscribes bool // and drops them when somebody changes the value
	Always     bool // and cannot be without: without Near it has as few as it can
	Local      bool // has nothing but those: no Redis
	Late       bool // a Get after a fetch may miss for a moment: it stores later, or receives the notification of its own store later
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

// A Locker is a library of locks that can be opened.
type Locker struct {
	Name string
	Open func(ctx context.Context, cfg Config) (Lock, error)
}
