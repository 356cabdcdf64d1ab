package fetchonce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/fetchonce/fetchonce/internal/backoff"
	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/codec"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/freshness"
	"github.com/fetchonce/fetchonce/internal/missrate"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/permit"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/ratelog"
	"github.com/fetchonce/fetchonce/internal/shape"
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
	opt   Options[V] // with the defaults; what is off is zero
	codec codec.Values[V]
	rules freshness.Rules
	clock freshness.Clock // of the server, which stamps all values
}

// shared is what a Loader shares with the other users of its Redis client, and how it uses it.
type shared struct {
	*client.Client
	link        *batch.Link
	redis       *protocol.Client
	names       *protocol.Namespace
	channel     string // of the notifications for this process
	unsubscribe func()
	unwatch     func() // ends the calls when Redis is back
}

// A Result is a value, and how it was found.
type Result[V any] struct {
	Value  V
	Source Source
	Age    time.Duration // since the fetch, as far as the clocks agree; 0 if unknown
	Stale  bool          // its TTL has ended; see [Options.StaleWhileRevalidate]
}

// A Source says where a value came from.
type Source int

// The sources. A caller that waited for a load has the load's source.
const (
	SourceNear  Source = iota + 1 // the near cache
	SourceRedis                   // Redis
	SourceStore                   // the Store
	SourceFetch                   // a fetch of this process
	SourcePeer                    // a fetch of another process, which this one waited for
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

// A Fetch is the argument of a fetch of [Loader.Load].
type Fetch[V any] struct {
	// Key is the key as the caller gave it.
	Key string

	// Fence is the fencing token of the lease. It rises with every lease of the key, so a
	// writer that checks it where the data lives refuses a holder that was paused beyond its
	// lease; docs/fence.md has the statements. It is 0 without a lease, because Redis is
	// unavailable. It comes from the server's clock: if that is set back, a fence may be
	// lower than that of a lease that has ended.
	Fence int64

	// Old is the value to be replaced, if there is one: stale, or refreshed early. A fetch
	// that returns Old.Value says that it has not changed. Treat it as read-only.
	Old *Result[V]

	// TTL may be set by the fetch: how long to keep the value, or its absence, in the place
	// of [Options.TTL] or [Options.NotFoundTTL]. With a negative TTL, one below a
	// millisecond or one above 100 years, only the callers that wait receive the value.
	TTL time.Duration
}

// New returns a Loader over a Redis client, which the caller configures and closes. It sends
// nothing yet. The error is an [*Error] that names the option that cannot be used, or says
// why the client or V cannot.
//
// New accepts a client of one server, of Sentinels or of a cluster, and a struct that wraps
// one. It refuses a Ring, a client that reads from replicas, a client with go-redis'
// ClientSideCache or ClientSideCacheConfig, and nil. Do not set ReplicaOnly for Sentinels:
// such a client reads from replicas, and New cannot detect it.
//
// New also refuses a V that [Msgpack] or [JSON] cannot encode, and names the path: a channel,
// a function, a complex number, a struct without an exported field, as in
// `Order.Items[].Done: chan struct {}`. What they keep only in part is logged, once for each
// Loader: unexported fields beside exported ones, and interfaces, which come back with other
// types. A codec of your own is not checked.
//
// Over a *redis.ClusterClient, commands are sent by the clients of its nodes, so a node that
// hangs delays its own keys only. Hooks of the ClusterClient do not run for them: add hooks
// to the nodes' clients, in OnNewNode.
//
// Set the client's timeouts: go-redis defaults to 5 seconds and several retries, for which a
// connection waits, though no caller does. With ContextTimeoutEnabled, a lone command is
// sent on its caller's goroutine, which makes a hit faster.
func New[V any](rdb redis.UniversalClient, opt Options[V]) (*Loader[V], error) {
	err := opt.check()
	cluster, refused := client.Check(rdb)
	if err == nil {
		err = refused
	}
	if err == nil && opt.Near != (Near{}) && !near.Usable(rdb) {
		err = errNearClient
	}
	opt = opt.withDefaults()
	form := codec.ShapeOf[V](opt.Codec)
	if err == nil && len(form.Refused) > 0 {
		err = fmt.Errorf("%s cannot keep the values: %s", codec.Name(opt.Codec), shape.List(form.Refused))
	}
	if err != nil {
		return nil, &Error{Op: "new", Err: err}
	}
	if opt.Schema == "" {
		opt.Schema = form.Fingerprint(codec.Name(opt.Codec))
	}
	l := newLoader(client.Open(rdb, cluster), opt, form.Unsure)
	if len(form.Lost) > 0 {
		l.log.Note(logLost, "codec", codec.Name(opt.Codec), "lost", shape.List(form.Lost))
	}
	return l, nil
}

func newLoader[V any](c *client.Client, opt Options[V], readBack bool) *Loader[V] {
	l := &Loader[V]{
		values: values[V]{opt: opt, codec: codec.New[V](opt.Codec, opt.MaxBytes, readBack), rules: opt.rules()},
		shared: shared{Client: c, names: protocol.NewNamespace(opt.Prefix, opt.Schema)},
		log:    ratelog.New(opt.Logger, "prefix", opt.Prefix, "type", reflect.TypeFor[V]().String(), "instance", cmp.Or(opt.Instance, instance())),
	}
	l.trace = newTracer(opt.Trace, l.log)
	l.channel = l.names.Channel(l.Mailbox.Process())
	l.unsubscribe = l.Mailbox.Use(l.channel)
	l.unwatch = l.Router.OnBack(func() { l.log.Over(logBack, logUnavailable) })
	l.link = l.Router.Link(opt.RedisBreaker, opt.RedisTimeout)
	l.redis = protocol.NewClient(l.link, l.names, l.Mailbox.Process(), opt.RedisTimeout, l.Cluster)
	l.redis.Renewals = l.Router.Link(0, 0)
	l.redis.Failed = l.trace.redisFailed()
	l.redis.Unnotified = func(err error) { l.log.Once(logNoPublish, err) }
	l.redis.ErrorTTL, l.redis.Backoff = opt.ErrorTTL, backoff.Longest
	if opt.MaxFetches > 0 {
		l.permits = permit.New(opt.MaxFetches, opt.FetchTimeout)
	}
	l.openNear()
	l.cleanup.IsFinal = protocol.IsFinal
	return l
}

// Close ends all loads: the contexts of their fetches end with [ErrClosed], their leases are
// released, and their callers receive ErrClosed. The context of a Create of the [Store] ends,
// too: Close does not wait for a row. It returns when all loads have ended. A fetch that
// ignores its context continues alone. While Redis does not answer, Close takes RedisTimeout
// at most; what then waits in the client ends with the client's timeouts. A second Close
// does nothing.
func (l *Loader[V]) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	ends := time.Now().Add(l.opt.RedisTimeout)
	l.flights.Close(ErrClosed)
	l.cleanup.Close(time.Until(ends))
	l.unsubscribe()
	l.unwatch()
	if l.near != nil {
		l.near.Close()
	}
	l.Client.Close(ErrClosed) // after everything that releases leases
	return nil
}

// Get returns the value of key: the stored one, or the result of fetch. If callers in any
// number of processes Get a missing key at once, one runs its fetch, and the others wait for
// its result.
//
// The fetch's context has the values of one caller's ctx. It ends when all callers have left,
// with [ErrLockLost] when the lease is lost, with [ErrFetchTimeout], or with [ErrClosed];
// [context.Cause] says which. A caller waits until its own ctx ends, and then returns
// ctx.Err(). With a [Store], callers may leave once the fetch has succeeded: its value is
// created all the same, under the lease. With ContextTimeoutEnabled, while Redis does not
// answer, one or two callers may notice a cancellation only after [Options.RedisTimeout].
//
// All waiting callers receive the fetch's result. Its error is returned unchanged in this
// process. In others it is an [*Error] with the same text, for which [errors.Is] holds with
// the sentinels of [Options.Errors]. [ErrNotFound] is remembered; other errors are not, unless
// [Options.ErrorTTL] is set. If the fetch panics, Get panics with a
// [*PanicError] in every caller of this process that waited for it.
//
// Without Redis, [Options.OnRedisDown] decides: Get fetches without a lease, or returns an
// [*Error]. A fetched value is returned even if it cannot be stored. A fetch that Gets its
// own key with its own context receives an *Error, as it would wait for itself.
func (l *Loader[V]) Get(ctx context.Context, key string, fetch func(ctx context.Context, key string) (V, error)) (V, error) {
	hit := l.nearGet(ctx, key)
	if hit.entry != nil && hit.entry.plain && fetch != nil {
		return hit.entry.value, nil // from here, as each function between costs another move of a large V
	}
	b, err := l.begin(ctx, "get", key, hit, fetch == nil)
	if b.caller == nil {
		return b.result.Value, err
	}
	// Made only now: a hit needs no closure.
	b.caller.fetch = func(ctx context.Context, f *Fetch[V]) (V, error) { return fetch(ctx, f.Key) }
	r, err := b.caller.settledLoad()
	return r.Value, err
}

// Load is [Loader.Get] with a [Fetch] for the fetch, and a [Result].
func (l *Loader[V]) Load(ctx context.Context, key string, fetch func(ctx context.Context, f *Fetch[V]) (V, error)) (Result[V], error) {
	b, err := l.begin(ctx, "load", key, l.nearGet(ctx, key), fetch == nil)
	if b.caller == nil {
		return b.result, err
	}
	b.caller.fetch = fetch
	return b.caller.settledLoad()
}

// A begun is a Get after its lookup: it has a result, or a caller that waits for a load.
type begun[V any] struct {
	result Result[V]
	caller *caller[V] // nil if the lookup answers the Get
}

// begin makes the lookup of a Get. It is a function of its own, so that its large frame is not
// on the stack of each caller that waits for a load.
func (l *Loader[V]) begin(ctx context.Context, op, key string, hit nearHit[V], noFetch bool) (begun[V], error) {
	if hit.entry != nil && !hit.refresh && !hit.entry.stale && !noFetch {
		seen, err := l.lookupNear(hit)
		l.trace.gotByLookup(ctx, key, true, SourceNear, err)
		return begun[V]{result: seen.result}, err
	}
	k, err := l.enter(ctx, op, key, noFetch)
	if err != nil {
		return begun[V]{}, err
	}
	came := l.flights.Arrive() // before the lookup: a fetch that starts during it is new enough
	seen, err := l.lookupOrSkip(ctx, k, hit)
	if err != nil || seen.state == fresh {
		l.trace.gotByLookup(ctx, key, seen.found(), seen.result.Source, err)
		return begun[V]{result: seen.result}, err
	}
	return begun[V]{caller: &caller[V]{l: l, ctx: ctx, k: k, came: came, seen: seen}}, nil
}

// Peek returns the stored value, fresh or stale, and never fetches. It looks up what Get would
// look up first: the near cache, then Redis or, with [Options.TTL] off, the Store. The error
// is [ErrNotFound] if there is no usable value; an [*Error] if Redis does not answer,
// whatever [Options.OnRedisDown] says; or ctx.Err().
func (l *Loader[V]) Peek(ctx context.Context, key string) (Result[V], error) {
	k, err := l.enter(ctx, "peek", key, false)
	if err != nil {
		return Result[V]{}, err
	}
	var seen lookup[V]
	if hit := l.nearGet(ctx, key); hit.entry != nil {
		seen, err = l.lookupNear(hit)
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

// Set stores a value in Redis for [Options.TTL], in the place of any other. It does not change
// the Store. A running fetch of the key loses its lease, in any process: its value is not
// stored, and its callers receive v.
//
// After Set has returned nil, a Get that starts later returns v or a newer value. After an
// error it is not known whether v is stored, except when v cannot be stored: it cannot be
// encoded or read back, is larger than [Options.MaxBytes], or TTL is off. The error is an
// [*Error], [ErrClosed], or that of a ctx that had ended; then nothing was done.
func (l *Loader[V]) Set(ctx context.Context, key string, v V) error {
	k, err := l.enter(ctx, "set", key, false)
	if err != nil {
		return err
	}
	if l.opt.TTL == 0 {
		return &Error{Op: "set", Key: key, Err: errors.New("Options.TTL is off, so no value is kept in Redis")}
	}
	payload, err := l.codec.Encode(key, v)
	if err != nil {
		return &Error{Op: "encode", Key: key, Err: err}
	}
	h := l.header(k, envelope.Value, 0) // the server stamps it with its time and a fence
	sealed := envelope.Seal(h, payload)
	defer l.changed(k) // whatever the outcome
	if err := l.redis.Set(ctx, k.names, l.Mailbox.Owner(), sealed, h.Keep); err != nil {
		return &Error{Op: "set", Key: key, Err: err}
	}
	return nil
}

// Delete makes the next Get of each key fetch it again. It does not change the Store. A
// running fetch of a key loses its lease, in any process: its value is not stored, and no Get
// that starts after Delete has returned receives it. A value that is being created in the
// Store is created all the same, and a later Get may find that row.
//
// A missing key is deleted like any other. The error joins an [*Error] with
// [ErrNotInvalidated] for each key that may not have been deleted: a Get may return its stored
// value until the TTL ends. It is [ErrClosed] if the Loader is closed.
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
				errs[i] = &Error{Op: "delete", Key: key, Err: fmt.Errorf("%w: %w", ErrNotInvalidated, err)}
			}
			return nil
		})
	}
	_ = all.Wait() // the errors are in errs
	return errors.Join(errs...)
}

// deletesAtOnce is how many scripts of one Delete are in flight: they share round trips.
const deletesAtOnce = 256

// A keyed is a caller's key with its names in Redis.
type keyed struct {
	user  string
	names protocol.Key
}

// enter checks the arguments of a method.
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
	return keyed{user: key, names: l.names.Key(key)}
}

// changed has this process forget what it knows of a key: a caller that comes later joins no
// load that started before, and receives no near entry.
func (l *Loader[V]) changed(k keyed) {
	l.Hub.Invalidate(k.names.Value)
	l.flights.Forget(k.user)
}

// header returns the header of a value, or an absence, that is made now. With ttl, the fetch
// has set how long it is kept. What is not to be kept has Keep 0.
func (l *values[V]) header(k keyed, kind envelope.Kind, ttl time.Duration) envelope.Header {
	h := envelope.Header{Kind: kind, Codec: l.codec.ID(), Digest: k.names.Digest(), Created: l.clock.Now().UnixMilli()}
	h.Fresh, h.Keep = l.rules.Lifetime(kind, ttl)
	return h
}
