package fetchonce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fetchonce/fetchonce/internal/backoff"
	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/codec"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/lease"
	"github.com/fetchonce/fetchonce/internal/permit"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// holding fetches under the lease and stores the value. The lease is renewed until FILL or RELEASE
// is answered. There are three contexts. Each also ends when the one above it ends:
//
//	the flight's ctx   all callers have left, or Close
//	timeoutCtx         these, and FetchTimeout
//	leaseCtx           these, and the lease is lost
//
// The fetch has leaseCtx. After maxReloads fetches that lost their lease, the next one has
// timeoutCtx.
func (r *load[V]) holding(ctx context.Context) state {
	defer r.releasePermit()
	a := &r.acquire
	r.waitEnds(ctx, false)
	if ctx.Err() != nil {
		r.release(ctx)
		return r.fail(context.Cause(ctx))
	}
	timeoutCtx, cancel := r.limit(ctx)
	defer cancel()
	leaseCtx, keeper := lease.Keep(timeoutCtx, a.sent, r.l.opt.Lease, ErrLockLost, func(ctx context.Context) (bool, error) {
		return r.l.redis.Renew(ctx, r.lease(), r.l.opt.Lease)
	})
	defer keeper.Stop()
	defer r.l.client.Mailbox.OnLost(a.owner, keeper.Lost)()

	fetchCtx := leaseCtx
	if r.reloads >= maxReloads {
		// The key is deleted faster than it can be fetched. This fetch continues if its lease is
		// lost. Its callers arrived before it started, so they may have its value. FILL refuses
		// the value of a lost lease.
		fetchCtx = timeoutCtx
	}
	r.flight.Advance()
	f := r.runFetch(timeoutCtx, fetchCtx, a.Fence)
	if leaseCtx.Err() != nil && errors.Is(context.Cause(leaseCtx), ErrLockLost) {
		r.l.trace.leaseLost(ctx, TraceLease{Key: r.k.user, Held: time.Since(a.sent)})
	}
	switch {
	case f.err == nil || errors.Is(f.err, ErrNotFound):
		r.fill(ctx, f)
		return r.done(f.result(), f.err)
	case ctx.Err() != nil:
		r.release(ctx)
		return r.fail(context.Cause(ctx))
	case !flight.IsCrash(f.err) && !r.flight.Kept() && errors.Is(context.Cause(fetchCtx), ErrLockLost):
		r.reloads++
		r.replaces, r.old = nil, nil
		return r.acquiring // a Delete, Set or Update ended the lease, or no renewal was in time
	}
	shared := r.sharing()
	r.startBackoff(shared.Lasts) // first: a caller that arrives after fail finds the backoff
	r.fail(f.err)                // then: no caller may join a load that releases its lease
	r.releaseFailed(ctx, r.l.describe(f.err, f.inStore), shared)
	return nil
}

// A fetchResult is the result of a fetch, or of the Store.
type fetchResult[V any] struct {
	value   V
	source  Source
	cost    time.Duration
	ttl     time.Duration // as the fetch set it
	err     error         // nil, ErrNotFound, or the failure
	inStore bool          // the failure is the Store's
	trace   *fetchTrace
}

func (f fetchResult[V]) result() Result[V] { return Result[V]{Value: f.value, Source: f.source} }

// A fetchKey is the context key with which a Get detects that the fetch of the same key calls it.
type fetchKey struct {
	loader any
	key    string
}

// limit returns the context of a fetch: with FetchTimeout, its key and its permit.
func (r *load[V]) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx = context.WithValue(ctx, fetchKey{r.l, r.k.user}, true)
	if r.permit != nil {
		ctx = r.permit.Context(ctx, r.l)
	}
	if r.l.opt.FetchTimeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, r.l.opt.FetchTimeout, ErrFetchTimeout)
}

// runFetch runs the fetch on a goroutine of its own, with the context fetchCtx, and waits for it
// until timeoutCtx ends. A fetch that ignores its context continues without callers. The fetch
// takes the permit, and releases it when it returns.
func (r *load[V]) runFetch(timeoutCtx, fetchCtx context.Context, fence int64) fetchResult[V] {
	trace := r.l.trace.fetching(fetchCtx, TraceFetch{Key: r.k.user, Keys: 1, Background: r.background, Unleased: fence == 0})
	ended := make(chan fetchResult[V], 1)
	permit := r.permit
	r.permit = nil
	info := &Fetch[V]{Key: r.k.user, Fence: fence, Old: r.old} // one for each fetch, as a fetch that ignores its context may run beside the next
	go func() {
		f := fetchResult[V]{trace: trace}
		flight.Protect(
			func() (V, error) { return r.fetchAndCreate(timeoutCtx, fetchCtx, info, &f) },
			func(v V, err error) {
				f.value, f.err = v, err
				f.trace.End(err) // if it panicked
				permit.Release()
				ended <- f
			})
	}()
	select {
	case f := <-ended:
		if f.err != nil && !flight.IsCrash(f.err) && !errors.Is(f.err, ErrNotFound) && timeoutCtx.Err() != nil {
			f.err = r.causeOf(timeoutCtx)
		}
		r.logFailure(f.err, f.inStore)
		return f
	case <-timeoutCtx.Done():
		trace.End(timeoutCtx.Err())
		err := r.causeOf(timeoutCtx)
		r.logFailure(err, false)
		return fetchResult[V]{err: err}
	}
}

func isPanic(err error) bool {
	_, ok := errors.AsType[*flight.PanicError](err)
	return ok
}

// logFailure logs the failure of a fetch that may have no caller to return it to.
func (r *load[V]) logFailure(err error, inStore bool) {
	unobserved := r.background || r.old != nil && r.l.opt.SoftTimeout > 0
	if unobserved && err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrLockLost) {
		r.l.log.Warn(logRefresh, loggable(keyless(callerError(r.k.user, err)), inStore))
	}
}

func (r *load[V]) causeOf(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ErrFetchTimeout) {
		return &Error{Op: "fetch", Key: r.k.user, Err: ErrFetchTimeout}
	}
	return cause
}

// fetchAndCreate returns the Store's value of the key. If there is none, it fetches the value and
// creates it in the Store.
//
// Before Create, the flight is kept: if all callers leave during Create, the load continues, so
// that the fetch is not repeated. If all have left before, Create is not called. Create has the
// context timeoutCtx, which does not end with the lease either: the unique key of the row makes
// Create safe, and FILL is refused without the lease.
func (r *load[V]) fetchAndCreate(timeoutCtx, fetchCtx context.Context, info *Fetch[V], f *fetchResult[V]) (v V, err error) {
	began := time.Now()
	if r.batch != nil {
		got, batchErr := r.batch.Fetch(fetchCtx, r.k.user, r.background, info.Fence == 0)
		v, err, f.source = got.Value, batchErr, SourceFetch
		if got.FromStore {
			f.source, f.inStore = SourceStore, err != nil
		}
	} else {
		v, err = r.lookupOrFetch(fetchCtx, info, f)
	}
	f.cost = time.Since(began)
	if err != nil || r.l.opt.Store == nil || f.source == SourceStore {
		return v, err
	}
	if err = fetchCtx.Err(); err == nil && !r.flight.Keep() {
		<-timeoutCtx.Done()
		err = timeoutCtx.Err()
	}
	if err != nil {
		return v, err
	}
	f.inStore = true // if it fails or panics
	return r.l.opt.Store.Create(timeoutCtx, r.k.user, v)
}

func (r *load[V]) lookupOrFetch(ctx context.Context, info *Fetch[V], f *fetchResult[V]) (V, error) {
	if r.l.opt.Store != nil {
		f.source, f.inStore = SourceStore, true // if it fails or panics
		v, err := r.l.opt.Store.Lookup(ctx, r.k.user)
		if !errors.Is(err, ErrNotFound) {
			return v, err
		}
		f.inStore = false
	}
	f.source = SourceFetch
	f.trace.Begin()
	v, err := r.fetch(ctx, info)
	f.trace.End(err)
	f.ttl = info.TTL
	return v, err
}

// fill stores the fetched value and notifies the waiters. It closes the flight to joiners first: a
// Delete may end before FILL arrives, and a Get that starts after the Delete must not join this
// flight.
func (r *load[V]) fill(ctx context.Context, f fetchResult[V]) {
	sealed, unkept := r.seal(f)
	r.flight.CloseToJoiners()
	filled, err := r.l.redis.Fill(context.WithoutCancel(ctx), r.lease(), sealed.bytes, sealed.keep)
	switch {
	case err != nil:
		r.l.log.Warn(logNotStored, err)
		r.dropLease(0)
	case filled.Stored:
		r.flight.Advance() // the lease was ours until now, so the value is new enough for all callers
	}
	if filled.Refused != nil {
		r.l.log.Warn(logNotStored, filled.Refused)
	}
	if err = cmp.Or(err, filled.Refused, unkept); sealed.keep > 0 || err != nil {
		r.l.trace.stored(ctx, TraceStore{Key: r.k.user, Bytes: len(sealed.bytes), Superseded: err == nil && !filled.Stored, Err: err})
	}
}

// A sealedValue is a value in its envelope. Without bytes, FILL notifies the waiters to send
// ACQUIRE again.
type sealedValue struct {
	bytes []byte
	keep  time.Duration // how long Redis keeps it; 0: not at all
}

// seal puts the fetched value, or its absence, into an envelope. The error says why the value
// is not kept.
func (r *load[V]) seal(f fetchResult[V]) (sealedValue, error) {
	kind, payload := envelope.NotFound, []byte(nil)
	if f.err == nil {
		var err error
		if payload, err = r.l.codec.Encode(r.k.user, f.value); err != nil {
			err = codec.WhyUnstored(err)
			r.l.log.Warn(logNotStored, err)
			return sealedValue{}, err
		}
		kind = envelope.Value
	}
	h := r.l.header(r.k, kind, f.ttl)
	h.Cost, h.Fence = f.cost, r.acquire.Fence
	return sealedValue{envelope.Seal(h, payload), h.Keep}, nil
}

// release releases the lease without a value, and notifies the waiters to send ACQUIRE again.
func (r *load[V]) release(ctx context.Context) {
	if _, err := r.l.redis.Release(context.WithoutCancel(ctx), r.lease()); err != nil {
		r.dropLease(0)
	}
}

// releaseFailed releases the lease and notifies the waiters of the failure.
func (r *load[V]) releaseFailed(ctx context.Context, f protocol.Failure, shared protocol.Sharing) {
	if _, err := r.l.redis.ReleaseFailed(context.WithoutCancel(ctx), r.lease(), f, shared); err != nil {
		r.dropLease(0)
	}
}

// sharing returns which later callers receive the failure of this fetch, and for how long. With
// ErrorTTL, all callers receive it for that time. Without, callers with a stale value receive it
// during a backoff.
func (r *load[V]) sharing() protocol.Sharing {
	if r.old != nil && r.l.opt.ErrorTTL == 0 {
		return protocol.Sharing{Lasts: backoff.After(r.staleFor), StaleOnly: true}
	}
	return protocol.Sharing{Lasts: r.l.opt.ErrorTTL}
}

// startBackoff starts the backoff of the key in this process, if callers have a stale value.
func (r *load[V]) startBackoff(d time.Duration) {
	if r.old != nil {
		r.l.backoffs.Set(r.k.user, d)
	}
}

// awaitPermit acquires a permit before any lease. While it waits it looks up once a second
// whether another process has stored the value.
func (r *load[V]) awaitPermit(ctx context.Context) (seen lookup[V], err error) {
	if !r.needsPermit() {
		return lookup[V]{}, nil
	}
	var lookupErr error
	r.permit, err = r.l.permits.Acquire(ctx, func() bool {
		r.flight.Advance()
		seen, lookupErr = r.l.lookup(ctx, r.k)
		return seen.answers() // an error of the lookup does not end the wait
	})
	switch {
	case err != nil:
		r.closeForAll()
		return lookup[V]{}, noPermit(err)
	case !seen.answers():
		return lookup[V]{}, nil
	}
	r.flight.CloseToJoiners()
	return seen, lookupErr
}

// needsPermit reports whether the load must acquire a permit before it fetches. The loads of a
// batch fetch share one.
func (r *load[V]) needsPermit() bool { return r.l.permits != nil && r.permit == nil && r.batch == nil }

// acquirePermit waits for a permit, and does nothing else meanwhile.
func (l *Loader[V]) acquirePermit(ctx context.Context) (*permit.Permit, error) {
	p, err := l.permits.Acquire(ctx, func() bool { return false })
	return p, noPermit(err)
}

// noPermit returns the error of a load that got no permit.
func noPermit(err error) error {
	if errors.Is(err, permit.ErrNone) {
		return &Error{Op: "fetch", Err: fmt.Errorf("%w: %w", err, ErrFetchTimeout)}
	}
	return err
}

// releasePermit releases the permit, unless a fetch has it.
func (r *load[V]) releasePermit() {
	r.permit.Release()
	r.permit = nil
}

// dropLease releases, in the background, a lease that this load may hold. If again is not 0, it
// sends the RELEASE a second time, that much later: the ACQUIRE may arrive in between.
func (r *load[V]) dropLease(again time.Duration) {
	held, redis := r.lease(), r.l.redis
	held.Fence = protocol.AnyFence // that of a failed ACQUIRE is unknown
	r.l.cleanup.Add(cleanup.Task{
		Undo: func(ctx context.Context) error {
			_, err := redis.Release(ctx, held)
			return err
		},
		Lasts: r.l.opt.Lease,
		Again: again,
	})
}

// mayArrive returns for how long a script that failed with err may still arrive in Redis:
// RedisTimeout after a timeout or a cancellation of a script that was sent, else 0.
func (l *Loader[V]) mayArrive(err error) time.Duration {
	if protocol.NotSent(err) || !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return 0
	}
	return l.opt.RedisTimeout
}
