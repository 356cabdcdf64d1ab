package fetchonce

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/codec"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/freshness"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A lookup is what a Get finds in the near cache, in Redis or in the Store, before a load.
type lookup[V any] struct {
	state    lookupState
	result   Result[V]          // for fresh, early, stale and fallback
	header   envelope.Header    // for the same states, unless the value is the Store's
	replaces *protocol.PassOver // the stored value that ACQUIRE passes over, if there is one
	cause    error              // of unavailable
}

// A lookupState says what a lookup found.
type lookupState int

const (
	missing     lookupState = iota // nothing
	skipped                        // no lookup was made: ACQUIRE is the lookup; see skipsLookup
	unusable                       // a stored value that cannot be returned: ACQUIRE passes over it
	unavailable                    // Redis does not answer
	fresh                          // a value, or a remembered absence: then the error is ErrNotFound
	early                          // a fresh value, which this caller refreshes; see EarlyRefresh
	stale                          // a value to return while it is refreshed; see StaleWhileRevalidate
	fallback                       // a value to return if the fetch fails; see StaleIfError
)

// answers reports whether the lookup answers a Get: with a fresh, early or stale value, or a
// remembered absence.
func (s *lookup[V]) answers() bool { return s.state == fresh || s.refreshes() }

// refreshes reports whether the value is returned and fetched again in the background.
func (s *lookup[V]) refreshes() bool { return s.state == early || s.state == stale }

// hasOld reports whether the lookup has a value that a caller may receive: during the fetch of a
// new one (early, stale), or if that fetch fails (fallback).
func (s *lookup[V]) hasOld() bool { return s.refreshes() || s.state == fallback }

// staleFor returns for how long the value has been stale.
func (s *lookup[V]) staleFor() time.Duration { return max(s.result.Age-s.header.Fresh, 0) }

// lookup reads the value of a key without a lease: from Redis or, with TTL off, from the Store.
// The error is ctx.Err(), [ErrClosed], the Store's, [ErrNotFound] for a remembered absence or,
// under FailClosed, an [*Error]. Under FailOpen an unavailable Redis is a state, and no error.
func (l *Loader[V]) lookup(ctx context.Context, k cacheKey) (lookup[V], error) {
	if l.opt.TTL == 0 {
		return l.lookupStore(ctx, k)
	}
	ticket := l.nearTicket(k)
	if ticket.Node() != nil {
		return l.lookupAtNode(ctx, k, ticket)
	}
	b, err := l.redis.Get(ctx, k.names, l.readLimit())
	return l.fromReply(ctx, k, ticket, b, err)
}

// lookupAtNode is lookup at the node of a ticket. It is a function of its own to keep the frame of
// lookup small: each caller that waits for Redis has one on its stack.
func (l *Loader[V]) lookupAtNode(ctx context.Context, k cacheKey, ticket near.Ticket) (lookup[V], error) {
	got := l.redis.GetMany(ctx, l.link.At(ticket.Node()), []protocol.Key{k.names}, l.readLimit())[0]
	return l.fromNodeReply(ctx, k, ticket, got)
}

// fromNodeReply is fromReply for a reply of one node of a cluster. A value that another node
// returned after a redirection does not enter the near cache.
func (l *Loader[V]) fromNodeReply(ctx context.Context, k cacheKey, ticket near.Ticket, got protocol.Got) (lookup[V], error) {
	if got.Resent {
		ticket = near.Ticket{}
	}
	return l.fromReply(ctx, k, ticket, got.Value, got.Err)
}

// readLimit is the size of the largest segment that this Loader stores.
func (l *Loader[V]) readLimit() int { return l.opt.MaxBytes + envelope.Size }

// fromReply returns the lookup for a reply of Redis. With a ticket, a fresh value enters the
// near cache.
func (l *Loader[V]) fromReply(ctx context.Context, k cacheKey, ticket near.Ticket, b []byte, err error) (lookup[V], error) {
	switch {
	case errors.Is(err, protocol.ErrType):
		return l.unusable(protocol.Value{}, err), nil
	case err != nil && ctx.Err() != nil:
		return lookup[V]{}, ctx.Err()
	case errors.Is(err, ErrClosed):
		return lookup[V]{}, ErrClosed
	case err != nil:
		return lookup[V]{state: unavailable, cause: err}, l.onRedisDown(k, "read", err)
	case b == nil:
		return lookup[V]{}, nil
	}
	v := k.names.Split(b, l.readLimit())
	if v.Cut {
		return l.readRest(ctx, k, v)
	}
	return l.fromValue(ticket, k, v)
}

// readRest is fromReply for a value whose first bytes are a large segment of another schema. The rest
// may come from another node, so it does not enter the near cache.
func (l *Loader[V]) readRest(ctx context.Context, k cacheKey, v protocol.Value) (lookup[V], error) {
	v, err := l.redis.ReadRest(ctx, k.names, v, l.readLimit())
	if err != nil {
		return l.fromReply(ctx, k, near.Ticket{}, nil, err)
	}
	return l.fromValue(near.Ticket{}, k, v)
}

func (l *Loader[V]) lookupStore(ctx context.Context, k cacheKey) (lookup[V], error) {
	v, err := l.opt.Store.Lookup(ctx, k.user)
	switch {
	case errors.Is(err, ErrNotFound):
		return lookup[V]{}, nil
	case err != nil:
		return lookup[V]{}, err
	}
	return lookup[V]{state: fresh, result: Result[V]{Value: v, Source: SourceStore}}, nil
}

// onRedisDown returns the error of a call that cannot use Redis, under FailClosed. Under FailOpen
// it logs the error and returns nil: the call continues without Redis.
func (l *Loader[V]) onRedisDown(k cacheKey, op string, err error) error {
	if l.opt.OnRedisDown == FailClosed {
		return &Error{Op: op, Key: k.user, Err: err}
	}
	if client.IsAnswer(err) && !client.IsUnavailable(err) {
		l.log.Warn(logRefused, err)
	} else {
		l.log.Warn(logUnavailable, err)
	}
	return nil
}

// clockSlack is how far a value's age may exceed its lifetime. Redis removes a value at its end. If
// one is older, another program copied it, or this clock is wrong: ACQUIRE compares it with the
// server's clock, see [protocol.PassOver].
const clockSlack = time.Minute

// fromValue decodes a stored value and judges its age. With a ticket, a fresh value enters the
// near cache.
func (l *Loader[V]) fromValue(t near.Ticket, k cacheKey, v protocol.Value) (lookup[V], error) {
	seen, err := l.decode(k, v, SourceRedis)
	if !seen.answers() {
		return seen, err
	}
	slack := clockSlack
	if !v.Alone {
		slack = 0 // another schema's segment keeps the value in Redis
	}
	age := seen.result.Age
	if err != nil { // an absence has none
		age = l.clock.Age(seen.header)
	}
	if h := seen.header; h.Created < 0 || age-h.Keep > slack {
		over := passOver(v)
		if h.Created >= 0 {
			over.Ended = h.Created + h.Keep.Milliseconds()
		}
		return lookup[V]{state: unusable, replaces: over}, nil
	}
	if err == nil {
		l.setState(&seen, v)
	}
	l.keepNear(t, k, &seen, v)
	return seen, err
}

// decode decodes a value from Redis or from a notification. A value that is damaged is unusable. A
// value without a segment of this schema is missing, and ACQUIRE passes over it.
func (l *Loader[V]) decode(k cacheKey, v protocol.Value, source Source) (lookup[V], error) {
	switch {
	case v.Own == nil:
		return lookup[V]{replaces: passOver(v)}, nil
	case len(v.Own) > l.readLimit():
		return l.unusable(v, codec.ErrTooLarge), nil
	}
	e, err := envelope.Open(v.Own, k.names.Digest())
	seen := lookup[V]{state: fresh, header: e.Header, result: Result[V]{Source: source}}
	switch {
	case err != nil:
		return l.unusable(v, err), nil
	case e.Kind == envelope.NotFound:
		return seen, ErrNotFound
	case e.Codec != l.codec.ID():
		return l.unusable(v, errCodec), nil
	}
	value := new(V) // not a pointer into seen: that would allocate all of seen, for an absence too
	if err := l.codec.Decode(k.user, e.Payload, value); err != nil {
		return l.unusable(v, codec.WhyUnread(err)), nil
	}
	seen.result.Value, seen.result.Age = *value, l.clock.Age(e.Header)
	return seen, nil
}

// rules returns the options that decide on freshness. The receiver has its defaults.
func (o Options[V]) rules() freshness.Rules {
	return freshness.Rules{
		TTL: o.TTL, NotFoundTTL: o.NotFoundTTL, Jitter: o.Jitter,
		StaleWhileRevalidate: o.StaleWhileRevalidate, StaleIfError: o.StaleIfError, EarlyRefresh: o.EarlyRefresh,
	}
}

// setState sets the state of a value by its age; see internal/freshness. What a caller receives is
// decided by [caller.answer] and [caller.orFallback].
func (l *Loader[V]) setState(seen *lookup[V], v protocol.Value) {
	switch l.rules.Judge(seen.header, seen.result.Age) {
	case freshness.Fresh:
		return
	case freshness.Early:
		seen.state = early
	case freshness.Stale:
		seen.state, seen.result.Stale = stale, true
	case freshness.Fallback:
		seen.state, seen.result.Stale = fallback, true
	case freshness.Expired:
		*seen = lookup[V]{state: unusable, replaces: passOver(v)}
		return
	}
	seen.replaces = passOver(v)
	seen.replaces.Stale = true
}

// unusable logs that a stored value cannot be used.
func (l *Loader[V]) unusable(v protocol.Value, why error) lookup[V] {
	l.log.Warn(logUnusable, why)
	return lookup[V]{state: unusable, replaces: passOver(v)}
}

// passOver identifies the stored value that an ACQUIRE passes over, by its first bytes.
func passOver(v protocol.Value) *protocol.PassOver {
	return &protocol.PassOver{Head: slices.Clone(v.Head), Others: !v.Alone}
}

// lookupOrSkip is the lookup of a caller that loads what is missing. Without a near entry it
// skips the lookup if the key is most likely absent. Under FailClosed it returns the last good near
// entry if Redis is unavailable; see [Near.FailSafe].
func (l *Loader[V]) lookupOrSkip(ctx context.Context, k cacheKey, hit nearLookup[V]) (lookup[V], error) {
	switch {
	case hit.entry != nil:
		return l.lookupNear(hit)
	case l.opt.TTL > 0 && l.skipsLookup():
		return lookup[V]{state: skipped}, nil
	}
	seen, err := l.lookup(ctx, k)
	l.learn(&seen)
	if err != nil && seen.state == unavailable {
		if r, ok := l.lastGood(k); ok {
			return lookup[V]{state: fresh, result: r}, nil
		}
	}
	return seen, err
}

// skipsLookup reports whether a Get sends ACQUIRE without a lookup. It does not with MaxFetches,
// because ACQUIRE then waits for a permit. It does not with a near cache over a cluster, because
// only a read of the key's own node can make an entry.
func (l *Loader[V]) skipsLookup() bool {
	return l.missRate.Absent() && l.permits == nil && (l.near == nil || !l.client.Cluster)
}

// learn counts a lookup for the miss prediction. A miss is counted by the load, once for all its
// callers: see learnMiss.
func (l *Loader[V]) learn(seen *lookup[V]) {
	switch seen.state {
	case unavailable:
		l.missRate.Reset()
	case missing:
	default:
		l.missRate.Hit()
	}
}

// A nearEntry is a value in the near cache.
type nearEntry[V any] struct {
	value    V
	absent   bool // a remembered ErrNotFound
	stale    bool // its TTL has ended: returned only during a backoff
	plain    bool // returned as it is: no Clone, no Trace, no early refresh
	header   envelope.Header
	replaces *protocol.PassOver // for an early refresh, and if it is stale
}

func (l *Loader[V]) openNear() {
	if l.opt.Near == (Near{}) {
		return
	}
	l.near = near.New[nearEntry[V]](l.client.Hub, near.Config{
		Values: l.names.Values(), Changes: l.names.Changes(), Entries: l.opt.Near.Entries, FailSafe: l.opt.Near.FailSafe,
		Report: l.reportNear, Dropped: l.trace.nearDropped(),
	})
}

func (l *Loader[V]) reportNear(refused bool, why error) {
	switch {
	case refused:
		l.log.Once(logUntracked, why)
	case why == nil:
		l.log.Over(logNearBack, logNoNear)
	default:
		l.log.Warn(logNoNear, why)
	}
}

// A nearLookup is what a lookup in the near cache found.
type nearLookup[V any] struct {
	entry   *nearEntry[V] // nil for a miss
	refresh bool          // this caller refreshes the value early
}

// nearGet looks a key up in the near cache. It is a miss if the call fails: the context is nil or
// has ended, or the Loader is closed.
func (l *Loader[V]) nearGet(ctx context.Context, key string) nearLookup[V] {
	if l.near == nil || ctx == nil || l.closed.Load() || ctx.Err() != nil {
		return nearLookup[V]{}
	}
	c, ok := l.near.Get(protocol.Handle(key))
	if !ok || c.stale && (!l.backoffs.Active(key) || l.clock.Age(c.header)-c.header.Fresh >= l.opt.StaleIfError) {
		return nearLookup[V]{}
	}
	return nearLookup[V]{c, !c.stale && l.opt.EarlyRefresh > 0 && !c.absent && l.rules.IsEarly(c.header, l.clock.Age(c.header))}
}

// nearValue returns the value of a near entry to a caller of Get.
func (l *Loader[V]) nearValue(c *nearEntry[V]) (v V, err error) {
	switch {
	case c.absent:
		return v, ErrNotFound
	case l.opt.Clone != nil:
		return l.opt.Clone(c.value), nil
	}
	return c.value, nil
}

// lookupNear returns the lookup for a near entry.
func (l *Loader[V]) lookupNear(hit nearLookup[V]) (lookup[V], error) {
	c := hit.entry
	v, err := l.nearValue(c)
	seen := lookup[V]{state: fresh, header: c.header, result: Result[V]{Source: SourceNear}}
	if err == nil {
		seen.result.Value, seen.result.Age = v, l.clock.Age(c.header)
	}
	switch {
	case hit.refresh:
		seen.state, seen.replaces = early, c.replaces
	case c.stale:
		seen.state, seen.replaces, seen.result.Stale = fallback, c.replaces, true
	}
	return seen, err
}

// lastGood returns the near entry of a key for [Near.FailSafe], if there is one.
func (l *Loader[V]) lastGood(k cacheKey) (r Result[V], ok bool) {
	if l.near == nil {
		return r, false
	}
	c, ok := l.near.LastGood(protocol.Handle(k.user))
	if !ok || c.absent {
		return r, false
	}
	v, _ := l.nearValue(c)
	return Result[V]{Value: v, Source: SourceNear, Age: l.clock.Age(c.header), Stale: true}, true
}

// nearTicket is called before a read. With its ticket, the value that is read may enter the near
// cache.
func (l *Loader[V]) nearTicket(k cacheKey) near.Ticket {
	if l.near == nil {
		return near.Ticket{}
	}
	return l.near.NewTicket(protocol.Handle(k.user), k.names.Value)
}

// keepNear puts a value into the near cache. With StaleIfError it also keeps a stale value, so that
// callers do not read it from Redis each time while the origin is down.
func (l *Loader[V]) keepNear(t near.Ticket, k cacheKey, seen *lookup[V], v protocol.Value) {
	isStale := seen.state == fallback || seen.state == stale && l.opt.StaleIfError > 0
	if t == (near.Ticket{}) || seen.state != fresh && !isStale {
		return
	}
	h := seen.header
	c := nearEntry[V]{value: seen.result.Value, absent: h.Kind == envelope.NotFound, stale: isStale, header: h}
	c.plain = !c.absent && !c.stale && l.opt.Clone == nil && l.opt.EarlyRefresh <= 0 && l.trace.Got == nil
	lasts := h.Fresh
	switch {
	case c.stale:
		c.replaces, lasts = seen.replaces, h.Keep
	case l.opt.EarlyRefresh > 0:
		c.replaces = passOver(v)
		c.replaces.Stale = true
	}
	if l.opt.Clone != nil && !c.absent {
		seen.result.Value = l.opt.Clone(c.value) // first: a value that Clone panics on is not kept
	}
	l.near.Put(t, protocol.Handle(k.user), c, min(l.opt.Near.TTL, lasts-l.clock.Age(h)))
}

// A Store is the durable place of a Loader's values, usually a table. Package oncesql has one over
// [database/sql]. Before each fetch, a Loader looks the key up in it. After the fetch, it creates
// the value in it. It does both under the lease, or without one if Redis is unavailable. If
// [Options.TTL] is off, each Get also begins with a Lookup.
//
// A Store may also have this method, which looks up many keys at once:
//
//	LookupMany(ctx context.Context, keys []string) (map[string]V, error)
//
// Keys without a value are not in the map. [Loader.GetMany] uses the method if the Store has it. If
// LookupMany knows which keys failed, it returns a [*ManyError] and the values of the other keys.
// After any other error, GetMany looks up halves of the keys until it finds the one that fails. It
// does not if ctx has ended, the error is a [net.Error] or [io.EOF], or many lookups have failed.
//
// The methods are called by many goroutines at once, and must return soon after their ctx ends. The
// ctx of a Lookup under the lease ends like that of the fetch. The ctx of a Create ends when
// [Options.FetchTimeout] passes or the Loader is closed. The Loader does not wait longer for a
// method that hangs.
type Store[V any] interface {
	// Lookup returns the value of key. If there is none, the error is [ErrNotFound], bare or
	// wrapped.
	Lookup(ctx context.Context, key string) (V, error)

	// Create keeps v for key unless key has a value, and returns the value that is kept. It must be
	// safe when several processes create a key at once, because a lease may be lost; a unique key
	// makes a table safe.
	//
	// Create continues if all callers have left, or if a Delete or an Update has ended its lease, so
	// a successful fetch is not repeated.
	Create(ctx context.Context, key string, v V) (V, error)
}

// manyStore is a Store that can look up many keys at once.
type manyStore[V any] interface {
	LookupMany(ctx context.Context, keys []string) (map[string]V, error)
}
