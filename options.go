package fetchonce

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/fetchonce/fetchonce/internal/freshness"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// Off turns an option off whose zero value means a default, as in
// Options{NotFoundTTL: fetchonce.Off}. Any negative value does.
const Off = -1

// Options configure a [Loader]. The zero value of a field means its default. [New] refuses
// a value that it cannot use with an error that names the field, and replaces none.
//
// Redis counts in milliseconds: a fraction of one is cut off where a duration becomes the
// TTL of a Redis key.
type Options[V any] struct {
	// Prefix is the namespace of the Loader's keys in Redis. Loaders with the same Prefix
	// share their keys and leases, in all processes. Required.
	Prefix string

	// Schema is the version of V's shape. Builds with different Schemas share their keys: each
	// finds only values of its own Schema, they do not overwrite each other's, and a Delete, Set
	// or Update by one ends the values of all. Defaults to a fingerprint of V as the codec sees
	// it: the encoded fields with their names and tag options, and the kinds of values. A type
	// that encodes itself counts by its package path and name. For a codec of your own, exported
	// fields count in order, with their tags. Set Schema by hand when only the meaning changes.
	Schema string

	// TTL is how long a value is fresh, and kept in Redis. With Off, Redis keeps no values,
	// only leases: then a Store is required, which every Get looks up first. Defaults to 5
	// minutes.
	TTL time.Duration

	// Jitter is the largest share of a TTL that is taken off at random, so that values that
	// were stored together do not end together. It applies to TTL, NotFoundTTL and
	// Fetch.TTL, and is less than 1. Defaults to 0.1; Off turns it off.
	Jitter float64

	// NotFoundTTL is how long an [ErrNotFound] of a fetch is remembered. With Off, only the
	// callers that waited for that fetch share it, in all processes. Defaults to a tenth of
	// TTL.
	NotFoundTTL time.Duration

	// Errors are sentinels that keep their identity in other processes: a fetch's error that is
	// one of them by [errors.Is] is that for every caller that shares the failure, in every
	// process whose Errors has a sentinel of the same text. [ErrNotFound] needs no entry. An
	// error's own data does not travel: [errors.As] finds the sentinel, not the fetch's error.
	// Defaults to none; the most is 100.
	Errors []error

	// ErrorTTL is how long another failure of a fetch is returned to later callers without
	// a fetch, as an [*Error] with its text; see [Loader.Get]. A process returns the failure of another
	// process for no longer than its own ErrorTTL. Defaults to off.
	ErrorTTL time.Duration

	// StaleWhileRevalidate is how long after its TTL a stale value is returned at once,
	// while one process fetches a new one (RFC 5861). Defaults to off.
	//
	// The age of a value is judged by the server's clock. A process learns that clock with
	// its first miss, and uses its own until then.
	StaleWhileRevalidate time.Duration

	// StaleIfError is how long after its TTL a stale value is returned in the place of the
	// error when the fetch of a new one fails (RFC 5861). The next fetch then follows after
	// a backoff of a second, or up to half a minute for a value that has long been stale;
	// until then all callers receive the stale value at once. [ErrNotFound] is no failure.
	// Defaults to off.
	StaleIfError time.Duration

	// SoftTimeout is how long a caller waits for a new value while a stale one may be
	// returned by StaleIfError or StaleWhileRevalidate. Then it receives the stale value,
	// and the fetch continues. Defaults to off: the caller waits for the fetch.
	SoftTimeout time.Duration

	// EarlyRefresh is the beta of XFetch ("Optimal Probabilistic Cache Stampede Prevention",
	// Vattani, Chierichetti, Lowenstein, VLDB 2015). A value that took d to fetch is
	// refreshed in the background when d * beta * -ln(random) is more than the rest of its
	// TTL, so a popular key always has a fresh value. 1 is the paper's choice; more is
	// earlier. Defaults to off.
	EarlyRefresh float64

	// Lease is how long a process that dies during a fetch blocks the key. A live process
	// renews its lease at a third of it, so a fetch may take longer. A renewal is given up
	// after another third, so that there is time for a second one: Lease should be three
	// times as long as Redis may take to answer. No writer to Redis can block a key for
	// more than a minute by one write. Defaults to 5 seconds; from 10 ms to a minute.
	Lease time.Duration

	// FetchTimeout is the longest that a fetch may run, with the Store's lookup and Create.
	// Then its context ends with [ErrFetchTimeout], its callers receive that, and its lease
	// is released. A fetch that ignores its context continues without callers, and keeps its
	// permit of MaxFetches. Defaults to a minute; Off turns it off.
	FetchTimeout time.Duration

	// MaxFetches is how many fetches of this Loader run at once, over all keys. A fetch
	// counts until its function returns, also after its callers have left. Other loads wait
	// for a permit, and hold no lease meanwhile. A load returns [ErrFetchTimeout] when no
	// permit is released for FetchTimeout: then each is held by a fetch that ignores its
	// context.
	//
	// A fetch that waits in a Get of another key does not count meanwhile. If its context
	// ends during that Get and the fetch continues, it counts again as soon as a permit is
	// free, before loads that wait later. The batch fetch of a GetMany counts as one, and
	// holds its leases while it waits. Defaults to no limit.
	MaxFetches int

	// RedisTimeout is how long an operation waits for an answer of Redis; a renewal waits
	// for a third of Lease if that is less. An error that passes, as in a failover, is
	// retried for as long again. Time in the queue does not count while Redis answers other
	// operations. A caller whose context ends sooner waits no longer. Defaults to 500 ms.
	RedisTimeout time.Duration

	// RedisBreaker is how often a node of Redis is probed after it failed: it did not answer
	// within RedisTimeout, could not be reached, or serves no key, as while it is loading. Until
	// a probe is answered, calls go on without the node at once, as OnRedisDown says; Set, Delete
	// and Update return an [*Error] with [ErrUnavailable]. Renewals are always sent. All users of
	// a client share what is known of a node. Defaults to a second, with jitter; Off: every call tries.
	RedisBreaker time.Duration

	// OnRedisDown says what a Get does when Redis does not answer, or answers with an
	// error. Defaults to [FailOpen].
	OnRedisDown Policy

	// Near configures the near cache; see [Near]. It needs TTL, and a client of a single
	// server, Sentinels or a cluster that reads from masters. Defaults to off.
	Near Near

	// Store is the durable place of the values, for example a table. Defaults to none.
	Store Store[V]

	// Codec encodes values for Redis. A value that another codec wrote is a miss. A value
	// that the codec would not read is not stored; see [Codec] and [KeyCodec]. Defaults to
	// [Msgpack].
	Codec Codec

	// Clone is called on a value that several callers of this process share, once for each
	// caller. With Near, every value is shared. A caller shares a value that it refreshes,
	// or receives as a fallback, with the fetch that has it as [Fetch.Old]. Clone is not
	// called with a nil pointer; a writer to Redis may store one, so check a value of a
	// pointer type for nil. A panic of Clone reaches the caller of Get; in GetMany it may be
	// a [*PanicError]. Defaults to none: then treat shared values as read-only.
	Clone func(V) V

	// MaxBytes is the largest encoded value that is stored or read. A larger one is returned
	// to its callers, and kept in the Store only. So is a value that [Msgpack] or [JSON]
	// would need more than 32 times MaxBytes and 1 MiB of memory to decode. Defaults to 4
	// MiB; the most is 512 MiB.
	MaxBytes int

	// Trace receives events for metrics. Defaults to none.
	Trace *Trace

	// Logger receives events that cannot be returned to a caller: a fetched value that could
	// not be stored, a failed refresh, unusable data in Redis, an unavailable Redis. A panic
	// in it is dropped. Defaults to [slog.Default].
	Logger *slog.Logger

	// Instance is the name of this process in the log. Defaults to "host:pid".
	Instance string
}

// A Policy says what a Get does without Redis.
type Policy int

const (
	// FailOpen loads without a lease: each process fetches a key once for all its callers,
	// and logs it. The value is stored in the Store only.
	FailOpen Policy = iota

	// FailClosed returns an [*Error] with the cause.
	FailClosed
)

const (
	defaultTTL          = 5 * time.Minute
	defaultJitter       = 0.1
	defaultLease        = 5 * time.Second
	defaultFetchTimeout = time.Minute
	defaultRedisTimeout = 500 * time.Millisecond
	defaultRedisBreaker = time.Second
	defaultMaxBytes     = 4 << 20
	defaultNearTTL      = time.Minute

	leastLease  = 10 * time.Millisecond
	leastTTL    = freshness.Least
	longestTTL  = freshness.Longest
	mostBytes   = 512 << 20 // Redis' own limit
	notFoundPer = 10        // NotFoundTTL's default is TTL over this
)

// withDefaults returns the options with the defaults in the place of zeros, and
// zero in the place of what is off.
func (o Options[V]) withDefaults() Options[V] {
	o.TTL = orDefault(o.TTL, defaultTTL)
	o.Jitter = orDefault(o.Jitter, defaultJitter)
	if o.TTL > 0 {
		o.NotFoundTTL = orDefault(o.NotFoundTTL, max(o.TTL/notFoundPer, leastTTL))
	}
	o.NotFoundTTL = max(o.NotFoundTTL, 0)
	o.ErrorTTL = max(o.ErrorTTL, 0)
	o.StaleWhileRevalidate = max(o.StaleWhileRevalidate, 0)
	o.StaleIfError = max(o.StaleIfError, 0)
	o.SoftTimeout = max(o.SoftTimeout, 0)
	o.EarlyRefresh = max(o.EarlyRefresh, 0)
	if o.Lease == 0 {
		o.Lease = defaultLease
	}
	o.FetchTimeout = orDefault(o.FetchTimeout, defaultFetchTimeout)
	o.MaxFetches = max(o.MaxFetches, 0)
	if o.RedisTimeout == 0 {
		o.RedisTimeout = defaultRedisTimeout
	}
	o.RedisBreaker = orDefault(o.RedisBreaker, defaultRedisBreaker)
	if o.Near.Entries > 0 && o.Near.TTL == 0 {
		o.Near.TTL = defaultNearTTL
	}
	o.Near.FailSafe = max(o.Near.FailSafe, 0)
	if o.Codec == nil {
		o.Codec = Msgpack
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Clone = skipNil(o.Clone)
	return o
}

// orDefault returns v, the default for zero, and zero for off.
func orDefault[T time.Duration | float64](v, otherwise T) T {
	switch {
	case v == 0:
		return otherwise
	case v < 0:
		return 0
	}
	return v
}

// check returns what is wrong with the options as they were given.
func (o Options[V]) check() error {
	err := checkDurations("Options", []givenDuration{
		{"TTL", o.TTL, leastTTL, true},
		{"NotFoundTTL", o.NotFoundTTL, leastTTL, true},
		{"ErrorTTL", o.ErrorTTL, leastTTL, true},
		{"StaleWhileRevalidate", o.StaleWhileRevalidate, leastTTL, true},
		{"StaleIfError", o.StaleIfError, leastTTL, true},
		{"SoftTimeout", o.SoftTimeout, leastTTL, true},
		{"Lease", o.Lease, leastLease, false},
		{"FetchTimeout", o.FetchTimeout, leastTTL, true},
		{"RedisTimeout", o.RedisTimeout, leastTTL, false},
		{"RedisBreaker", o.RedisBreaker, leastTTL, true},
		{"Near.TTL", o.Near.TTL, leastTTL, false},
		{"Near.FailSafe", o.Near.FailSafe, leastTTL, true},
	})
	if err != nil {
		return err
	}
	switch {
	case o.Prefix == "":
		return errors.New("Options.Prefix is empty")
	case checkErrors(o.Errors) != nil:
		return checkErrors(o.Errors)
	case o.Lease > protocol.LongestLease:
		return fmt.Errorf("Options.Lease is %v, more than %v", o.Lease, protocol.LongestLease)
	case o.TTL < 0 && o.Store == nil:
		return errors.New("Options.TTL is off, so Options.Store is required: a value must be kept somewhere")
	case o.TTL < 0 && o.NotFoundTTL > 0:
		return errors.New("Options.NotFoundTTL needs Options.TTL, which is off")
	case o.TTL < 0 && (o.StaleWhileRevalidate > 0 || o.StaleIfError > 0 || o.EarlyRefresh > 0):
		return errors.New("Options.StaleWhileRevalidate, StaleIfError and EarlyRefresh need Options.TTL, which is off")
	case o.Near.Entries < 0:
		return fmt.Errorf("Options.Near.Entries is %d", o.Near.Entries)
	case o.Near.Entries == 0 && (o.Near.TTL > 0 || o.Near.FailSafe > 0):
		return errors.New("Options.Near.TTL and Near.FailSafe need Options.Near.Entries")
	case o.Near.Entries > 0 && o.TTL < 0:
		return errors.New("Options.Near needs Options.TTL, which is off")
	case o.SoftTimeout > 0 && o.StaleWhileRevalidate <= 0 && o.StaleIfError <= 0:
		return errors.New("Options.SoftTimeout needs StaleIfError or StaleWhileRevalidate: without them there is no stale value")
	case math.IsNaN(o.EarlyRefresh) || math.IsInf(o.EarlyRefresh, 0):
		return fmt.Errorf("Options.EarlyRefresh is %v, not a number", o.EarlyRefresh)
	case math.IsNaN(o.Jitter) || o.Jitter >= 1:
		return fmt.Errorf("Options.Jitter is %v, not less than 1", o.Jitter)
	case o.MaxBytes < 0:
		return errors.New("Options.MaxBytes cannot be turned off")
	case o.MaxBytes > mostBytes:
		return fmt.Errorf("Options.MaxBytes is %d, more than 512 MiB", o.MaxBytes)
	case o.OnRedisDown != FailOpen && o.OnRedisDown != FailClosed:
		return fmt.Errorf("Options.OnRedisDown is %d, which is no Policy", o.OnRedisDown)
	}
	return nil
}

type givenDuration struct {
	name         string
	value, least time.Duration
	mayBeOff     bool
}

// checkDurations returns what is wrong with the durations of a struct of options.
func checkDurations(options string, given []givenDuration) error {
	for _, d := range given {
		switch {
		case d.value == 0:
		case d.value < 0 && !d.mayBeOff:
			return fmt.Errorf("%s.%s cannot be turned off", options, d.name)
		case d.value > 0 && d.value < d.least:
			return fmt.Errorf("%s.%s is %v, less than %v", options, d.name, d.value, d.least)
		case d.value > longestTTL:
			return fmt.Errorf("%s.%s is %v, more than 100 years", options, d.name, d.value)
		}
	}
	return nil
}

// A Near configures the near cache: entries in this process, so that a Get of one costs no
// round trip, no decoding and no allocation.
//
// An entry is dropped when its value changes in Redis, whatever changes it: another
// process, a program in another language, DEL in redis-cli, the end of its TTL, eviction,
// FLUSHALL. After [Loader.Set], [Loader.Delete] or [Loader.Update] returns, each Get of the
// same process over the same client sees the change. Other processes see it as soon as the
// server's message arrives: after about one network delay, if they have a CPU to read it.
//
// A process has one more connection for this to Redis, or to each master of a cluster, on
// which the server reports changes (CLIENT TRACKING). While that connection is lost, no
// entry is used. If it hangs, or its master was replaced, no entry is used after 3 seconds
// at most. A master that joins a cluster has no entries for the first seconds.
//
// If the server does not support or allow CLIENT TRACKING, that is logged once. Then entries
// are dropped for changes by Loaders only. Other changes are seen when TTL ends.
type Near struct {
	// Entries is the most entries. Defaults to none: the near cache is off.
	Entries int

	// TTL is the longest time that an entry is used, and not beyond the time for which its
	// value is fresh. Defaults to a minute.
	TTL time.Duration

	// FailSafe is for how long an entry is returned after it was last known good, with
	// [Result.Stale], if Redis is unavailable and the fetch fails, or is not made with
	// [FailClosed]. An entry is known good until its TTL ends, or until the connection for
	// changes fails. A Delete, Set or Update of this process ends it; one of another process is
	// not seen in that time. Defaults to off.
	FailSafe time.Duration
}

// LockOptions configure a [Locker]. The zero value of a field means its default, as with
// [Options].
type LockOptions struct {
	// Prefix is the namespace of the locks. Lockers with the same Prefix share their locks,
	// in all processes; they must agree on Slots. It may be a Loader's Prefix as well.
	// Required.
	Prefix string

	// Lease is how long a process that dies while it holds a lock blocks it. A live process
	// renews its lease at a third of it, so a lock may be held for longer. A renewal is given
	// up after another third, so that there is time for a second one: Lease should be three
	// times as long as Redis may take to answer. Defaults to 5 seconds; the least is 10 ms.
	Lease time.Duration

	// MaxHold is the longest that a lock may be held. Then the holder's context ends with
	// [ErrMaxHold], and its lease is not renewed any more. A lock that the holder does not
	// release is lost when the lease ends. Defaults to no limit.
	MaxHold time.Duration

	// MaxWait is the longest that a call waits for a lock. Then it leaves the queue and
	// returns [ErrLocked]. TryDo and TryAcquire do not wait at all. Defaults to no limit: a
	// call waits until its context ends.
	MaxWait time.Duration

	// RedisTimeout is the limit of each operation in Redis, with its retries; for a renewal,
	// a third of Lease if that is less. It does not limit the wait for a lock: that ends
	// with the caller's context or MaxWait. Defaults to 500 ms.
	RedisTimeout time.Duration

	// RedisBreaker is [Options.RedisBreaker] for locks: calls return an [*Error] with
	// [ErrUnavailable] at once. A held lock is renewed all the same. Defaults to one second.
	RedisBreaker time.Duration

	// Slots is how many may hold a lock at once: 1 is a lock, more is a semaphore. Defaults
	// to 1; the most is 1000.
	Slots int

	// Trace receives events for metrics. Defaults to none.
	Trace *Trace

	// Logger receives events that cannot be returned to a caller: a lock that could not be
	// released after its work was done. Defaults to [slog.Default].
	Logger *slog.Logger

	// Instance is [Options.Instance].
	Instance string
}

const (
	defaultSlots = 1
	mostSlots    = 1000 // each script reads all leases of a lock
)

// withDefaults returns the options with the defaults in the place of zeros, and
// zero in the place of what is off.
func (o LockOptions) withDefaults() LockOptions {
	if o.Lease == 0 {
		o.Lease = defaultLease
	}
	o.MaxHold, o.MaxWait = max(o.MaxHold, 0), max(o.MaxWait, 0)
	if o.RedisTimeout == 0 {
		o.RedisTimeout = defaultRedisTimeout
	}
	o.RedisBreaker = orDefault(o.RedisBreaker, defaultRedisBreaker)
	if o.Slots == 0 {
		o.Slots = defaultSlots
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// check returns what is wrong with the options as they were given.
func (o LockOptions) check() error {
	err := checkDurations("LockOptions", []givenDuration{
		{"Lease", o.Lease, leastLease, false},
		{"MaxHold", o.MaxHold, leastTTL, true},
		{"MaxWait", o.MaxWait, leastTTL, true},
		{"RedisTimeout", o.RedisTimeout, leastTTL, false},
		{"RedisBreaker", o.RedisBreaker, leastTTL, true},
	})
	switch {
	case err != nil:
		return err
	case o.Prefix == "":
		return errors.New("LockOptions.Prefix is empty")
	case o.Slots < 0:
		return errors.New("LockOptions.Slots cannot be turned off")
	case o.Slots > mostSlots:
		return fmt.Errorf("LockOptions.Slots is %d, more than %d", o.Slots, mostSlots)
	}
	return nil
}
