package fetchonce

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fetchonce/fetchonce/internal/keytext"
)

var (
	// ErrNotFound says that there is no value for a key. A fetch or a [Store]
	// returns it, bare or wrapped; the absence is then remembered for
	// [Options.NotFoundTTL], and every Get in that time returns ErrNotFound
	// without a fetch. [Loader.Peek] returns it for a key that is not cached.
	ErrNotFound = errors.New("fetchonce: not found")

	// ErrLocked says that a call does not have the lock. [Locker.TryDo] and
	// [Locker.TryAcquire] return it when others hold the lock or wait for it, and so does a call
	// that has waited for [LockOptions.MaxWait]. An error of a call whose context has ended wraps
	// ErrLocked and the cause of that end.
	ErrLocked = errors.New("fetchonce: locked")

	// ErrLockLost is the [context.Cause] of the context given to a fetch, or to
	// the holder of a lock, once the lease under which it runs has ended early:
	// it could not be renewed in time, or was ended in Redis, a fetch's by a
	// Delete or Set of the key. What such a fetch returns is not stored.
	// [Lease.Release] and [Locker.Do] return it if the lease was lost.
	ErrLockLost = errors.New("fetchonce: lock lost")

	// ErrMaxHold is the [context.Cause] of the context of a holder that held a
	// lock longer than [LockOptions.MaxHold].
	ErrMaxHold = errors.New("fetchonce: lock held for too long")

	// ErrFetchTimeout says that a fetch ran longer than [Options.FetchTimeout].
	// It is the [context.Cause] of the context given to that fetch, and what
	// its callers get, wrapped in an [*Error].
	ErrFetchTimeout = errors.New("fetchonce: fetch timeout")

	// ErrClosed is returned by every method of a [Loader] or [Locker] that was
	// closed, and to callers that were waiting when it was. It is the
	// [context.Cause] of the contexts of those who held a lock then.
	ErrClosed = errors.New("fetchonce: closed")
)

// An Error reports a failure of fetchonce or Redis: Redis is unavailable or refused a
// command, a value cannot be encoded, an argument is not usable, or a fetch failed in
// another process, which sends a text about it. Errors of a fetch or a
// [Store] of this process are returned unchanged.
type Error struct {
	// Op is what failed: "read", "acquire", "encode" or "fetch"; the method, as "new", "get",
	// "get many", "load", "peek", "set", "delete", "update" and "release"; "lock" for the
	// methods of a Locker; or the function "wrap", "serialize" or "key".
	Op  string
	Key string // the key as the caller gave it; empty if there was none
	Err error  // the cause
}

// Error returns a text like `fetchonce: read "user:42": i/o timeout`. It quotes at most
// the first 200 bytes of Key.
func (e *Error) Error() string {
	if e.Key == "" {
		return "fetchonce: " + e.Op + ": " + e.Err.Error()
	}
	return "fetchonce: " + e.Op + " " + keytext.Quote(e.Key) + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// A PanicError is the value with which a Get panics when its fetch panicked, in
// every caller of this process that was waiting for that fetch. In other
// processes the callers get an [*Error] with its text.
type PanicError struct {
	Value any    // what the fetch panicked with
	Stack []byte // the stack of the fetch when it panicked
}

// Error returns the value and the stack.
func (e *PanicError) Error() string {
	return fmt.Sprintf("fetchonce: fetch panicked: %v\n\n%s", e.Value, e.Stack)
}

// Unwrap returns the value the fetch panicked with if that is an error, else nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// A ManyError says which keys of a [Loader.GetMany] failed, and how. [errors.Is]
// and [errors.As] look into all of their errors.
type ManyError struct {
	Errors map[string]error // by key
}

// Error names a few of the keys, and says how many there are.
func (e *ManyError) Error() string {
	const most = 3
	keys := slices.Sorted(maps.Keys(e.Errors))
	var b strings.Builder
	fmt.Fprintf(&b, "fetchonce: %d keys failed: ", len(keys))
	for i, key := range keys[:min(len(keys), most)] {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %v", keytext.Quote(key), e.Errors[key])
	}
	if len(keys) > most {
		b.WriteString("; and others")
	}
	return b.String()
}

// Unwrap returns the errors of all keys.
func (e *ManyError) Unwrap() []error {
	errs := make([]error, 0, len(e.Errors))
	for _, key := range slices.Sorted(maps.Keys(e.Errors)) {
		errs = append(errs, e.Errors[key])
	}
	return errs
}
