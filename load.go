package fetchonce

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/fetchonce/fetchonce/internal/backoff"
	"github.com/fetchonce/fetchonce/internal/batchfetch"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/permit"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// An outcome is the result of a load, for all its callers.
type outcome[V any] struct {
	result Result[V]
	err    error // nil, ErrNotFound, or the failure

	found    *lookup[V] // instead of a result if ACQUIRE was the lookup: each caller decides whether to return it
	backoff  bool       // err is an earlier failure, which only callers with a stale value may receive
	unleased bool       // err is the failure of a fetch without a lease
	shared   bool       // other callers receive the same result
}

// A load is one load of one key in this process: what happens after a miss. It is in one
// state at a time. Each state is a method that returns the next one:
//
//	acquiring ─┬─► holding ───► done    this process has the lease: fetch, and FILL
//	           ├─► waiting ───► done    another process has it, and notifies this one
//	           ├─► reading ───► done    a stored value is too large for the answer to ACQUIRE
//	           ├─► unleased ──► done    Redis is unavailable
//	           ├─► passingOver          a value is stored, but Options.TTL is off
//	           └──────────────► done    a stored value, or a failure that is shared
//
// Each of the first three, and passingOver, may lead back to acquiring: the lease was lost, the
// recheck timer fired or a notification says to retry, or the stored value is unusable. A load
// whose lookup found Redis unavailable begins in unleased.
//
// Each state runs with the flight's context.
type load[V any] struct {
	l      *Loader[V]
	k      cacheKey
	flight *flight.Flight[*outcome[V]]
	fetch  fetchFunc[V]
	batch  *batchfetch.Load[V] // fetches in place of fetch; nil except in a GetMany

	background bool               // it refreshes a value, and no caller waited when it started
	replaces   *protocol.PassOver // the stored value to replace; nil if there is none
	old        *Result[V]         // that value, if a caller may receive it
	staleFor   time.Duration      // how long old has been stale
	permit     *permit.Permit     // of MaxFetches; nil once the fetch has it
	reloads    int                // fetches that lost their lease

	acquire acquire
	wait    wait
	out     outcome[V]
}

// An acquire is the last ACQUIRE of a load, and its answer.
type acquire struct {
	protocol.Acquired
	owner   string
	sent    time.Time
	skipped bool        // the caller that started the load made no lookup: this ACQUIRE is its lookup
	ticket  near.Ticket // to keep the value that it then finds in the near cache
	counted bool        // the miss prediction has counted the miss
}

// lease returns the lease that the last ACQUIRE took.
func (r *load[V]) lease() protocol.Lease {
	return protocol.Lease{Key: r.k.names, Owner: r.acquire.owner, Fence: r.acquire.Fence}
}

// A wait is a load's wait for another process.
type wait struct {
	slot           *wake.Slot
	began          time.Time     // for the Trace; zero if none is reported
	recheckedFence int64         // the fence of the lease that was held when the recheck timer fired
	poll           time.Duration // the last interval of polling while the mailbox is unsubscribed
}

// A state does one part of a load, and returns the next state, or nil when the load is done.
type state func(ctx context.Context) state

const (
	longestRecheck = time.Second // covers a lost notification
	firstPoll      = 10 * time.Millisecond
	longestPoll    = 250 * time.Millisecond
	maxReloads     = 3 // after so many fetches that lost their lease, the next one is not cancelled when its lease is lost
)

// newLoad returns the function of a flight that loads the caller's key, after its lookup. With
// batch, the load is one of a GetMany.
func (c *caller[V]) newLoad(batch *batchfetch.Load[V]) func(context.Context, *flight.Flight[*outcome[V]]) (*outcome[V], error) {
	l, k, seen, fetch := c.l, c.k, c.seen, c.fetch // the load may outlive the caller
	return func(ctx context.Context, f *flight.Flight[*outcome[V]]) (*outcome[V], error) {
		r := &load[V]{l: l, k: k, flight: f, fetch: fetch, batch: batch, replaces: seen.replaces, background: seen.refreshes()}
		r.acquire.skipped = seen.state == skipped
		if seen.hasOld() {
			r.old, r.staleFor = &seen.result, seen.staleFor()
		}
		defer r.releasePermit()
		defer batch.Decide()
		batch.Begin(ctx)
		defer batch.Pause()
		if seen.state == unavailable {
			r.run(ctx, r.unleased)
		} else {
			r.runWithMailbox(ctx)
		}
		return &r.out, nil
	}
}

// run goes from state to state.
func (r *load[V]) run(ctx context.Context, s state) {
	for s != nil {
		s = s(ctx)
	}
}

// runWithMailbox runs the states from acquiring on. It opens a slot of the mailbox before ACQUIRE
// is sent: the notification may arrive before the answer.
func (r *load[V]) runWithMailbox(ctx context.Context) {
	r.wait.slot = r.l.client.Mailbox.OpenSlot(r.k.names.Value)
	defer r.wait.slot.Close()
	defer func() { r.waitEnds(ctx, ctx.Err() == nil) }()
	r.l.client.Mailbox.Subscribe(ctx, r.l.channel)
	r.run(ctx, r.acquiring)
}

// done ends the load with a result or an error.
func (r *load[V]) done(result Result[V], err error) state {
	r.out = outcome[V]{result: result, err: err, shared: true}
	return nil
}

// fail ends the load with an error for all callers, late ones too: a failure cannot be too old.
func (r *load[V]) fail(err error) state {
	r.closeForAll()
	return r.done(Result[V]{}, err)
}

func (r *load[V]) closeForAll() {
	r.flight.CloseToJoiners()
	r.flight.Advance()
}

// acquiring sends ACQUIRE: for the value, the lease, or a registration as a waiter.
func (r *load[V]) acquiring(ctx context.Context) state {
	if seen, err := r.awaitPermit(ctx); err != nil || seen.answers() {
		if err != nil && ctx.Err() != nil {
			return r.fail(context.Cause(ctx))
		}
		return r.done(seen.result, err)
	}
	a := &r.acquire
	a.owner = r.l.client.Mailbox.Owner()
	r.flight.Advance()
	if a.skipped {
		// In a cluster, the near cache keeps only what was read from the key's own node.
		if t := r.l.nearTicket(r.k); t.Node() == nil {
			a.ticket = t
		}
	}
	a.sent = time.Now()
	// The load waits for the answer even if all callers leave. A RELEASE that overtakes the
	// ACQUIRE would release nothing, and the lease would then block the key.
	var err error
	a.Acquired, err = r.l.redis.Acquire(context.WithoutCancel(ctx), r.k.names, a.owner, r.l.opt.Lease, r.replaces)
	if err != nil {
		r.l.missRate.Reset()
		if !protocol.NotSent(err) {
			r.dropLease(r.l.mayArrive(err)) // it may be ours
		}
		return r.redisFailed(ctx, err)
	}
	r.l.clock.Learn(a.Now, a.sent)
	r.suspectMailbox()
	r.learnMiss()
	return r.answered(ctx)
}

// answered returns the state that follows the answer to ACQUIRE.
func (r *load[V]) answered(ctx context.Context) state {
	a := &r.acquire
	if a.State == protocol.Leased {
		return r.holding
	}
	r.releasePermit()
	if r.l.opt.TTL == 0 && (a.State == protocol.Stored || a.State == protocol.Large) {
		return r.passingOver
	}
	switch a.State {
	case protocol.Stored:
		seen, err := r.l.fromValue(a.ticket, r.k, r.k.names.Split(a.Value, len(a.Value)))
		return r.stored(ctx, seen, err)
	case protocol.Large:
		return r.reading
	case protocol.Failed:
		r.startBackoff(a.Left) // first: a caller that arrives after fail finds the backoff
		r.fail(r.l.failureOf(r.k.user, a.Failure))
		r.out.backoff = r.old != nil
		return nil
	}
	return r.waiting
}

// passingOver makes the next ACQUIRE pass over a stored value. With TTL off, only the Store
// keeps values: this one is from a time before that.
func (r *load[V]) passingOver(ctx context.Context) state {
	head, err := r.l.redis.Get(ctx, r.k.names, envelope.Size-1)
	if err != nil {
		return r.redisFailed(ctx, err)
	}
	r.replaces = passOver(protocol.Value{Head: head})
	return r.acquiring
}

// reading reads a stored value that is too large for the answer to ACQUIRE.
func (r *load[V]) reading(ctx context.Context) state {
	seen, err := r.l.lookup(ctx, r.k)
	return r.stored(ctx, seen, err)
}

// stored ends the load with a stored value, if it may be returned. If ACQUIRE was the lookup, the
// outcome has the lookup, and each caller decides for itself. Else the load sends an ACQUIRE that
// passes over the value.
func (r *load[V]) stored(ctx context.Context, seen lookup[V], err error) state {
	switch {
	case seen.state == unavailable:
		return r.redisFailed(ctx, seen.cause)
	case err != nil && ctx.Err() != nil:
		return r.fail(context.Cause(ctx))
	case r.acquire.skipped && (seen.answers() || seen.state == fallback):
		r.flight.CloseToJoiners()
		r.out = outcome[V]{found: &seen, err: err}
		return nil
	}
	r.acquire.skipped = false
	if seen.replaces != nil && r.replaces != nil && r.replaces.Ended != 0 {
		seen.replaces.Ended = 0 // ACQUIRE has compared it with the server's clock once
	}
	r.replaces = seen.replaces
	if err != nil || seen.answers() {
		r.flight.CloseToJoiners()
		return r.done(seen.result, err)
	}
	return r.acquiring
}

// redisFailed fails the load or continues it without a lease, as [Options.OnRedisDown] says.
func (r *load[V]) redisFailed(ctx context.Context, err error) state {
	r.batch.RedisFailed()
	r.waitEnds(ctx, false)
	if ctx.Err() != nil {
		return r.fail(context.Cause(ctx))
	}
	if err := r.l.onRedisDown(r.k, "acquire", err); err != nil {
		return r.fail(err)
	}
	return r.unleased
}

// unleased fetches without a lease. Only the Store keeps the value.
func (r *load[V]) unleased(ctx context.Context) state {
	if r.needsPermit() {
		var err error
		if r.permit, err = r.l.acquirePermit(ctx); err != nil {
			return r.fail(err)
		}
	}
	timeoutCtx, cancel := r.limit(ctx)
	defer cancel()
	r.flight.Advance()
	f := r.runFetch(timeoutCtx, timeoutCtx, 0)
	// A caller that began after the cutoff is late, and looks the key up again: Redis may be
	// unavailable for this process alone, and another may have deleted the key.
	r.flight.CloseToJoiners()
	if f.err != nil && !errors.Is(f.err, ErrNotFound) {
		r.fail(f.err)
		r.out.unleased = true
		return nil
	}
	return r.done(f.result(), f.err)
}

// waiting waits for the notification of the process that holds the lease.
func (r *load[V]) waiting(ctx context.Context) state {
	r.batch.Decide()
	r.batch.Pause()
	if r.l.trace.Waited != nil && r.wait.began.IsZero() {
		r.wait.began = time.Now()
	}
	timer := time.NewTimer(r.recheckAfter(r.acquire.Left))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return r.fail(context.Cause(ctx)) // the registration is deleted with the lease
		case <-timer.C:
			r.wait.recheckedFence = r.acquire.Fence
			return r.acquiring
		case <-r.wait.slot.Ready():
			m, ok := r.wait.slot.Take(r.acquire.Fence)
			if !ok {
				continue // of an older lease
			}
			r.wait.poll = 0
			if !m.Answers(r.acquire.Fence, r.l.clock.Now()) {
				return r.acquiring // it is forged, and may have displaced one that is not
			}
			return r.notified(ctx, m)
		}
	}
}

// notified returns the state that follows a notification.
func (r *load[V]) notified(ctx context.Context, m protocol.Message) state {
	switch m.Kind {
	case protocol.KindValue:
		return r.received(ctx, []byte(m.Body))
	case protocol.KindFailure:
		r.startBackoff(backoff.After(r.staleFor))
		return r.fail(r.l.failureOf(r.k.user, protocol.ParseFailure(m.Body)))
	}
	return r.acquiring
}

// received ends the load with the value of a notification. A caller that began after ACQUIRE was
// sent is late: a Delete may have completed before it began. If there are late callers, received
// looks the key up once, for all of them.
func (r *load[V]) received(ctx context.Context, sealed []byte) state {
	got, err := r.l.decode(r.k, r.k.names.Split(sealed, len(sealed)), SourcePeer)
	if !got.answers() {
		return r.acquiring
	}
	r.flight.CloseToJoiners()
	if !r.flight.HasLate() {
		return r.done(got.result, err)
	}
	seen, lookupErr := r.l.lookup(ctx, r.k)
	switch {
	case ctx.Err() != nil || seen.state == unavailable || lookupErr != nil && !seen.answers():
		return r.done(got.result, err) // for the callers that are not late
	case !seen.answers():
		r.replaces = seen.replaces
		return r.acquiring
	}
	r.flight.Advance()
	seen.result.Source = SourcePeer
	return r.done(seen.result, lookupErr)
}

// waitEnds reports the end of a wait to the Trace, if there was one.
func (r *load[V]) waitEnds(ctx context.Context, answered bool) {
	if !r.wait.began.IsZero() {
		r.l.trace.waited(ctx, TraceWait{Key: r.k.user, Took: time.Since(r.wait.began), Answered: answered})
		r.wait.began = time.Time{}
	}
}

// recheckAfter returns the delay of the recheck timer: 0.75 to 1 s. If the lease ends before that,
// it is a moment after its end. While the mailbox is unsubscribed, the load polls instead: after 10
// ms at first, doubling up to 250 ms, plus or minus a half.
func (r *load[V]) recheckAfter(left time.Duration) time.Duration {
	if !r.l.client.Mailbox.Subscribed(r.l.channel) {
		r.wait.poll = min(max(2*r.wait.poll, firstPoll), longestPoll)
		return min(r.wait.poll, left+time.Millisecond)/2 + rand.N(r.wait.poll)
	}
	if left >= longestRecheck {
		return longestRecheck - rand.N(longestRecheck/4)
	}
	return left + time.Millisecond + rand.N(left/10+5*time.Millisecond)
}

// suspectMailbox makes the mailbox check its connection, if the recheck timer fired and ACQUIRE
// shows that the lease has ended: its notification may have been lost. It logs a takeover.
func (r *load[V]) suspectMailbox() {
	a := &r.acquire
	if r.wait.recheckedFence != 0 && (a.State == protocol.Stored || a.State == protocol.Large || a.Fence != r.wait.recheckedFence) {
		r.l.client.Mailbox.CheckConnection(r.l.channel)
	}
	if r.wait.recheckedFence != 0 && a.State == protocol.Leased {
		r.l.log.Info(logTakenOver)
	}
	r.wait.recheckedFence = 0
}

// learnMiss counts the answer to ACQUIRE for the miss prediction.
func (r *load[V]) learnMiss() {
	a := &r.acquire
	if a.State == protocol.Stored || a.State == protocol.Large {
		if a.skipped {
			r.l.missRate.Hit()
		}
		return
	}
	if r.replaces != nil {
		return
	}
	if !a.counted && r.batch == nil {
		r.l.missRate.Miss()
		a.counted = true
	}
	a.skipped, a.ticket = false, near.Ticket{}
}
