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
	// ErrNotFound reports that a key has no value. A fetch or a [Store] returns it, bare or wrapped.
	// After the ErrNotFound of a Lookup, the Loader fetches. After that of a fetch, every Get returns
	// it without a fetch for [Options.NotFoundTTL]. [Loader.Peek] returns it for a key without a
	// stored value.
	ErrNotFound = errors.New("fetchonce: not found")

	// ErrLocked reports that a call did not get the lock. [Locker.TryDo] and [Locker.TryAcquire]
	// return it if others hold the lock or wait for it. Other calls return it after
	// [LockOptions.MaxWait]. If the caller's context ends, the error wraps ErrLocked and the cause.
	ErrLocked = errors.New("fetchonce: locked")

	// ErrLockLost reports that a lease ended early: it was not renewed in time, or it was ended in
	// Redis. A Delete, Set or Update of a key ends the lease of its fetch, and the fetched value is
	// then not stored. ErrLockLost is the [context.Cause] of the context of the fetch or the lock
	// holder. [Lease.Release] and [Locker.Do] return it if the lock was lost.
	ErrLockLost = errors.New("fetchonce: lock lost")

	// ErrMaxHold is the [context.Cause] of the context of a holder that held a lock for longer
	// than [LockOptions.MaxHold].
	ErrMaxHold = errors.New("fetchonce: lock held for too long")

	// ErrFetchTimeout reports that a fetch ran longer than [Options.FetchTimeout]. It is the
	// [context.Cause] of the fetch's context. Its callers receive it in an [*Error]. A load also
	// fails with it if no permit of [Options.MaxFetches] is released for that long.
	ErrFetchTimeout = errors.New("fetchonce: fetch timeout")

	// ErrClosed is returned by the methods of a closed [Loader] or [Locker], and to callers that
	// were waiting when it was closed. It is also the [context.Cause] of the contexts of fetches and
	// lock holders that Close ended.
	ErrClosed = errors.New("fetchonce: closed")

	// ErrUnavailable reports that Redis did not answer, could not be reached, or serves no keys, for
	// example because it is loading its data. It also reports that a call was not sent for that
	// reason; see [Options.RedisBreaker]. An [*Error] matches it with [errors.Is] and unwraps to the
	// cause. An *Error with another answer of Redis does not match it.
	ErrUnavailable = errors.New("fetchonce: redis unavailable")

	// ErrNotInvalidated reports that Redis may not have received an invalidation: a Get may return a
	// stored value until its TTL. [Loader.Delete] returns it in an [*Error], and so does
	// [Loader.Update] after write has returned. An error from before the call of write does not
	// contain it.
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

// An Error reports a failure of fetchonce or Redis: Redis is unavailable or refused a command, a
// value cannot be encoded, an argument is invalid, or a fetch failed in another process. An error of
// a fetch or a [Store] is returned unchanged in the process that called it.
//
// If a fetch failed in another process, Op is "fetch" and the text is that of the fetch's error. So
// the text is the same in all processes, with three exceptions: it has at most about 1 KiB,
// unprintable characters are escaped, and errors of a Store, a database or a parser, which quote
// data, are replaced by their types and numbers. [errors.Is] finds the sentinels of
// [Options.Errors]. Nothing else of the error is sent.
type Error struct {
	// Op is what failed: "read", "acquire", "encode" or "fetch"; a method of a Loader or Lease:
	// "new", "get", "get many", "load", "peek", "set", "delete", "update" or "release"; "lock" for a
	// method of a Locker; or a function: "wrap", "serialize" or "key".
	Op  string
	Key string // the key as the caller gave it; empty if there was none
	Err error  // the cause
}

// Error returns a text like `fetchonce: read "user:42": i/o timeout`, or the text of the fetch's
// error if that failed in another process. The text quotes at most the first 200 bytes of Key. It is
// one line: if the cause has several, as that of [errors.Join], semicolons separate them.
func (e *Error) Error() string {
	if peer, ok := e.Err.(*failure.PeerError); ok { //nolint:errorlint // no wrapped one
		return peer.Error()
	}
	if e.Key == "" {
		return "fetchonce: " + e.Op + ": " + oneLine(e.Err)
	}
	return "fetchonce: " + e.Op + " " + keytext.Quote(e.Key) + ": " + oneLine(e.Err)
}

// oneLine returns the text of an error on one line. The text of a panic has the stack after an
// empty line. Only the log gets the stack.
func oneLine(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n\n")
	return strings.ReplaceAll(text, "\n", "; ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is [ErrUnavailable] and Redis was unavailable.
func (e *Error) Is(target error) bool {
	_, peer := e.Err.(*failure.PeerError)
	return target == ErrUnavailable && !peer && client.IsUnavailable(e.Err)
}

// A PanicError is the value with which Get panics if its fetch panicked. Get panics in every caller
// of this process that waited for that fetch. Callers in other processes receive an [*Error] with
// its text.
type PanicError struct {
	Value any    // what the fetch panicked with
	Stack []byte // the stack of the fetch when it panicked
}

// Error returns the value and the stack.
func (e *PanicError) Error() string {
	return fmt.Sprintf("fetchonce: fetch panicked: %v\n\n%s", e.Value, e.Stack)
}

// Unwrap returns Value if it is an error, and nil otherwise.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// A ManyError reports which keys of a [Loader.GetMany] failed, and why. [errors.Is] and [errors.As]
// search the errors of all keys.
type ManyError struct {
	Errors map[string]error // by key
}

// Error returns the number of failed keys, and the errors of up to three of them.
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
func (v *values[V]) sentinels() failure.Sentinels {
	return append(failure.Sentinels{ErrFetchTimeout}, v.opt.Errors...)
}

// describe returns what other processes receive of a failure.
func (v *values[V]) describe(err error, inStore bool) protocol.Failure {
	if e, ok := err.(*Error); ok && e.Err == ErrFetchTimeout { //nolint:errorlint // its own, and no wrapped one
		return protocol.Failure{Class: protocol.FetchTimeout}
	}
	return v.sentinels().Describe(err, inStore)
}

// failureOf returns the error for a failure in another process.
func (v *values[V]) failureOf(key string, f protocol.Failure) error {
	var err error
	switch f.Class {
	case protocol.FetchTimeout:
		err = ErrFetchTimeout
	case protocol.FailedPanic:
		err = errors.New("fetch panicked: " + f.Text)
	default:
		err = v.sentinels().Peer(f)
	}
	return &Error{Op: "fetch", Key: key, Err: err}
}

// loggable returns what the log receives of the error of a load. For a panic it includes the stack.
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
	logLossyCodec  = "fetchonce: the codec does not keep all of the value's type"
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
