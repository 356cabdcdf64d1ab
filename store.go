package fetchonce

import "context"

// A Store is the durable place of a Loader's values, most often a table; the
// package oncesql has one over [database/sql]. It is looked up before a
// fetch, and again under the lease; what was fetched is created in it.
//
// A Store may also have a method
//
//	LookupMany(ctx context.Context, keys []string) (map[string]V, error)
//
// that looks up many keys at once; those without a value are not in the map.
// [Loader.GetMany] uses it where it is there. Its error is a [*ManyError] if it
// knows which keys failed; the others then have the values in the map, or none.
// After another error, halves of the keys are looked up, until the key that fails
// is found; but not if ctx has ended, the error is a [net.Error] or [io.EOF], or
// many lookups have failed.
//
// Implementations are called by many goroutines at once, and return soon after
// their ctx ends. The ctx of a Lookup under the lease ends as that of the fetch does.
// The ctx of a Create ends when [Options.FetchTimeout] is over or the Loader is closed.
// A Loader does not wait beyond that for one that hangs.
type Store[V any] interface {
	// Lookup returns the value of key, or an error that is [ErrNotFound], bare
	// or wrapped, if there is none.
	Lookup(ctx context.Context, key string) (V, error)

	// Create keeps v for key, unless key has a value already, and returns the
	// value that is kept. It must be safe against other creators by itself: a
	// lease in Redis saves work, the unique key of a table makes it safe.
	//
	// A Create runs on when all callers have left, and when a Delete or an Update takes
	// its lease away: a fetch that succeeded is not repeated for that.
	Create(ctx context.Context, key string, v V) (V, error)
}

// manyStore is a Store that can look up many keys at once.
type manyStore[V any] interface {
	LookupMany(ctx context.Context, keys []string) (map[string]V, error)
}
