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

// Options configure a [Loader]. The zero value of a field means its default. [New] returns an error
// that names the field if it cannot use a value.
//
// Durations are cut to whole milliseconds where Redis stores them.
type Options[V any] struct {
	// Prefix is the namespace of the Loader's keys in Redis. Loaders with the same Prefix
	// share their keys and leases, in all processes. Required.
	Prefix string

	// Schema is the version of V's shape. Builds with different Schemas share keys and leases, and
	// each reads only the values of its own Schema. A Delete, Set or Update by one build ends the
	// values of all.
	//
	// Defaults to a fingerprint of V as the codec sees it: the encoded fields with their names and
	// tag options, and the kinds of their values. A type that encodes itself counts by its package
	// path and name. With a codec of your own, the exported fields count in their order, with their
	// tags. Set Schema by hand if only the meaning of a value changes.
	Schema string

	// TTL is how long a value is fresh. Redis keeps it for that time, and then for the longer of
	// StaleWhileRevalidate and StaleIfError. With Off, Redis keeps only leases: a Store is then
	// required, and every Get looks it up first. Defaults to 5 minutes.
	TTL time.Duration

	// Jitter is the largest share of a TTL that is subtracted at random, so values that were stored
	// together do not expire together. It applies to TTL, NotFoundTTL and Fetch.TTL, and must be
	// less than 1. Defaults to 0.1; Off turns it off.
	Jitter float64

	// NotFoundTTL is how long an [ErrNotFound] of a fetch is remembered. With Off, only the
	// callers that waited for that fetch share it, in all processes. Defaults to a tenth of
	// TTL.
	NotFoundTTL time.Duration

	// Errors are sentinels that keep their identity in other processes. If [errors.Is] finds one in a
	// fetch's error, it finds it for every caller that shares the failure, in every process that
	// lists a sentinel with the same text. At most 16 of the sentinels that an error matches are
	// sent. Nothing else of it is sent: in another process, [errors.As] does not find the fetch's
	// error. [ErrNotFound] needs no entry. Defaults to none; at most 100.
	Errors []error

	// ErrorTTL is how long a failure of a fetch other than ErrNotFound is returned to later callers
	// without a fetch, as an [*Error] with its text; see [Loader.Get]. A process returns the failure
	// of another process for at most its own ErrorTTL. Defaults to off.
	ErrorTTL time.Duration

	// StaleWhileRevalidate is how long after its TTL a stale value is returned at once, while one
	// process fetches a new one (RFC 5861). A failed fetch is followed by a backoff; see
	// StaleIfError. Defaults to off.
	//
	// The server's clock decides how old a value is. A process learns it with its first miss.
	StaleWhileRevalidate time.Duration

	// StaleIfError is how long after its TTL a stale value is returned if the fetch of a new one
	// fails (RFC 5861). After such a failure, callers receive the stale value at once for a backoff.
	// It is a quarter of the time for which the value has been stale, at least 1 and at most 30
	// seconds, plus or minus a quarter. If ErrorTTL is set, it is ErrorTTL. [ErrNotFound] is not a
	// failure. Defaults to off.
	StaleIfError time.Duration

	// SoftTimeout is how long a caller waits for a new value if StaleIfError allows a stale one. Then
	// it receives the stale value, and the fetch continues. StaleWhileRevalidate needs none: its
	// stale values are returned at once. Defaults to off: the caller waits for the fetch.
	SoftTimeout time.Duration

	// EarlyRefresh is the beta of XFetch ("Optimal Probabilistic Cache Stampede Prevention",
	// Vattani, Chierichetti, Lowenstein, VLDB 2015). A Get refreshes a value in the background if d
	// * beta * -ln(random) is more than the rest of its TTL, where d is the duration of its fetch.
	// So callers of a popular key rarely wait. 1 is the paper's choice; a higher beta refreshes
	// earlier. Defaults to off.
	EarlyRefresh float64

	// Lease is how long a process that dies during a fetch blocks the key. A live process renews its
	// lease after a third of Lease, so a fetch may take longer. A renewal fails after another third
	// without an answer, which leaves time for one more. So set Lease to at least three times the
	// longest time that Redis takes to answer. Defaults to 5 seconds; from 10 ms to a minute.
	//
	// The maximum bounds a forged lease: one write to Redis blocks a key for at most a minute.
	Lease time.Duration

	// FetchTimeout limits a fetch, together with the Store's Lookup and Create. When it passes, the
	// fetch's context ends with [ErrFetchTimeout], its callers receive that error, and its lease is
	// released. A fetch that ignores its context continues without callers and keeps its permit of
	// MaxFetches. Defaults to a minute; Off turns it off.
	FetchTimeout time.Duration

	// MaxFetches is how many fetches of this Loader run at once, over all keys. A fetch counts until
	// its function returns, even if its callers have left. Other loads wait for a permit, and hold
	// no lease while they wait. If no permit is released for FetchTimeout, every permit belongs to a
	// fetch that ignores its context: the load returns [ErrFetchTimeout].
	//
	// A fetch that waits in a Get of another key yields its permit. If its context ends during that
	// Get and the fetch continues, it takes the next free permit, before later loads. The batch
	// fetch of a GetMany takes one permit, and holds its leases while it waits for it. Defaults to
	// no limit.
	MaxFetches int

	// RedisTimeout is how long an operation waits for an answer from Redis. A renewal waits for a
	// third of Lease if that is less. A passing error, as in a failover, is retried for another
	// RedisTimeout. Time in the queue does not count while Redis answers other operations. No
	// operation takes longer than its caller's deadline. Defaults to 500 ms.
	RedisTimeout time.Duration

	// RedisBreaker is how often a failed node of Redis is probed. A node has failed if it did not
	// answer within RedisTimeout, could not be reached, or serves no keys, for example because it is
	// loading its data. Until a probe is answered, Gets follow OnRedisDown at once, and Set, Delete
	// and Update return an [*Error] with [ErrUnavailable]. Renewals are always sent. All Loaders and
	// Lockers of a client share the state of a node. Defaults to a second, with jitter; with Off,
	// every call is sent.
	RedisBreaker time.Duration

	// OnRedisDown decides what Get, GetMany, Load and Update do if Redis does not answer, or answers
	// with an error. Defaults to [FailOpen].
	OnRedisDown Policy

	// Near configures the near cache; see [Near]. It requires TTL, and a client that reads from
	// masters: of a single server, of Sentinels or of a cluster. Defaults to off.
	Near Near

	// Store is the durable place of the values, for example a table. Defaults to none.
	Store Store[V]

	// Codec encodes values for Redis. A value of another codec is a miss. A value that the codec
	// could not read back is not stored; see [Codec] and [KeyCodec]. Defaults to [Msgpack].
	Codec Codec

	// Clone copies a value that several callers of this process share, once for each caller. With
	// Near, every value is shared. Clone also copies a stale value that both a caller and, as
	// [Fetch.Old], a fetch receive. Clone is not called with a nil pointer. If V is a pointer type,
	// Get may return nil without an error, because any writer to Redis may have stored a nil pointer.
	// A panic of Clone reaches the caller of Get; in GetMany it may be a [*PanicError]. Defaults to
	// none: callers must then treat values as read-only.
	Clone func(V) V

	// MaxBytes is the largest encoded value that Redis stores and a Loader reads. A larger value is
	// returned to its callers, and only the Store keeps it. The same applies to a value that
	// [Msgpack] or [JSON] could decode only with more than 32 times MaxBytes plus 1 MiB of memory.
	// Defaults to 4 MiB; at most 512 MiB.
	MaxBytes int

	// Trace receives events for metrics. Defaults to none.
	Trace *Trace

	// Logger receives events that cannot be returned to a caller: a fetched value that was not
	// stored, a failed refresh, unusable data in Redis, an unavailable Redis. A panic of the Logger
	// is dropped. Defaults to [slog.Default].
	Logger *slog.Logger

	// Instance is the name of this process in the log. Defaults to "host:pid".
	Instance string
}

// A Policy decides what a Get or an Update does without Redis.
type Policy int

const (
	// FailOpen loads without a lease, and logs it. Each process fetches a key once for all its
	// callers. Only the Store keeps the value.
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

// check returns an error for options that cannot be used. It runs before withDefaults.
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

// Near configures the near cache, which keeps values in this process. A Get of a value in it costs
// no round trip, no decoding and no allocation.
//
// An entry is dropped when its value changes in Redis, whatever the cause: a write by another
// process or another program, the end of its TTL, eviction, or FLUSHALL. After [Loader.Set],
// [Loader.Delete] or [Loader.Update] returns, every Get of the same process over the same client
// sees the change. Other processes see it when the server's message arrives, usually after one
// network delay.
//
// The process opens one more connection to Redis, or one to each master of a cluster, on which the
// server reports changes (CLIENT TRACKING). While such a connection is lost, entries are not used.
// If it hangs, or its master was replaced, entries are used for at most 3 more seconds. Keys of a
// master that has just joined a cluster have no entries for the first seconds.
//
// If the server refuses CLIENT TRACKING, that is logged once. Entries are then dropped only for
// changes by Loaders. Other changes become visible when Near.TTL ends.
type Near struct {
	// Entries is the largest number of entries. Defaults to 0: the near cache is off.
	Entries int

	// TTL is the longest time for which an entry is used. An entry also ends with its value's TTL.
	// With StaleIfError, entries of stale values are used during a backoff. Defaults to a minute.
	TTL time.Duration

	// FailSafe is how long an entry is returned, with [Result.Stale], after it was last known to be
	// good. It is returned if Redis is unavailable and the fetch fails. With [FailClosed], the entry
	// is returned without a fetch. An entry is known good until its TTL ends or its tracking
	// connection fails. A Delete, Set or Update by this process ends it. One by another process is
	// not noticed in that time. Defaults to off.
	FailSafe time.Duration
}

// LockOptions configure a [Locker]. The zero value of a field means its default, as with [Options].
type LockOptions struct {
	// Prefix is the namespace of the locks. Lockers with the same Prefix share their locks, in all
	// processes, and must have the same Slots. A Loader may use the same Prefix. Required.
	Prefix string

	// Lease is how long a process that dies while it holds a lock blocks that lock. A live process
	// renews its lease after a third of Lease, so a lock may be held for longer. Each renewal is
	// given up after another third, which leaves time for a second one. So set Lease to at least
	// three times the longest time that Redis takes to answer. Defaults to 5 seconds; at least 10
	// ms.
	Lease time.Duration

	// MaxHold limits how long a lock is held. When it passes, the holder's context ends with
	// [ErrMaxHold] and the lease is no longer renewed. If the holder does not release the lock, the
	// lock is lost when the lease ends. Defaults to no limit.
	MaxHold time.Duration

	// MaxWait limits how long a call waits for a lock. When it passes, the call leaves the queue and
	// returns [ErrLocked]. TryDo and TryAcquire never wait. Defaults to no limit: a call waits until
	// its context ends.
	MaxWait time.Duration

	// RedisTimeout is [Options.RedisTimeout] for locks. It does not limit the wait for a lock, which
	// the caller's context and MaxWait do. Defaults to 500 ms.
	RedisTimeout time.Duration

	// RedisBreaker is [Options.RedisBreaker] for locks. While a node has failed, calls return an
	// [*Error] with [ErrUnavailable] at once. Held locks are still renewed. Defaults to one second.
	RedisBreaker time.Duration

	// Slots is how many holders a lock has at once. With more than 1, the lock is a semaphore.
	// Defaults to 1; at most 1000.
	Slots int

	// Trace receives events for metrics. Defaults to none.
	Trace *Trace

	// Logger receives events that cannot be returned to a caller, such as a lock that could not be
	// released. Defaults to [slog.Default].
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
