package fetchonce

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/failure"
	"github.com/fetchonce/fetchonce/internal/keytext"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

var (
	// ErrNotFound says that a key has no value. A fetch or a [Store] returns it, bare or
	// wrapped. The absence is then remembered for [Options.NotFoundTTL], and every Get in that
	// time returns ErrNotFound without a fetch. [Loader.Peek] returns it for a key without a
	// stored value.
	ErrNotFound = errors.New("fetchonce: not found")

	// ErrLocked says that a call does not have the lock. [Locker.TryDo] and
	// [Locker.TryAcquire] return it when others hold the lock or wait for it, and so does a
	// call that has waited for [LockOptions.MaxWait]. The error of a call whose context ended
	// wraps ErrLocked and the cause.
	ErrLocked = errors.New("fetchonce: locked")

	// ErrLockLost is the [context.Cause] of a fetch's context, or of a lock holder's, when its
	// lease was lost: a renewal was late, or the lease was ended in Redis, that of a fetch by a
	// Delete, Set or Update of the key. The value of such a fetch is not stored.
	// [Lease.Release] and [Locker.Do] return ErrLockLost if the lock was lost.
	ErrLockLost = errors.New("fetchonce: lock lost")

	// ErrMaxHold is the [context.Cause] of the context of a holder that held a lock for longer
	// than [LockOptions.MaxHold].
	ErrMaxHold = errors.New("fetchonce: lock held for too long")

	// ErrFetchTimeout says that a fetch ran for longer than [Options.FetchTimeout]. It is the
	// [context.Cause] of the fetch's context, and its callers receive it in an [*Error].
	ErrFetchTimeout = errors.New("fetchonce: fetch timeout")

	// ErrClosed is returned by every method of a closed [Loader] or [Locker], and to callers
	// that waited when it was closed. It is the [context.Cause] of the contexts of lock holders
	// at that moment.
	ErrClosed = errors.New("fetchonce: closed")

	// ErrUnavailable is in each [*Error] whose cause is that Redis did not answer, could not be
	// reached or serves no key, as while it loads its data, beside that cause; also if the call
	// was not sent, see [Options.RedisBreaker]. It is not in one whose cause is another error that
	// Redis answered.
	ErrUnavailable = errors.New("fetchonce: redis unavailable")

	// ErrNotInvalidated is in the [*Error] of [Loader.Update] and [Loader.Delete] when the change
	// may not have reached Redis: write succeeded, but a Get may return a stored value until its
	// TTL. It tells that from an error before write was called.
	ErrNotInvalidated = errors.New("not every cache was invalidated")
)

var errNearClient = errors.New("Options.Near needs a *redis.Client or a *redis.ClusterClient, or a wrapper with their methods that is comparable")

// ownErrors are the errors above.
var ownErrors = []error{
	ErrNotFound, ErrLocked, ErrLockLost, ErrMaxHold, ErrFetchTimeout, ErrClosed, ErrUnavailable, ErrNotInvalidated,
}

// mostErrors bounds Options.Errors: a failure has eight bytes for each that it is.
const mostErrors = 100

// checkErrors returns what is wrong with Options.Errors.
func checkErrors(list []error) error {
	if len(list) > mostErrors {
		return fmt.Errorf("Options.Errors has %d errors, more than %d", len(list), mostErrors)
	}
	texts := make(map[string]bool, len(list))
	for i, err := range list {
		if err == nil {
			return fmt.Errorf("Options.Errors[%d] is nil", i)
		}
		for _, own := range ownErrors {
			if errors.Is(err, own) {
				return fmt.Errorf("Options.Errors[%d] is %q, which is fetchonce's own", i, own.Error())
			}
		}
		if texts[err.Error()] {
			return fmt.Errorf("Options.Errors[%d] has the text of another: %q", i, err.Error())
		}
		texts[err.Error()] = true
	}
	return nil
}

// An Error reports a failure of fetchonce or Redis: Redis is unavailable or refused a
// command, a value cannot be encoded, an argument is not usable, or a fetch failed in
// another process. Errors of a fetch or a [Store] of this process are returned unchanged.
//
// The Op of a fetch that failed in another process is "fetch". Its text is the text of that
// fetch's error alone, so it is the same in all processes, with these exceptions: it has at most
// about 1 KiB, what is not printable is escaped, and errors of a Store, a database or a parser, which
// quote data, are replaced by their types and numbers. [errors.Is] holds for the sentinels of
// [Options.Errors]. Nothing else of the error travels.
type Error struct {
	// Op is what failed: "read", "acquire", "encode" or "fetch"; the method, as "new", "get",
	// "get many", "load", "peek", "set", "delete", "update" and "release"; "lock" for the
	// methods of a Locker; or the function "wrap", "serialize" or "key".
	Op  string
	Key string // the key as the caller gave it; empty if there was none
	Err error  // the cause
}

// Error returns a text like `fetchonce: read "user:42": i/o timeout`, or that of a fetch's error
// in another process. It quotes at most the first 200 bytes of Key. It is one line: a cause of
// several lines, as that of [errors.Join], has semicolons between them.
func (e *Error) Error() string {
	if peer, ok := e.Err.(*failure.Peer); ok { //nolint:errorlint // no wrapped one
		return peer.Error()
	}
	if e.Key == "" {
		return "fetchonce: " + e.Op + ": " + oneLine(e.Err)
	}
	return "fetchonce: " + e.Op + " " + keytext.Quote(e.Key) + ": " + oneLine(e.Err)
}

// oneLine returns the text of an error on one line. That of a panic has its stack behind an
// empty line, which is for the log.
func oneLine(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n\n")
	return strings.ReplaceAll(text, "\n", "; ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is [ErrUnavailable] and the cause is that Redis is unavailable.
func (e *Error) Is(target error) bool {
	_, peer := e.Err.(*failure.Peer)
	return target == ErrUnavailable && !peer && client.IsUnavailable(e.Err)
}

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

// errorsByKey returns the errors of a [ManyError], if err is one.
func errorsByKey(err error) (map[string]error, bool) {
	many, ok := errors.AsType[*ManyError](err)
	if !ok {
		return nil, false
	}
	return many.Errors, true
}

// sentinels returns the errors that keep their identity in other processes: those of the
// options, and the timeout of a fetch, which another fetch may return.
func (l *values[V]) sentinels() failure.Sentinels {
	return append(failure.Sentinels{ErrFetchTimeout}, l.opt.Errors...)
}

// describe returns what other processes receive of a failure.
func (l *values[V]) describe(err error, inStore bool) protocol.Failure {
	if e, ok := err.(*Error); ok && e.Err == ErrFetchTimeout { //nolint:errorlint // its own, and no wrapped one
		return protocol.Failure{Class: protocol.FetchTimeout}
	}
	return l.sentinels().Describe(err, inStore)
}

// failureOf returns the error for a failure in another process.
func (l *values[V]) failureOf(key string, f protocol.Failure) error {
	var err error
	switch f.Class {
	case protocol.FetchTimeout:
		err = ErrFetchTimeout
	case protocol.FailedPanic:
		err = errors.New("fetch panicked: " + f.Text)
	default:
		err = l.sentinels().Peer(f)
	}
	return &Error{Op: "fetch", Key: key, Err: err}
}

// loggable returns what the log receives of the error of a load. Of a panic it has the stack,
// too.
func loggable(err error, inStore bool) error {
	if p, ok := errors.AsType[*PanicError](err); ok {
		return &PanicError{Value: failure.OfPanic(p.Value, inStore), Stack: p.Stack}
	}
	return errors.New(failure.Text(err, inStore))
}

// keyless returns an error for the log: without the key that an [*Error] names.
func keyless(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Err
	}
	return err
}

// The messages of the log.
const (
	logUnavailable = "fetchonce: redis unavailable; loading without a lease"
	logBack        = "fetchonce: redis available again"
	logRefused     = "fetchonce: redis refused a command; loading without a lease"
	logNoPublish   = "fetchonce: redis refused PUBLISH; waiters are not notified"
	logUnusable    = "fetchonce: unusable value in redis; replacing it"
	logUntracked   = "fetchonce: redis refused CLIENT TRACKING; near cache misses changes by other programs until its TTL"
	logNoNear      = "fetchonce: tracking connection failed; near cache not used"
	logNearBack    = "fetchonce: tracking connection up; near cache used again"
	logTakenOver   = "fetchonce: lease of another process ended without a notification; taken over"
	logNotStored   = "fetchonce: fetched value not stored"
	logRefresh     = "fetchonce: refresh failed; serving the stale value"
	logNotReleased = "fetchonce: lock not released; it ends with its lease"
	logLost        = "fetchonce: the codec does not keep all of the value's type"
	logTrace       = "fetchonce: trace function panicked"
)

// An endedError is the error of a call whose context ended before it had the lock. Its
// text is one line, unlike that of [errors.Join].
type endedError struct {
	name  string
	cause error // of the context's end
}

func (e *endedError) Error() string {
	return ErrLocked.Error() + ": " + keytext.Quote(e.name) + " not acquired: " + e.cause.Error()
}

// Unwrap returns ErrLocked and the cause.
func (e *endedError) Unwrap() []error { return []error{ErrLocked, e.cause} }

// instance returns the name of this process in the log: "host:pid".
var instance = sync.OnceValue(func() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s:%d", host, os.Getpid())
})
