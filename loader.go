package fetchonce

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/fetchonce/fetchonce/internal/backoff"
	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/budget"
	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/missrate"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/permit"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/ratelog"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// A Loader loads values of one type, each once for all callers that ask for it at the same
// time, in all processes that share a Redis. It is made by [New], is safe for concurrent
// use, and must be closed.
type Loader[V any] struct {
	values[V]
	shared
	flights  flight.Group[*outcome[V]]
	near     *near.Cache[nearEntry[V]] // nil if it is off
	permits  *permit.Permits           // of MaxFetches; nil without that limit
	missRate missrate.Rate
	backoffs backoff.Keys
	log      *ratelog.Log
	trace    tracer
	cleanup  cleanup.List // leases and write marks that may be left in Redis
	closed   atomic.Bool
}

// values is how a Loader reads and writes values.
type values[V any] struct {
	opt    Options[V] // with the defaults; what is off is zero
	codec  byte
	unsure bool           // the codec may refuse to read what it wrote
	memory *budget.Budget // of a decoded value; nil for a codec of the user's
	ahead  atomic.Int64   // by how many ns the server's clock is ahead of ours
}

// shared is what a Loader shares with the others of its client, or keeps in Redis.
type shared struct {
	redis       *protocol.Client
	names       *protocol.Namespace
	router      *batch.Router
	cluster     bool
	mailbox     *wake.Mailbox
	channel     string // of the notifications for this process
	unsubscribe func()
	hub         *near.Hub
}

// A Result is a value and where it came from.
type Result[V any] struct {
	Value  V
	Source Source
	Age    time.Duration // since it was fetched, as far as the clocks agree; 0 where that is not known
	Stale  bool          // its TTL has ended; see [Options.StaleWhileRevalidate]
}

// A Source says where a value came from.
type Source int

// The sources. A value that was waited for has the source of the load that was
// waited for.
const (
	SourceNear  Source = iota + 1 // this process had a copy
	SourceRedis                   // it was there
	SourceStore                   // it was in the Store, and not in Redis
	SourceFetch                   // this process fetched it
	SourcePeer                    // another process fetched it meanwhile, and told us
)

// String returns the name of s: near, redis, store, fetch or peer.
func (s Source) String() string {
	switch s {
	case SourceNear:
		return "near"
	case SourceRedis:
		return "redis"
	case SourceStore:
		return "store"
	case SourceFetch:
		return "fetch"
	case SourcePeer:
		return "peer"
	}
	return "none"
}

// A Fetch is what the fetch of [Loader.Load] is given.
type Fetch[V any] struct {
	// Key is the key as the caller gave it.
	Key string

	// Fence is a number that rises with every lease of this key. A writer who
	// checks it where the data lives cannot be overtaken by one that was paused
	// beyond its lease. It is 0 if there is no lease, because Redis is down. It
	// comes from the clock of Redis: if that is set back, it may be lower than
	// that of a lease which has ended. docs/fence.md has the statements.
	Fence int64

	// Old is the value that is to be replaced, if there is one that was found: old,
	// or refreshed early. To return Old.Value says that it has not changed. Treat
	// it as read-only.
	Old *Result[V]

	// TTL may be set by the fetch to keep what it found, an absence too, for
	// another time than [Options.TTL] or [Options.NotFoundTTL] say. A negative
	// one, or one of less than a millisecond or more than 100 years, keeps
	// nothing: it is only given to those who wait for it.
	TTL time.Duration
}

// New returns a Loader over a Redis client, which stays the caller's to
// configure and to close. It speaks to nobody yet. The error is an [*Error]
// that names the option that cannot be used, or says why the client cannot.
//
// New accepts a client of one server, of Sentinels or of a cluster, and a struct
// that wraps one. It refuses a Ring, a client that reads from replicas, a client
// with go-redis' ClientSideCache or ClientSideCacheConfig, and nil. Do not set
// ReplicaOnly for Sentinels: New cannot find that out, and such a client reads from
// replicas.
//
// Over a *redis.ClusterClient, commands are sent by the clients of its nodes, so that
// a node that hangs delays only its own keys. A hook on the ClusterClient does not run
// for them: add it to the nodes' clients, in OnNewNode.
//
// Give the client timeouts: go-redis' own are 5 seconds and several retries, and
// although no caller waits for them, a connection does. With its
// ContextTimeoutEnabled, a caller who is alone needs no second goroutine, which
// with a Redis nearby is a good part of what a hit costs.
func New[V any](rdb redis.UniversalClient, opt Options[V]) (*Loader[V], error) {
	err := opt.check()
	cluster, refused := client.Check(rdb)
	if err == nil {
		err = refused
	}
	if err == nil && opt.Near != (Near{}) && !near.Usable(rdb) {
		err = errNearClient
	}
	if err != nil {
		return nil, &Error{Op: "new", Err: err}
	}
	return newLoader(rdb, cluster, opt.withDefaults()), nil
}

func newLoader[V any](rdb redis.UniversalClient, cluster bool, opt Options[V]) *Loader[V] {
	l := &Loader[V]{
		values: values[V]{opt: opt, codec: codecID(opt.Codec), unsure: needsReadBack[V](opt.Codec), memory: memoryOf[V](opt.Codec, opt.MaxBytes)},
		shared: shared{names: protocol.NewNamespace(opt.Prefix, opt.Schema), cluster: cluster, mailbox: wake.Open(rdb), router: batch.NewRouter(rdb)},
		log:    ratelog.New(opt.Logger),
	}
	l.trace = newTracer(opt.Trace, l.log)
	l.channel = l.names.Channel(l.mailbox.Process())
	l.unsubscribe = l.mailbox.Use(l.channel)
	l.redis = protocol.NewClient(l.router, l.names, l.mailbox.Process(), opt.RedisTimeout, cluster)
	l.redis.Failed = l.trace.redisFailed()
	l.redis.Unnotified = func(err error) { l.log.Once(logNoPublish, err) }
	l.redis.ErrorTTL, l.redis.Backoff = opt.ErrorTTL, backoff.Longest
	if opt.MaxFetches > 0 {
		l.permits = permit.New(opt.MaxFetches, opt.FetchTimeout)
	}
	l.hub = near.Open(rdb, l.mailbox.Process())
	l.openNear()
	l.cleanup.IsFinal = protocol.IsFinal
	return l
}

// Close ends all loads that are under way: their fetches' contexts end with
// [ErrClosed], their leases are given back, and their callers get ErrClosed. So does
// the context of a Create of the [Store]: Close does not wait for a row. Close
// returns when all loads have ended; a fetch that does not heed its context goes on
// alone. If Redis does not answer, that takes as long as RedisTimeout; what then
// still waits inside the client ends with the client's own timeouts. To close
// again does nothing.
func (l *Loader[V]) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	ends := time.Now().Add(l.opt.RedisTimeout)
	l.flights.Close(ErrClosed)
	l.cleanup.Close(time.Until(ends))
	l.router.Close(ErrClosed) // after all that still gives leases back
	l.unsubscribe()
	l.mailbox.Close()
	if l.near != nil {
		l.near.Close()
	}
	l.hub.Close()
	return nil
}

// Get returns the value of key: the one that is kept, or else what fetch
// returns. Of all callers in all processes that ask for a key that is not there,
// one runs its fetch, and the others wait for what it finds.
//
// The context that fetch is given has the values of the ctx of one of the
// callers, and an end of its own: it ends when all callers have left, when the
// lease is lost ([ErrLockLost]) or the fetch takes too long ([ErrFetchTimeout]),
// and when the Loader is closed ([ErrClosed]); [context.Cause] says which. A
// caller waits as long as its own ctx allows, and leaves with ctx.Err(). With a
// [Store], callers may leave once the fetch has succeeded: its value is created all the
// same, under the lease, which is renewed until then. Only where
// the client has ContextTimeoutEnabled, and Redis stops to answer, one or two callers
// may notice that their ctx was cancelled as late as [Options.RedisTimeout] allows.
//
// What fetch returns is returned to all who waited for it. Its error comes back
// as it is in this process, and as an [*Error] with its text in others. An error
// that is [ErrNotFound] is remembered, others are not, unless
// [Options.ErrorTTL] says so. If fetch panics, Get panics in every caller of this
// process that waited for it, with a [*PanicError].
//
// When Redis does not answer, [Options.OnRedisDown] decides: then Get fetches
// without a lease, or returns an [*Error]. What was fetched is returned even if
// it cannot be stored. A fetch that Gets the same key of the same Loader with
// the context it was given gets an *Error, as it would wait for itself.
func (l *Loader[V]) Get(ctx context.Context, key string, fetch func(ctx context.Context, key string) (V, error)) (V, error) {
	c, refresh := l.nearGet(ctx, key)
	if c != nil && c.plain && fetch != nil {
		return c.value, nil // from here, as each function between costs another move of a large V
	}
	return get(ctx, l, key, nearHit[V]{c, refresh}, getFetch[string, V]{key, fetch})
}

// A nearHit is what the near cache has of a key, if it has anything.
type nearHit[V any] struct {
	entry   *nearEntry[V]
	refresh bool // early, by this caller
}

// A getFetch is the fetch of a Get, and its argument, which Wrap makes of the key.
type getFetch[A, V any] struct {
	arg   A
	fetch func(ctx context.Context, arg A) (V, error)
}

// A getAnswer is what the lookup of a Get comes to: a value, or a load.
type getAnswer[V any] struct {
	value V
	load  *caller[V] // nil if the lookup answers the Get
}

// get is the rest of a Get that has found no plain near entry. It does not hold the large
// frame of the lookup while it waits for a load.
func get[A, V any](ctx context.Context, l *Loader[V], key string, hit nearHit[V], f getFetch[A, V]) (V, error) {
	a, err := getLookup(ctx, l, key, hit, f.fetch == nil)
	if a.load == nil {
		return a.value, err
	}
	// Made only now: a hit needs no closure.
	a.load.fetch = func(ctx context.Context, _ *Fetch[V]) (V, error) { return f.fetch(ctx, f.arg) }
	r, err := a.load.settledLoad()
	return r.Value, err
}

func getLookup[V any](ctx context.Context, l *Loader[V], key string, hit nearHit[V], noFetch bool) (getAnswer[V], error) {
	if hit.entry != nil && !hit.refresh && !noFetch {
		v, err := l.nearValue(hit.entry)
		l.trace.looked(ctx, key, true, SourceNear, err)
		return getAnswer[V]{value: v}, err
	}
	k, err := l.enter(ctx, "get", key, noFetch)
	if err != nil {
		return getAnswer[V]{}, err
	}
	came := l.flights.Arrive() // before the lookup: a fetch that starts during it is new enough
	seen, err := l.lookupOrSkip(ctx, k, hit.entry, hit.refresh)
	if err != nil || seen.state == fresh {
		l.trace.looked(ctx, key, seen.found(), seen.result.Source, err)
		return getAnswer[V]{value: seen.result.Value}, err
	}
	return getAnswer[V]{load: &caller[V]{Loader: l, ctx: ctx, k: k, came: came, seen: seen}}, nil
}

// Load is [Loader.Get] with a [Fetch] for the fetch, and a [Result].
func (l *Loader[V]) Load(ctx context.Context, key string, fetch func(ctx context.Context, f *Fetch[V]) (V, error)) (Result[V], error) {
	k, err := l.enter(ctx, "load", key, fetch == nil)
	if err != nil {
		return Result[V]{}, err
	}
	came := l.flights.Arrive() // before the lookup: a fetch that starts during it is new enough
	c, refresh := l.nearGet(ctx, key)
	seen, err := l.lookupOrSkip(ctx, k, c, refresh)
	if err != nil || seen.state == fresh {
		l.trace.looked(ctx, key, seen.found(), seen.result.Source, err)
		return seen.result, err
	}
	return (&caller[V]{Loader: l, ctx: ctx, k: k, came: came, seen: seen, fetch: fetch}).settledLoad()
}

// Peek returns what is kept, fresh or old, and never fetches. The error is [ErrNotFound] if
// there is nothing, or an absence, or something that is not usable; an [*Error]
// if Redis does not answer, whatever [Options.OnRedisDown] says; and ctx.Err()
// if ctx ends first. Peek looks where Get would look first: among the copies of
// this process, if there are any ([Options.Near]), and in Redis or, with
// [Options.TTL] off, in the Store.
func (l *Loader[V]) Peek(ctx context.Context, key string) (Result[V], error) {
	k, err := l.enter(ctx, "peek", key, false)
	if err != nil {
		return Result[V]{}, err
	}
	var seen lookup[V]
	if c, _ := l.nearGet(ctx, key); c != nil {
		seen, err = l.lookupNear(c, false)
	} else {
		seen, err = l.lookup(ctx, k)
	}
	switch {
	case err != nil:
	case seen.state == unavailable:
		err = &Error{Op: "read", Key: key, Err: seen.cause}
	case !seen.found() && seen.state != fallback:
		err = ErrNotFound
	}
	return seen.result, err
}

// Set stores a value in Redis, for [Options.TTL], whatever was there. It does
// not touch the Store. A fetch of the key that is running, in any process, loses
// its lease, so what it finds is not stored; those who wait for it get v.
//
// When Set returns nil, every Get that begins later sees v or what came after
// it. Otherwise nothing is known of v, unless the error's cause is that it
// cannot be stored: it cannot be encoded, the codec does not read what it wrote, it is larger
// than [Options.MaxBytes], or TTL is off. The error is an [*Error]; or [ErrClosed], or that of a ctx that
// had ended before, and then nothing was done.
func (l *Loader[V]) Set(ctx context.Context, key string, v V) error {
	k, err := l.enter(ctx, "set", key, false)
	if err != nil {
		return err
	}
	if l.opt.TTL == 0 {
		return &Error{Op: "set", Key: key, Err: errors.New("Options.TTL is off, so no value is kept in Redis")}
	}
	payload, err := l.encode(k, v)
	if err != nil {
		return &Error{Op: "encode", Key: key, Err: err}
	}
	ttl := l.jitter(l.opt.TTL)
	// The server stamps it with its time and a fence.
	h := l.header(k, envelope.Value, ttl)
	sealed := envelope.Seal(h, payload)
	defer l.changed(k) // whatever the outcome
	if err := l.redis.Set(ctx, k.names, l.mailbox.Owner(), sealed, h.Keep); err != nil {
		return &Error{Op: "set", Key: key, Err: err}
	}
	return nil
}

// Delete makes the next Get of each key fetch it again. It does not touch the
// Store. A fetch of such a key that is running, in any process, loses its lease:
// what it finds is not stored, and is not returned to a Get that begins after
// Delete has returned. If its value is already being created in the Store, the row is
// created all the same, and a Get that begins later may find that row.
//
// A key that is not kept is deleted as well as any other. The error joins an
// [*Error] for each key of which it is not known that it was deleted: a Get may
// return its old value until that ends by itself. It is [ErrClosed] if the
// Loader is closed.
func (l *Loader[V]) Delete(ctx context.Context, keys ...string) error {
	if l.closed.Load() {
		return ErrClosed
	}
	errs := make([]error, len(keys))
	var all errgroup.Group
	all.SetLimit(deletesAtOnce)
	for i, key := range keys {
		k, err := l.enter(ctx, "delete", key, false)
		if err != nil {
			errs[i] = err
			continue
		}
		all.Go(func() error {
			defer l.changed(k)
			if err := l.redis.Invalidate(ctx, k.names); err != nil {
				errs[i] = &Error{Op: "delete", Key: key, Err: err}
			}
			return nil
		})
	}
	_ = all.Wait() // the errors are in errs
	return errors.Join(errs...)
}

// deletesAtOnce is how many scripts of one Delete are under way: they share
// round trips.
const deletesAtOnce = 256

// A keyed is a key of the caller's with its names in Redis.
type keyed struct {
	user   string
	names  protocol.Key
	digest uint64
}

// enter checks what every method is given.
func (l *Loader[V]) enter(ctx context.Context, op, key string, noFetch bool) (keyed, error) {
	switch {
	case ctx == nil:
		return keyed{}, &Error{Op: op, Key: key, Err: errors.New("the context is nil")}
	case noFetch:
		return keyed{}, &Error{Op: op, Key: key, Err: errors.New("the fetch is nil")}
	case l.closed.Load():
		return keyed{}, ErrClosed
	case ctx.Err() != nil:
		return keyed{}, ctx.Err()
	}
	return l.keyed(key), nil
}

func (l *Loader[V]) keyed(key string) keyed {
	names := l.names.Key(key)
	return keyed{user: key, names: names, digest: envelope.Digest(names.Value)}
}

// changed has this process forget what it knows of a key: a caller that comes later joins no
// load that started before, and receives no near entry.
func (l *Loader[V]) changed(k keyed) {
	l.hub.Changed(k.names.Value)
	l.flights.Forget(k.user)
}

// jitter takes a random share off a TTL, so that values that were stored together do not
// end together.
func (l *values[V]) jitter(ttl time.Duration) time.Duration {
	return max(ttl-time.Duration(rand.Float64()*l.opt.Jitter*float64(ttl)), min(ttl, leastTTL))
}

// serverNow estimates the server's clock, which stamps all values.
func (l *values[V]) serverNow() time.Time {
	return time.Now().Add(time.Duration(l.ahead.Load()))
}
