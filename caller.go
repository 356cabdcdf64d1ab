package fetchonce

import (
	"context"
	"errors"

	"github.com/fetchonce/fetchonce/internal/batchfetch"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/permit"
)

// A caller is one call of Get or Load, or one key of a GetMany, whose lookup did not answer
// it. It joins a load, or starts one, until there is a result that is not older than the
// call.
type caller[V any] struct {
	l     *Loader[V]
	ctx   context.Context
	k     cacheKey
	came  flight.Arrival // orders the call among the cutoffs of flights
	fetch fetchFunc[V]
	seen  lookup[V]
	trace miss
	late  bool // it began after the cutoff of the flight: the outcome may be too old for it
}

// A fetchFunc is the fetch of a [Loader.Load]. Those of Get and GetMany are wrapped in one.
type fetchFunc[V any] = func(ctx context.Context, f *Fetch[V]) (V, error)

// maxBackoffs limits how often a caller without a stale value loads again because a load ended with
// the failure of a backoff. Then it closes the flight to joiners, so that the next load is its own.
const maxBackoffs = 3

// settledLoad loads the key, and returns what the caller of Get receives.
func (c *caller[V]) settledLoad() (Result[V], error) {
	c.trace = c.l.trace.missed()
	o := c.orLastGood(c.load())
	gotByLoad(c.ctx, &c.l.trace, c.k.user, c.trace, o)
	return c.l.settle(c.k, o)
}

// load returns the caller's outcome: that of a flight, or of its own lookup.
func (c *caller[V]) load() *outcome[V] {
	if c.ctx.Value(fetchKey{c.l, c.k.user}) != nil {
		return c.reentered()
	}
	if c.seen.state == skipped {
		if o, done := c.loadSkipped(); done {
			return o
		}
	}
	for backoffs := 0; ; {
		if o, done := c.answer(nil); done {
			return o
		}
		o := c.wait()
		switch {
		case o.found != nil: // the load was started by a caller that skipped its lookup
			if o, done := c.adopt(o); done {
				return o
			}
		case c.late || o.backoff && c.seen.state != fallback:
			// The result may be older than this call, or the failure of a backoff, which is only
			// for callers with a stale value. The value may be stored by now. If it is not, the
			// next load starts after this call.
			next, done := c.lookupAgain()
			if done {
				return next
			}
			if o.backoff {
				backoffs++
			}
			if backoffs >= maxBackoffs {
				c.l.flights.Forget(c.k.user)
			}
		default:
			return c.orFallback(o)
		}
	}
}

// reentered answers a Get of a key by the fetch of that key, which would wait for itself: with
// the stored value, or an error.
func (c *caller[V]) reentered() *outcome[V] {
	if c.seen.state == skipped {
		o, _ := c.lookupAgain()
		if o.err != nil || c.seen.answers() {
			return o
		}
	}
	return &outcome[V]{err: reentrant(c.k.user)}
}

func reentrant(key string) error {
	return &Error{Op: "get", Key: key, Err: errors.New("called by the fetch of the same key, which would wait for itself")}
}

// own returns the outcome of the caller's own lookup.
func (c *caller[V]) own(err error) *outcome[V] { return &outcome[V]{result: c.seen.result, err: err} }

// ownOld is own for a value that a fetch may also have, as its Old. It clones the value,
// because the caller may change it while the fetch reads it.
func (c *caller[V]) ownOld() *outcome[V] {
	o := c.own(nil)
	if c.l.opt.Clone != nil {
		o.result.Value = c.l.opt.Clone(o.result.Value)
	}
	return o
}

// lookupAgain looks the key up. It is done if that answers the caller.
func (c *caller[V]) lookupAgain() (o *outcome[V], done bool) {
	seen, err := c.l.lookup(c.ctx, c.k)
	c.l.learn(&seen)
	c.seen = seen
	if seen.answers() {
		c.trace.byLookup()
	}
	return c.own(err), err != nil || seen.state == fresh
}

// answer returns the caller's own value without a wait, if it may: an early or stale value, which
// is then refreshed in the background. During a backoff it returns a fallback value, too, and
// nothing is fetched.
//
// These functions return values whose TTL has ended: answer, orFallback, orLastGood, lookupOrSkip
// (for FailSafe) and Peek. The stale entries of nearGet reach callers through answer.
func (c *caller[V]) answer(batch *batchfetch.Load[V]) (o *outcome[V], done bool) {
	switch {
	case c.seen.hasOld() && c.l.backoffs.Active(c.k.user):
		batch.Decide()
	case c.seen.refreshes():
		t, err := c.join(batch) // no Wait follows, so the refresh continues without callers
		if err != nil || !t.Started {
			batch.Decide()
		}
	default:
		return o, false
	}
	c.trace.byLookup()
	return c.ownOld(), true
}

// join joins the flight of the key, or starts it.
func (c *caller[V]) join(batch *batchfetch.Load[V]) (flight.Ticket[*outcome[V]], error) {
	return c.l.flights.Join(c.ctx, c.k.user, c.came, c.newLoad(batch))
}

// wait joins the flight and waits for its outcome. A caller with a fallback value waits for at
// most SoftTimeout. The flight then continues without it.
func (c *caller[V]) wait() *outcome[V] {
	defer permit.Yield(c.ctx, c.l)()
	ctx := c.ctx
	if c.seen.state == fallback && c.l.opt.SoftTimeout > 0 {
		soft, cancel := context.WithTimeout(ctx, c.l.opt.SoftTimeout)
		defer cancel()
		ctx = soft
		t, _ := c.join(nil) // no Wait follows: the flight continues without callers
		c.trace.joined(t.Started)
	}
	t, err := c.join(nil)
	if err != nil {
		return &outcome[V]{err: err, shared: true}
	}
	c.trace.joined(t.Started)
	return c.await(ctx, t)
}

// await waits for the outcome of a flight, or the end of ctx.
func (c *caller[V]) await(ctx context.Context, t flight.Ticket[*outcome[V]]) *outcome[V] {
	a, err := t.Wait(ctx)
	c.late = a.Late
	if a.Late || err != nil {
		return &outcome[V]{err: err, shared: true}
	}
	return a.Value
}

// adopt takes what the ACQUIRE of a load found as the caller's own lookup. It is done if
// that answers the caller.
func (c *caller[V]) adopt(o *outcome[V]) (own *outcome[V], done bool) {
	c.seen = *o.found
	if c.l.opt.Clone != nil && o.err == nil {
		c.seen.result.Value = c.l.opt.Clone(c.seen.result.Value)
	}
	c.trace.byAcquire(c.seen.answers())
	return c.own(o.err), o.err != nil || c.seen.state == fresh
}

// orFallback returns the fallback value in the place of a failure, if there is one.
func (c *caller[V]) orFallback(o *outcome[V]) *outcome[V] {
	if c.seen.state == fallback && c.ctx.Err() == nil && mayFallBack(o.err) {
		return c.ownOld()
	}
	return o
}

// orLastGood returns the last good near entry instead of a failure while Redis is unavailable; see
// [Near.FailSafe].
func (c *caller[V]) orLastGood(o *outcome[V]) *outcome[V] {
	if !mayFallBack(o.err) || !o.unleased && !errors.Is(o.err, ErrUnavailable) {
		return o
	}
	r, ok := c.l.lastGood(c.k)
	if !ok {
		return o
	}
	c.trace.byLookup()
	return &outcome[V]{result: r}
}

// mayFallBack reports whether a caller receives its fallback value instead of the error. It does
// not if the key has no value, the Loader is closed, or the fetch panicked.
func mayFallBack(err error) bool {
	return err != nil && !isPanic(err) && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrClosed) && !errors.Is(err, flight.ErrClosed)
}

// loadSkipped starts a load whose ACQUIRE is the caller's lookup. It is not done if the caller must
// look up or load again.
func (c *caller[V]) loadSkipped() (o *outcome[V], done bool) {
	t, started := c.l.flights.Start(c.ctx, c.k.user, c.came, c.newLoad(nil))
	if !started {
		// The running load may wait for a notification that was lost. A lookup finds the value.
		return c.lookupAgain()
	}
	c.trace.joined(true)
	o = c.await(c.ctx, t) // without a permit to yield: see skipsLookup
	if o.found != nil {
		return c.adopt(o)
	}
	return o, true
}

// settle turns an outcome into what the caller returns.
func (l *Loader[V]) settle(k cacheKey, o *outcome[V]) (Result[V], error) {
	switch {
	case !o.shared:
		return o.result, o.err
	case o.err == nil:
		r := o.result
		if l.opt.Clone != nil {
			r.Value = l.opt.Clone(r.Value)
		}
		return r, nil
	}
	err := callerError(k.user, o.err)
	if isPanic(o.err) {
		panic(err)
	}
	return Result[V]{}, err
}

// callerError returns the error of a load as callers receive it.
func callerError(key string, err error) error {
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
