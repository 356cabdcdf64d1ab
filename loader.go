package fetchonce

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/budget"
	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// A Loader loads values of one kind, each once for all who ask for it at the
// same time, in all processes that share a Redis. It is made by [New], is used
// by many goroutines at once, and must be closed.
type Loader[V any] struct {
	opt     Options[V] // with the defaults; what is off is zero
	codec   byte
	unsure  bool           // the codec may refuse to read what it wrote for a V
	memory  *budget.Budget // of a decoded value; nil if the codec is the user's
	redis   *protocol.Client
	names   *protocol.Namespace
	router  *batch.Router
	cluster bool
	mailbox *wake.Mailbox
	channel string // on which the others tell us
	unused  func() // ends that
	flights flight.Group[Result[V]]
	hub     *near.Hub              // for all loaders of the client: what one changes, others have copies of
	near    *near.Cache[nearby[V]] // nil if it is off
	permits *permits               // of MaxFetches; nil without that limit
	ahead   atomic.Int64           // by how many ns the server's clock is ahead of ours
	notices notices
	trace   tracer
	pauses  pauses
	luck    luck

	closed  atomic.Bool
	cleanup cleanup.List // of leases and marks that may have been left in Redis
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
	opt = opt.withDefaults()
	l := &Loader[V]{
		opt:     opt,
		codec:   codecID(opt.Codec),
		unsure:  needsReadBack[V](opt.Codec),
		memory:  memoryOf[V](opt.Codec, opt.MaxBytes),
		names:   protocol.NewNamespace(opt.Prefix, opt.Schema),
		cluster: cluster,
		mailbox: wake.Open(rdb),
		notices: notices{logger: opt.Logger},
	}
	l.trace = newTracer(opt.Trace, &l.notices)
	l.channel = l.names.Channel(l.mailbox.Process())
	l.unused = l.mailbox.Use(l.channel)
	l.router = batch.NewRouter(rdb)
	l.redis = protocol.NewClient(l.router, l.names, l.mailbox.Process(), opt.RedisTimeout, l.cluster)
	l.redis.Failed = l.trace.redisFailed()
	l.redis.Unnotified = l.notices.unnotified
	l.redis.ErrorTTL, l.redis.Backoff = opt.ErrorTTL, longestPause*5/4
	if opt.MaxFetches > 0 {
		l.permits = newPermits(opt.MaxFetches, opt.FetchTimeout)
	}
	l.hub = near.Open(rdb, l.mailbox.Process())
	l.openNear()
	l.cleanup.IsFinal = protocol.IsFinal
	return l, nil
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
	l.unused()
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
	c, early := l.nearCopy(ctx, key)
	if c != nil && c.plain && fetch != nil {
		return c.value, nil // from here, as each function between costs another move of a large V
	}
	return get(ctx, l, key, key, c, early, fetch)
}

// get goes on with a Get that has found no plain copy, with a fetch that may be
// given something else than the key.
func get[A, V any](ctx context.Context, l *Loader[V], key string, arg A, c *nearby[V], early bool, fetch func(ctx context.Context, arg A) (V, error)) (V, error) {
	if c != nil && !early && fetch != nil {
		v, err := l.handOut(c)
		l.trace.looked(ctx, key, true, SourceNear, err)
		return v, err
	}
	k, err := l.enter(ctx, "get", key, fetch == nil)
	if err != nil {
		var zero V
		return zero, err
	}
	came := l.flights.Arrive() // before the lookup: a fetch that begins during it is new enough
	seen, err := l.lookLucky(ctx, k, c, early)
	if err != nil || seen.found && !seen.refresh {
		l.trace.looked(ctx, key, seen.found, seen.result.Source, err)
		return seen.result.Value, err
	}
	// Made only now: a hit needs no closure.
	r, err := l.load(ctx, k, came, seen, func(ctx context.Context, _ *Fetch[V]) (V, error) { return fetch(ctx, arg) })
	return r.Value, err
}

// Load is like [Loader.Get] with more to say: to the fetch, and of the result.
func (l *Loader[V]) Load(ctx context.Context, key string, fetch func(ctx context.Context, f *Fetch[V]) (V, error)) (Result[V], error) {
	k, err := l.enter(ctx, "load", key, fetch == nil)
	if err != nil {
		return Result[V]{}, err
	}
	came := l.flights.Arrive() // before the lookup: a fetch that begins during it is new enough
	c, early := l.nearCopy(ctx, key)
	seen, err := l.lookLucky(ctx, k, c, early)
	if err != nil || seen.found && !seen.refresh {
		l.trace.looked(ctx, key, seen.found, seen.result.Source, err)
		return seen.result, err
	}
	return l.load(ctx, k, came, seen, fetch)
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
	c, _ := l.nearCopy(ctx, key)
	seen, err := l.lookNear(ctx, k, c, false)
	switch {
	case err != nil:
	case seen.down != nil:
		err = &Error{Op: "read", Key: key, Err: seen.down}
	case !seen.found && !seen.spare:
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

// A look is what was seen at the place of a key's value.
type look[V any] struct {
	found    bool // a value, or that there is none: then the error is ErrNotFound
	refresh  bool // it is to be fetched anew, by somebody for whom nobody waits
	spare    bool // not found, but an old value is there for when nothing better is
	result   Result[V]
	staleFor time.Duration
	over     *protocol.PassOver // not nil if what is there is to be replaced
	down     error              // why nothing could be seen
	skipped  bool               // it was not looked at all
}

// nothing reports whether it is known that there is nothing, not even to be
// replaced.
func (s *look[V]) nothing() bool { return !s.found && s.over == nil && s.down == nil && !s.skipped }

// look looks where values are kept, without a lease. Its error is the caller's
// own end, the Store's, that there is no value, or, under FailClosed, that Redis
// is down.
func (l *Loader[V]) look(ctx context.Context, k keyed) (look[V], error) {
	if l.opt.TTL == 0 {
		return l.lookInStore(ctx, k)
	}
	ticket := l.ask(k)
	if node := ticket.Node(); node != nil {
		got := l.redis.GetMany(ctx, l.router.At(node), []protocol.Key{k.names}, l.readLimit())[0]
		return l.seeGot(ctx, k, ticket, got)
	}
	b, err := l.redis.Get(ctx, k.names, l.readLimit())
	return l.see(ctx, k, ticket, b, err)
}

// seeGot is see for what was to be read from one node of a cluster: no copy is kept
// of what another one has.
func (l *Loader[V]) seeGot(ctx context.Context, k keyed, ticket near.Ticket, got protocol.Got) (look[V], error) {
	if got.Again {
		ticket = near.Ticket{}
	}
	return l.see(ctx, k, ticket, got.Value, got.Err)
}

// readLimit is the size of the largest value of ours.
func (l *Loader[V]) readLimit() int { return l.opt.MaxBytes + envelope.Size }

// see judges what was read, and keeps a copy if the ticket allows it.
func (l *Loader[V]) see(ctx context.Context, k keyed, ticket near.Ticket, b []byte, err error) (look[V], error) {
	switch {
	case errors.Is(err, protocol.ErrType):
		return l.unusable(nil, err), nil
	case err != nil && ctx.Err() != nil:
		return look[V]{}, ctx.Err()
	case errors.Is(err, ErrClosed):
		return look[V]{}, ErrClosed
	case err != nil:
		return look[V]{down: err}, l.refuse(k, "read", err)
	case b == nil:
		return look[V]{}, nil
	}
	return l.openAndKeep(ticket, k, b)
}

// changed has this process forget what it knows of a key: who comes now joins no
// load that began before, and is given no copy.
func (l *Loader[V]) changed(k keyed) {
	l.hub.Changed(k.names.Value)
	l.flights.Forget(k.user)
}

func (l *Loader[V]) lookInStore(ctx context.Context, k keyed) (look[V], error) {
	v, err := l.opt.Store.Lookup(ctx, k.user)
	switch {
	case errors.Is(err, ErrNotFound):
		return look[V]{}, nil
	case err != nil:
		return look[V]{}, err
	}
	return look[V]{found: true, result: Result[V]{Value: v, Source: SourceStore}}, nil
}

// refuse returns the error for a Redis that does not answer, or answers with an error,
// if the policy is to refuse.
func (l *Loader[V]) refuse(k keyed, op string, err error) error {
	if l.opt.OnRedisDown == FailClosed {
		return &Error{Op: op, Key: k.user, Err: err}
	}
	if _, answered := errors.AsType[redis.Error](err); answered {
		l.notices.warn(noticeRefused, err)
	} else {
		l.notices.warn(noticeDown, err)
	}
	return nil
}

// load returns what this process's load of a key comes to, or an old value.
func (l *Loader[V]) load(ctx context.Context, k keyed, came flight.Arrival, seen look[V], fetch func(ctx context.Context, f *Fetch[V]) (V, error)) (Result[V], error) {
	m := l.trace.missed()
	r, loaded, err := l.joinLoad(ctx, k, came, seen, fetch, &m)
	l.trace.answered(ctx, k.user, m, r.Source, r.Stale, outcome(k.user, err))
	if loaded {
		return l.settle(k, r, err)
	}
	return r, err
}

// joinLoad joins this process's load of a key, or starts it, until there is a
// result that is not older than the call. With an old value at hand, that may be
// the result too: then it is not loaded.
func (l *Loader[V]) joinLoad(ctx context.Context, k keyed, came flight.Arrival, seen look[V], fetch func(ctx context.Context, f *Fetch[V]) (V, error), m *miss) (r Result[V], loaded bool, err error) {
	if ctx.Value(fetching{l, k.user}) != nil {
		if seen.skipped {
			if seen, err = l.look(ctx, k); err != nil || seen.found {
				m.old()
				return seen.result, false, err
			}
		}
		return Result[V]{}, false, reentrant(k.user)
	}
	if seen.skipped {
		if seen, r, loaded, err = l.joinUnseen(ctx, k, came, fetch, m); loaded || err != nil || seen.found && !seen.refresh {
			return r, loaded, err
		}
	}
	for round := 1; ; round++ {
		load := l.loading(k, seen, fetch, nil)
		switch {
		case (seen.refresh || seen.spare) && l.pauses.active(k.user):
			m.old()
			return seen.result, false, nil
		case seen.refresh:
			_, _ = l.flights.Join(ctx, k.user, came, load) // and never leave
			m.old()
			return seen.result, false, nil
		}
		r, late, err := l.join(ctx, k, came, seen, load, m)
		if saw, ok := errors.AsType[*sawError[V]](err); ok {
			// It was begun by somebody who had not looked, and there is something.
			if seen, err = l.own(saw, m), saw.err; err != nil || seen.found && !seen.refresh {
				return seen.result, false, err
			}
			continue
		}
		if _, paused := errors.AsType[*pausedError](err); late || paused && !seen.spare {
			// We joined a load too late for what it found: that may be older than
			// we are. The value may be stored by now; else join the next load,
			// which begins after we came. The same after a pause that is for those
			// alone who have an old value; there, at some time we start our own.
			seen, err = l.look(ctx, k)
			if err != nil || seen.found && !seen.refresh {
				return seen.result, false, err
			}
			if paused && round >= patientRounds {
				l.flights.Forget(k.user)
			}
			continue
		}
		if seen.spare && ctx.Err() == nil && isFailure(err) {
			return seen.result, false, nil
		}
		return r, true, err
	}
}

func reentrant(key string) error {
	return &Error{Op: "get", Key: key, Err: errors.New("called by the fetch of the same key, which would wait for itself")}
}

// loading returns what a flight runs. It fetches by itself, or as a part of a
// batch.
func (l *Loader[V]) loading(k keyed, seen look[V], fetch func(ctx context.Context, f *Fetch[V]) (V, error), part *part[V]) func(context.Context, *flight.Call[Result[V]]) (Result[V], error) {
	return func(ctx context.Context, call *flight.Call[Result[V]]) (Result[V], error) {
		run := &run[V]{Loader: l, k: k, call: call, fetch: fetch, part: part, over: seen.over, behind: seen.refresh, unseen: seen.skipped}
		if seen.skipped || seen.nothing() {
			run.nothingHere()
		}
		if seen.refresh || seen.spare {
			run.old, run.staleFor = &seen.result, seen.staleFor
		}
		defer run.releasePermit()
		defer part.decide()
		if part != nil {
			part.begin(ctx)
			defer part.pause()
		}
		if seen.down != nil {
			return run.blind(ctx)
		}
		return run.ask(ctx)
	}
}

// join waits for the flight: for the SoftTimeout at most, if there is an old
// value. The flight then goes on without us.
func (l *Loader[V]) join(ctx context.Context, k keyed, came flight.Arrival, seen look[V], load func(context.Context, *flight.Call[Result[V]]) (Result[V], error), m *miss) (r Result[V], late bool, err error) {
	defer l.yieldPermit(ctx)()
	if !seen.spare || l.opt.SoftTimeout == 0 {
		return l.wait(ctx, k, came, load, m)
	}
	soft, cancel := context.WithTimeoutCause(ctx, l.opt.SoftTimeout, errSoftTimeout)
	defer cancel()
	ticket, _ := l.flights.Join(ctx, k.user, came, load) // and never leave
	m.joined(ticket.Started)
	return l.wait(soft, k, came, load, m)
}

func (l *Loader[V]) wait(ctx context.Context, k keyed, came flight.Arrival, load func(context.Context, *flight.Call[Result[V]]) (Result[V], error), m *miss) (r Result[V], late bool, err error) {
	ticket, err := l.flights.Join(ctx, k.user, came, load)
	if err != nil {
		return r, false, err
	}
	m.joined(ticket.Started)
	return ticket.Wait(ctx)
}

// errSoftTimeout ends the wait of a caller that has an old value.
var errSoftTimeout = errors.New("soft timeout")

// isFailure reports whether an old value is better than the error: not if it says
// that there is no value, or that we are closed, or if the fetch panicked.
func isFailure(err error) bool {
	_, panicked := errors.AsType[*flight.PanicError](err)
	return err != nil && !panicked && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrClosed) && !errors.Is(err, flight.ErrClosed)
}

// patientRounds is how many loads a caller joins before it starts its own.
const patientRounds = 3

// settle turns the outcome of a load into that of one caller.
func (l *Loader[V]) settle(k keyed, r Result[V], err error) (Result[V], error) {
	if err == nil {
		if l.opt.Clone != nil {
			r.Value = l.opt.Clone(r.Value)
		}
		return r, nil
	}
	_, panicked := errors.AsType[*flight.PanicError](err)
	if err = outcome(k.user, err); panicked {
		panic(err)
	}
	return Result[V]{}, err
}

// outcome returns the error of a load, or of a fetch, as people know it.
func outcome(key string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, flight.ErrClosed):
		return ErrClosed
	case errors.Is(err, flight.ErrGoexit):
		return &Error{Op: "fetch", Key: key, Err: err}
	}
	if p, ok := errors.AsType[*flight.PanicError](err); ok {
		return &PanicError{Value: p.Value, Stack: p.Stack}
	}
	return err
}

// jitter takes a random share off a TTL, so that what was stored together does
// not end together.
func (l *Loader[V]) jitter(ttl time.Duration) time.Duration {
	return max(ttl-time.Duration(rand.Float64()*l.opt.Jitter*float64(ttl)), min(ttl, leastTTL))
}

// serverNow estimates the server's clock, which stamps all values.
func (l *Loader[V]) serverNow() time.Time {
	return time.Now().Add(time.Duration(l.ahead.Load()))
}
