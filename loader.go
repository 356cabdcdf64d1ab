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

// A Loader loads values of one type. It loads a key once for all callers that request it at the
// same time, in all processes that share a Redis. [New] returns a Loader. It is safe for concurrent
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
	client          *client.Client
	link            *batch.Link
	redis           *protocol.Client
	names           *protocol.Namespace
	channel         string // of the notifications for this process
	unsubscribe     func()
	stopOnRecovered func() // ends the calls when Redis is back
}

// A Result is a value and its origin.
type Result[V any] struct {
	Value  V
	Source Source
	Age    time.Duration // since the fetch, by the estimated clock of the server; 0 if unknown
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

	// Fence is the fencing token of the lease. It rises with every lease of the key. A database that
	// checks it can refuse a process that was stopped for longer than its lease: docs/fence.md has
	// the statements. It is 0 if there is no lease because Redis is unavailable. It comes from the
	// server's clock: if that is set back, a fence may be lower than that of an earlier lease.
	Fence int64

	// Old is the stored value that this fetch replaces: a stale one, or a fresh one that is refreshed
	// early. It is nil if there is none. If the origin has not changed, the fetch may return
	// Old.Value. Treat it as read-only.
	Old *Result[V]

	// TTL may be set by the fetch. It is how long the value, or its absence, is fresh, and replaces
	// [Options.TTL] or [Options.NotFoundTTL]. If it is negative, below a millisecond or above 100
	// years, the value is not kept, and only the waiting callers receive it.
	TTL time.Duration
}

// New returns a Loader over a Redis client, which the caller configures and closes. It sends no
// command. The error is an [*Error] that names the invalid option, or says why the client or V is
// not accepted.
//
// New accepts a client of one server, of Sentinels or of a cluster, and a struct that wraps one. It
// refuses nil, a Ring, a client that reads from replicas, and a client with go-redis'
// ClientSideCache or ClientSideCacheConfig. Do not set ReplicaOnly for Sentinels: such a client
// reads from replicas, and New cannot detect it.
//
// New also refuses a V that [Msgpack] or [JSON] cannot encode: a channel, a function, a complex
// number, or a struct without an exported field. The error has the path, as in `Order.Items[].Done:
// chan struct {}`. New logs once what the codec does not keep completely: unexported fields beside
// exported ones, and interfaces, which are decoded as other types. It does not check a codec of
// your own.
//
// Over a *redis.ClusterClient, the clients of its nodes send the commands, so a node that hangs
// delays only its own keys. Hooks of the ClusterClient do not run for these commands: add hooks to
// the nodes' clients, in OnNewNode.
//
// Set the client's timeouts. A caller gives up after [Options.RedisTimeout], but its connection stays
// busy for as long as the client waits: by default 5 seconds and several retries. With
// ContextTimeoutEnabled, a lone command is sent on its caller's goroutine, which makes a hit faster.
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
		l.log.Note(logLossyCodec, "codec", codec.Name(opt.Codec), "lost", shape.List(form.Lost))
	}
	return l, nil
}

func newLoader[V any](c *client.Client, opt Options[V], readBack bool) *Loader[V] {
	l := &Loader[V]{
		values: values[V]{opt: opt, codec: codec.New[V](opt.Codec, opt.MaxBytes, readBack), rules: opt.rules()},
		shared: shared{client: c, names: protocol.NewNamespace(opt.Prefix, opt.Schema)},
		log:    ratelog.New(opt.Logger, "prefix", opt.Prefix, "type", reflect.TypeFor[V]().String(), "instance", cmp.Or(opt.Instance, instance())),
	}
	l.trace = newTracer(opt.Trace, l.log)
	l.channel = l.names.Channel(l.client.Mailbox.Process())
	l.unsubscribe = l.client.Mailbox.Use(l.channel)
	l.stopOnRecovered = l.client.Router.OnRecovered(func() { l.log.Over(logBack, logUnavailable) })
	l.link = l.client.Router.Link(opt.RedisBreaker, opt.RedisTimeout)
	l.redis = protocol.NewClient(l.link, l.names, l.client.Mailbox.Process(), opt.RedisTimeout, l.client.Cluster)
	l.redis.Renewals = l.client.Router.Link(0, 0)
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
// released, and their callers receive ErrClosed. The context of a Create of the [Store] ends too, so
// Close does not wait for a row. Close returns when all loads have ended. A fetch that ignores its
// context continues by itself.
//
// If Redis does not answer, Close takes at most RedisTimeout. Commands that are still in the client
// then end with the client's timeouts. A second Close does nothing.
func (l *Loader[V]) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	ends := time.Now().Add(l.opt.RedisTimeout)
	l.flights.Close(ErrClosed)
	l.cleanup.Close(time.Until(ends))
	l.unsubscribe()
	l.stopOnRecovered()
	if l.near != nil {
		l.near.Close()
	}
	l.client.Close(ErrClosed) // after everything that releases leases
	return nil
}

// Get returns the stored value of key, or the result of fetch. If callers in any number of processes
// Get a missing key at once, one of them runs its fetch, and the others wait for the result.
//
// The fetch's context has the values of one caller's ctx. It ends when all callers have left, with
// [ErrLockLost] if the lease is lost, with [ErrFetchTimeout], or with [ErrClosed]; [context.Cause]
// returns the reason. A caller waits until its own ctx ends, and then returns ctx.Err(). If Redis
// does not answer and the client has ContextTimeoutEnabled, one or two callers may notice a
// cancellation only after [Options.RedisTimeout]. With a [Store], a Create that has started
// continues even if all callers leave or the lease is lost.
//
// All waiting callers receive the fetch's result. Its error is returned unchanged in this process.
// In other processes it is an [*Error] with the same text, in which [errors.Is] finds the sentinels
// of [Options.Errors]. [ErrNotFound] is remembered. Other errors are not, unless [Options.ErrorTTL]
// is set. If the fetch panics, Get panics with a [*PanicError] in every caller of this process that
// waited for it.
//
// If Redis is unavailable, [Options.OnRedisDown] decides: Get fetches without a lease, or returns an
// [*Error]. A fetched value is returned even if it cannot be stored. A fetch that calls Get for its
// own key with its own context receives an *Error, because it would wait for itself.
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

// Load is [Loader.Get] whose fetch receives a [Fetch], and which returns a [Result].
func (l *Loader[V]) Load(ctx context.Context, key string, fetch func(ctx context.Context, f *Fetch[V]) (V, error)) (Result[V], error) {
	hit := l.nearGet(ctx, key)
	b, err := l.begin(ctx, "load", key, hit, fetch == nil)
	if b.caller == nil {
		if hit.entry != nil && err == nil {
			b.result.Age = l.clock.Age(hit.entry.header)
		}
		return b.result, err
	}
	b.caller.fetch = fetch
	return b.caller.settledLoad()
}

// A begun is a Get after its lookup: it has a result, or a caller that needs a load.
type begun[V any] struct {
	result Result[V]
	caller *caller[V] // nil if the lookup answers the Get
}

// begin makes the lookup of a Get. It is a function of its own, so that its large frame is not
// on the stack of each caller that waits for a load.
func (l *Loader[V]) begin(ctx context.Context, op, key string, hit nearLookup[V], noFetch bool) (begun[V], error) {
	if hit.entry != nil && !hit.refresh && !hit.entry.stale && !noFetch {
		v, err := l.nearValue(hit.entry) // without its age, which only Load returns: a near hit reads no clock
		l.trace.gotByLookup(ctx, key, true, SourceNear, err)
		return begun[V]{result: Result[V]{Value: v, Source: SourceNear}}, err
	}
	k, err := l.checkArgs(ctx, op, key, noFetch)
	if err != nil {
		return begun[V]{}, err
	}
	came := l.flights.Arrive() // before the lookup: a fetch that starts during the lookup is not older than this call
	seen, err := l.lookupOrSkip(ctx, k, hit)
	if err != nil || seen.state == fresh {
		l.trace.gotByLookup(ctx, key, seen.answers(), seen.result.Source, err)
		return begun[V]{result: seen.result}, err
	}
	return begun[V]{caller: &caller[V]{l: l, ctx: ctx, k: k, came: came, seen: seen}}, nil
}

// Peek returns the stored value, fresh or stale, and never fetches. It looks the key up in the near
// cache and then in Redis, or in the Store if [Options.TTL] is off. The error is [ErrNotFound] if
// there is no usable value, an [*Error] if Redis does not answer, whatever [Options.OnRedisDown] is,
// or ctx.Err().
func (l *Loader[V]) Peek(ctx context.Context, key string) (Result[V], error) {
	k, err := l.checkArgs(ctx, "peek", key, false)
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
	case !seen.answers() && seen.state != fallback:
		err = ErrNotFound
	}
	return seen.result, err
}

// Set stores a value in Redis for [Options.TTL] and replaces any other. It does not change the
// Store. A running fetch of the key loses its lease, in any process, and its value is not stored.
// Its callers receive v, or the fetched value if the fetch succeeds nevertheless.
//
// After Set has returned nil, a Get that starts later returns v or a newer value. Only a near cache
// of another process may return the old value, until the server's report arrives; see [Near]. After
// an error, v may or may not be stored. v is certainly not stored if it cannot be encoded or read
// back, is larger than [Options.MaxBytes], or TTL is off. The error is an [*Error], or [ErrClosed]
// or ctx.Err() if nothing was sent because the Loader was closed or ctx had ended.
func (l *Loader[V]) Set(ctx context.Context, key string, v V) error {
	k, err := l.checkArgs(ctx, "set", key, false)
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
	if err := l.redis.Set(ctx, k.names, l.client.Mailbox.Owner(), sealed, h.Keep); err != nil {
		return &Error{Op: "set", Key: key, Err: err}
	}
	return nil
}

// Delete ends the stored value of each key, so the next Get loads the key again. It does not change
// the Store: with a Store, that Get returns the row. A running fetch of a key loses its lease, in
// any process: its value is not stored, and no Get that starts after Delete has returned receives
// it. If the Store is creating a row at that moment, the row is created anyway, and a later Get may
// return it.
//
// Deleting a missing key is not an error. If it is not certain that the key was deleted, the error
// is an [*Error] with [ErrNotInvalidated]: a Get may return the stored value until its TTL ends.
// The errors of several keys are joined. If ctx had ended before the call, the error matches
// ctx.Err() and nothing was deleted. A closed Loader returns [ErrClosed].
func (l *Loader[V]) Delete(ctx context.Context, keys ...string) error {
	if l.closed.Load() {
		return ErrClosed
	}
	errs := make([]error, len(keys))
	var all errgroup.Group
	all.SetLimit(deletesAtOnce)
	for i, key := range keys {
		k, err := l.checkArgs(ctx, "delete", key, false)
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

// A cacheKey is a caller's key with its names in Redis.
type cacheKey struct {
	user  string
	names protocol.Key
}

// checkArgs checks the arguments of a method.
func (l *Loader[V]) checkArgs(ctx context.Context, op, key string, noFetch bool) (cacheKey, error) {
	switch {
	case ctx == nil:
		return cacheKey{}, &Error{Op: op, Key: key, Err: errors.New("the context is nil")}
	case noFetch:
		return cacheKey{}, &Error{Op: op, Key: key, Err: errors.New("the fetch is nil")}
	case l.closed.Load():
		return cacheKey{}, ErrClosed
	case ctx.Err() != nil:
		return cacheKey{}, ctx.Err()
	}
	return l.cacheKey(key), nil
}

func (l *Loader[V]) cacheKey(key string) cacheKey {
	return cacheKey{user: key, names: l.names.Key(key)}
}

// changed drops what this process has of a key after a write: its near entry, and the flight that
// later callers would join.
func (l *Loader[V]) changed(k cacheKey) {
	l.client.Hub.Invalidate(k.names.Value)
	l.flights.Forget(k.user)
}

// header returns the header of a value, or an absence, that was fetched now. A ttl other than 0 is
// [Fetch.TTL]. Keep is 0 if the value is not to be stored.
func (v *values[V]) header(k cacheKey, kind envelope.Kind, ttl time.Duration) envelope.Header {
	h := envelope.Header{Kind: kind, Codec: v.codec.ID(), Digest: k.names.Digest(), Created: v.clock.Now().UnixMilli()}
	h.Fresh, h.Keep = v.rules.Lifetime(kind, ttl)
	return h
}
