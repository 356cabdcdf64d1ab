package fetchonce

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/lease"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// A run is one load of one key in this process: what happens after a miss.
type run[V any] struct {
	*Loader[V]
	k     keyed
	call  *flight.Call[Result[V]]
	fetch func(ctx context.Context, f *Fetch[V]) (V, error)
	part  *part[V] // of a batch, which fetches for us; nil if we fetch alone

	behind  bool      // it refreshes a value, and nobody waited for that when it began
	waiting time.Time // since when it waits for another process; zero if it does not, or nobody wants to know

	owner    string             // of the lease we hold or ask for
	over     *protocol.PassOver // the value to replace; nil if there is none
	old      *Result[V]         // the same, if it is of use
	staleFor time.Duration
	permit   *permit       // of MaxFetches; nil once a fetch has it
	waitedOn int64         // fence of the lease we waited for until a timer said to look again
	deafFor  time.Duration // the pause before that, while no messages come
	unseen   bool          // nobody has looked yet whether there is a value: the ACQUIRE does
	ticket   near.Ticket   // for what that finds
	learned  bool          // it has told the luck that there was nothing
	reloads  int           // fetches that lost their lease before they found anything
}

// The limits of patience of a run.
const (
	longestWait = time.Second            // for a message that may have been lost
	firstDeaf   = 10 * time.Millisecond  // while we know that no messages come,
	longestDeaf = 250 * time.Millisecond // doubling up to this
	mostReloads = 3                      // after so many a fetch goes on though its lease is lost
)

// ask asks Redis for the value or the lease, until it has one of them, or
// somebody else's answer. The context is the flight's.
func (r *run[V]) ask(ctx context.Context) (Result[V], error) {
	// Before we are registered in Redis: the message may be faster than the
	// answer to the registration.
	slot := r.mailbox.Wait(r.k.names.Value)
	defer slot.Close()
	defer r.waitEnds(ctx)
	r.mailbox.Listen(ctx, r.channel)
	for {
		if seen, err := r.awaitPermit(ctx); err != nil || seen.found {
			return seen.result, r.endedOr(ctx, err)
		}
		r.owner = r.mailbox.Owner()
		r.call.Mark()
		if r.unseen {
			// A copy of what a node of a cluster has is made by who reads from that node.
			if t := r.Loader.ask(r.k); t.Node() == nil {
				r.ticket = t
			}
		}
		sent := time.Now()
		// The answer is waited for even if all callers leave: a Release that is sent
		// without it may overtake the ACQUIRE, and the lease then stays for nobody.
		a, err := r.redis.Acquire(context.WithoutCancel(ctx), r.k.names, r.owner, r.opt.Lease, r.over)
		if err != nil {
			r.luck.reset()
			if !protocol.NotSent(err) {
				r.dropLease(r.mayArrive(err)) // we may hold one, and not know it
			}
			return r.lostRedis(ctx, err)
		}
		r.learnClock(a.Now, sent)
		r.suspect(a)
		r.foresee(a.State)
		result, done, err := r.answered(ctx, a, sent, slot)
		if done || err != nil {
			return result, err
		}
	}
}

// answered goes on with the answer to an ACQUIRE. It is done, or asks again.
func (r *run[V]) answered(ctx context.Context, a protocol.Acquired, sent time.Time, slot *wake.Slot) (Result[V], bool, error) {
	if a.State == protocol.Leased {
		return r.hold(ctx, a, sent)
	}
	r.releasePermit()
	if r.opt.TTL == 0 && (a.State == protocol.Stored || a.State == protocol.Large) {
		return r.passOver(ctx)
	}
	switch a.State {
	case protocol.Stored:
		return r.take(r.openAndKeep(r.ticket, r.k, a.Value))
	case protocol.Large:
		seen, err := r.look(ctx, r.k)
		if seen.down != nil {
			result, err := r.lostRedis(ctx, seen.down)
			return result, true, err
		}
		return r.take(seen, r.endedOr(ctx, err))
	case protocol.Failed:
		err := r.failure(a.Failure)
		if r.old != nil {
			r.pauses.set(r.k.user, a.Left)
			err = &pausedError{err}
		}
		return Result[V]{}, true, r.fail(err)
	}
	return r.wait(ctx, a, slot)
}

// passOver has the next ACQUIRE pass over what is in Redis, as values are kept in
// the Store alone: it is from when they were not.
func (r *run[V]) passOver(ctx context.Context) (Result[V], bool, error) {
	b, err := r.redis.Get(ctx, r.k.names, envelope.Size-1)
	if err != nil {
		result, err := r.lostRedis(ctx, err)
		return result, true, err
	}
	r.over = passOver(b)
	return Result[V]{}, false, nil
}

// take ends the run with what was seen, if that is of use. If nobody had looked
// before, that is for each caller to judge.
func (r *run[V]) take(seen look[V], err error) (Result[V], bool, error) {
	if r.unseen && (seen.found || seen.spare) {
		r.call.Close()
		return Result[V]{}, true, &sawError[V]{seen, err}
	}
	r.unseen = false
	if err != nil || seen.found {
		r.call.Close()
	}
	if seen.over != nil && r.over != nil && r.over.Ended {
		seen.over.Ended = false // the server has answered that once
	}
	r.over = seen.over
	return seen.result, seen.found, err
}

// fail ends the run with an error for all, also for those who came while it was
// under way: a failure is not stale.
func (r *run[V]) fail(err error) error {
	r.call.Close()
	r.call.Mark()
	return err
}

// endedOr returns why the flight has ended, if it has, and err otherwise.
func (r *run[V]) endedOr(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return r.fail(context.Cause(ctx))
	}
	return err
}

// lostRedis goes on after an error of Redis, as the policy says.
func (r *run[V]) lostRedis(ctx context.Context, err error) (Result[V], error) {
	r.part.lostRedis()
	r.waitOver(ctx, false)
	if ctx.Err() != nil {
		return Result[V]{}, r.fail(context.Cause(ctx))
	}
	if err := r.refuse(r.k, "acquire", err); err != nil {
		return Result[V]{}, r.fail(err)
	}
	return r.blind(ctx)
}

// blind fetches without a lease, because Redis is down. Nothing is stored but in
// the Store.
func (r *run[V]) blind(ctx context.Context) (Result[V], error) {
	if r.permit == nil && r.permits != nil && r.part == nil {
		var err error
		if r.permit, err = r.permits.acquire(ctx, func() bool { return false }); err != nil {
			return Result[V]{}, r.fail(err)
		}
	}
	limited, cancel := r.limit(ctx)
	defer cancel()
	r.call.Mark()
	m := r.work(limited, limited, 0)
	// Who has joined since the Mark looks again: Redis may be down for us alone,
	// and somebody may have deleted the key.
	r.call.Close()
	if m.err != nil && !errors.Is(m.err, ErrNotFound) {
		return Result[V]{}, r.fail(m.err)
	}
	return m.result(), m.err
}

// wait waits for the message of the process that holds the lease.
func (r *run[V]) wait(ctx context.Context, a protocol.Acquired, slot *wake.Slot) (Result[V], bool, error) {
	r.part.decide() // the batch need not wait for us
	r.part.pause()
	r.waitBegins()
	timer := time.NewTimer(r.patience(a.Left))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			// Our registration ends with the lease.
			return Result[V]{}, true, r.fail(context.Cause(ctx))
		case <-timer.C:
			r.waitedOn = a.Fence
			return Result[V]{}, false, nil
		case <-slot.Ready():
			m, ok := slot.Take(a.Fence)
			if !ok {
				continue // of an older lease
			}
			r.deafFor = 0
			if !m.Answers(a.Fence, r.serverNow()) {
				return Result[V]{}, false, nil // it is forged, and may have kept out one that is not
			}
			switch m.Kind {
			case protocol.KindValue:
				return r.hear(ctx, []byte(m.Body))
			case protocol.KindFailure:
				r.pauseFor(r.pause())
				return Result[V]{}, true, r.fail(r.failure(protocol.ParseFailure(m.Body)))
			}
			return Result[V]{}, false, nil
		}
	}
}

// hear takes a value from a message. Who joined after we asked for the lease
// may have come after a Delete that the message has not seen, as it was on its
// way: if there are such callers, all look once more, together.
func (r *run[V]) hear(ctx context.Context, sealed []byte) (Result[V], bool, error) {
	_, told, err := r.unpack(r.k, sealed, SourcePeer)
	if !told.found {
		return Result[V]{}, false, nil
	}
	r.call.Close()
	if !r.call.Late() {
		return told.result, true, err
	}
	seen, lookErr := r.look(ctx, r.k)
	switch {
	case ctx.Err() != nil || seen.down != nil || lookErr != nil && !seen.found:
		return told.result, true, err // for those who came in time
	case !seen.found:
		r.over = seen.over
		return Result[V]{}, false, nil
	}
	r.call.Mark()
	seen.result.Source = SourcePeer
	return seen.result, true, lookErr
}

// waitBegins notes since when another process is waited for.
func (r *run[V]) waitBegins() {
	if r.trace.Waited != nil && r.waiting.IsZero() {
		r.waiting = time.Now()
	}
}

// waitEnds tells of that, at the end of the run.
func (r *run[V]) waitEnds(ctx context.Context) { r.waitOver(ctx, ctx.Err() == nil) }

// waitOver tells of it, if there was one that was not told yet.
func (r *run[V]) waitOver(ctx context.Context, served bool) {
	if !r.waiting.IsZero() {
		r.trace.waited(ctx, TraceWait{Key: r.k.user, Took: time.Since(r.waiting), Answered: served})
		r.waiting = time.Time{}
	}
}

// patience returns how long to wait for a message that may have been lost: not
// much longer than the lease.
func (r *run[V]) patience(left time.Duration) time.Duration {
	if !r.mailbox.Hears(r.channel) {
		r.deafFor = min(max(2*r.deafFor, firstDeaf), longestDeaf)
		return min(r.deafFor, left+time.Millisecond)/2 + rand.N(r.deafFor)
	}
	if left >= longestWait {
		return longestWait - rand.N(longestWait/4)
	}
	return left + time.Millisecond + rand.N(left/10+5*time.Millisecond)
}

// suspect has the mailbox look after itself if a timer has found what a message
// should have told.
func (r *run[V]) suspect(a protocol.Acquired) {
	if r.waitedOn != 0 && (a.State == protocol.Stored || a.State == protocol.Large || a.Fence != r.waitedOn) {
		r.mailbox.Suspect(r.channel)
	}
	r.waitedOn = 0
}

// hold fetches under a lease, which was asked for at sent.
func (r *run[V]) hold(ctx context.Context, a protocol.Acquired, sent time.Time) (Result[V], bool, error) {
	defer r.releasePermit()
	r.waitOver(ctx, false)
	if ctx.Err() != nil {
		r.release(ctx, a.Fence, nil)
		return Result[V]{}, true, r.fail(context.Cause(ctx))
	}
	limited, cancel := r.limit(ctx)
	defer cancel()
	held, keeper := lease.Keep(limited, sent, r.opt.Lease, ErrLockLost, func(ctx context.Context) (bool, error) {
		return r.redis.Renew(ctx, r.k.names, r.owner, r.opt.Lease)
	})
	defer keeper.Stop()
	defer r.mailbox.Hold(r.owner, keeper.Lost)()

	during := held
	if r.reloads >= mostReloads {
		// The key is deleted faster than it can be fetched. Let this fetch go on
		// when that happens: it began after our callers came, so what it finds is
		// good for them, and will not be stored.
		during = limited
	}
	r.call.Mark()
	m := r.work(limited, during, a.Fence)
	if held.Err() != nil && errors.Is(context.Cause(held), ErrLockLost) {
		r.trace.leaseLost(ctx, TraceLease{Key: r.k.user, Held: time.Since(sent)})
	}
	switch {
	case m.err == nil || errors.Is(m.err, ErrNotFound):
		r.fill(ctx, a, m)
		return m.result(), true, m.err
	case ctx.Err() != nil:
		r.release(ctx, a.Fence, nil)
		return Result[V]{}, true, r.fail(context.Cause(ctx))
	case m.cut && !r.call.Kept() && errors.Is(context.Cause(during), ErrLockLost):
		r.reloads++
		r.over, r.old = nil, nil
		return Result[V]{}, false, nil // somebody has deleted or set the key, or is at it: ask again
	}
	err := r.fail(m.err) // nobody joins what is being released
	failure := describe(m.err, m.inStore)
	r.release(ctx, a.Fence, &failure)
	return Result[V]{}, true, err
}

// limit gives a context the FetchTimeout, and the values that a fetch's context has.
func (r *run[V]) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx = context.WithValue(ctx, fetching{r.Loader, r.k.user}, true)
	if r.permit != nil {
		ctx = context.WithValue(ctx, permitOf{r.Loader}, r.permit)
	}
	if r.opt.FetchTimeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, r.opt.FetchTimeout, ErrFetchTimeout)
}

// A made is what a fetch, with what belongs to it, has come to.
type made[V any] struct {
	value  V
	source Source
	cost   time.Duration
	ttl    time.Duration // as the fetch wants it
	err    error         // nil, an ErrNotFound, or a failure
	cut    bool          // it failed, but not by a panic, which is its own fault
	trace  *fetchTrace

	inStore bool // the failure is the Store's, not the fetch's
}

func (m made[V]) result() Result[V] { return Result[V]{Value: m.value, Source: m.source} }

// A fetching is the key under which the context of a fetch says what it fetches.
type fetching struct {
	loader any
	key    string
}

// work runs the fetch on a goroutine of its own, with the context during. It waits for
// the fetch until the context limited ends: a fetch that ignores its context continues
// without callers. The fetch takes the permit with it, and releases it when it returns.
func (r *run[V]) work(limited, during context.Context, fence int64) made[V] {
	trace := r.trace.fetching(during, TraceFetch{Key: r.k.user, Keys: 1, Background: r.behind, Unleased: fence == 0})
	ended := make(chan made[V], 1)
	permit := r.permit
	r.permit = nil
	go func() {
		m := made[V]{trace: trace}
		flight.Protect(
			func() (V, error) { return r.make(limited, during, fence, &m) },
			func(v V, err error) {
				m.value, m.err = v, err
				m.trace.end(err) // if it panicked
				permit.release()
				ended <- m
			})
	}()
	select {
	case m := <-ended:
		_, panicked := errors.AsType[*flight.PanicError](m.err)
		m.cut = m.err != nil && !panicked && !errors.Is(m.err, flight.ErrGoexit)
		if m.cut && limited.Err() != nil && !errors.Is(m.err, ErrNotFound) {
			m.err = r.endOf(limited)
		}
		r.tellFailure(m.err, m.inStore)
		return m
	case <-limited.Done():
		trace.end(limited.Err())
		err := r.endOf(limited)
		r.tellFailure(err, false)
		return made[V]{err: err, cut: true}
	}
}

// tellFailure tells the log of a fetch that failed, if there may be no caller to
// be told.
func (r *run[V]) tellFailure(err error, inStore bool) {
	alone := r.behind || r.old != nil && r.opt.SoftTimeout > 0
	if alone && err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrLockLost) {
		r.notices.warn(noticeRefresh, loggable(keyless(outcome(r.k.user, err)), inStore))
	}
}

func (r *run[V]) endOf(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ErrFetchTimeout) {
		return &Error{Op: "fetch", Key: r.k.user, Err: ErrFetchTimeout}
	}
	return cause
}

// make looks in the Store once more, else fetches, and creates what was fetched in
// the Store.
//
// A fetch that succeeded must not be repeated because its callers are impatient: from
// then on the flight is kept, and Create is given the context limited. Nor does a lost
// lease end Create: the row's unique key makes it safe, and FILL is refused.
func (r *run[V]) make(limited, during context.Context, fence int64, m *made[V]) (v V, err error) {
	began := time.Now()
	if r.part != nil {
		v, m.source, err = r.part.get(during, r.k.user, r.behind, fence == 0)
		m.inStore = err != nil && m.source == SourceStore
	} else {
		v, m.source, err = r.lookupOrFetch(during, fence, m)
	}
	m.cost = time.Since(began)
	if err != nil || r.opt.Store == nil || m.source == SourceStore {
		return v, err
	}
	if err = during.Err(); err == nil && !r.call.Keep() {
		<-limited.Done()
		err = limited.Err()
	}
	if err != nil {
		return v, err
	}
	m.inStore = true // if it fails or panics
	return r.opt.Store.Create(limited, r.k.user, v)
}

func (r *run[V]) lookupOrFetch(ctx context.Context, fence int64, m *made[V]) (V, Source, error) {
	if r.opt.Store != nil {
		m.inStore = true // if it fails or panics
		v, err := r.opt.Store.Lookup(ctx, r.k.user)
		if !errors.Is(err, ErrNotFound) {
			return v, SourceStore, err
		}
		m.inStore = false
	}
	f := &Fetch[V]{Key: r.k.user, Fence: fence, Old: r.old}
	m.trace.begin()
	v, err := r.fetch(ctx, f)
	m.trace.end(err)
	m.ttl = f.TTL
	return v, SourceFetch, err
}

// fill stores what was fetched and tells those who wait for it. The flight is
// closed to joiners first: a Get that begins while we store, after somebody's
// Delete, must not be given what was fetched before it.
func (r *run[V]) fill(ctx context.Context, a protocol.Acquired, m made[V]) {
	sealed, keep, unkept := r.seal(a, m)
	r.call.Close()
	filled, err := r.redis.Fill(context.WithoutCancel(ctx), r.k.names, r.owner, a.Fence, sealed, keep)
	switch {
	case err != nil:
		r.notices.warn(noticeUnstored, err)
		r.dropLease(0)
	case filled.Stored:
		r.call.Mark() // the lease was ours until now, so it is news to all who wait
	}
	if filled.Refused != nil {
		r.notices.warn(noticeUnstored, filled.Refused)
	}
	if err = cmp.Or(err, filled.Refused, unkept); keep > 0 || err != nil {
		r.trace.stored(ctx, TraceStore{Key: r.k.user, Bytes: len(sealed), Superseded: err == nil && !filled.Stored, Err: err})
	}
}

// seal puts what was fetched into an envelope. What cannot be kept is nil: then
// those who wait are told to look for themselves.
func (r *run[V]) seal(a protocol.Acquired, m made[V]) (sealed []byte, keep time.Duration, err error) {
	var (
		h       envelope.Header
		payload []byte
	)
	if m.err == nil {
		h = r.header(r.k, envelope.Value, r.freshFor(r.opt.TTL, m.ttl))
		if payload, err = r.encode(r.k, m.value); err != nil {
			err = whyUnstored(err)
			r.notices.warn(noticeUnstored, err)
			return nil, 0, err
		}
	} else {
		h = r.header(r.k, envelope.NotFound, r.freshFor(r.opt.NotFoundTTL, m.ttl))
	}
	h.Cost, h.Fence = m.cost, a.Fence
	return envelope.Seal(h, payload), h.Keep, nil
}

// release gives the lease back without a value, and tells those who wait the
// failure, or to look again.
func (r *run[V]) release(ctx context.Context, fence int64, failure *protocol.Failure) {
	ctx = context.WithoutCancel(ctx)
	var err error
	if failure == nil {
		_, err = r.redis.Release(ctx, r.k.names, r.owner, fence)
	} else {
		share, pause := r.opt.ErrorTTL, false
		if r.old != nil && share == 0 {
			share, pause = r.pause(), true
		}
		r.pauseFor(share)
		_, err = r.redis.ReleaseFailed(ctx, r.k.names, r.owner, fence, *failure, share, pause)
	}
	if err != nil {
		r.dropLease(0)
	}
}

// describe returns what other processes receive of a failure; see [shareable].
func describe(err error, inStore bool) protocol.Failure {
	if p, ok := errors.AsType[*flight.PanicError](err); ok {
		return protocol.Failure{Class: protocol.FailedPanic, Text: shareablePanic(p.Value, inStore)}
	}
	if errors.Is(err, ErrFetchTimeout) {
		return protocol.Failure{Class: protocol.FetchTimeout}
	}
	return protocol.Failure{Class: protocol.FailedFetch, Text: shareable(err, inStore)}
}

// failure returns the error for a failure in another process.
func (r *run[V]) failure(f protocol.Failure) error {
	var err error
	switch f.Class {
	case protocol.FetchTimeout:
		err = ErrFetchTimeout
	case protocol.FailedPanic:
		err = errors.New("fetch panicked: " + f.Text)
	default:
		err = errors.New(f.Text)
	}
	return &Error{Op: "fetch", Key: r.k.user, Err: err}
}

// awaitPermit acquires a permit before any lease. While it waits it looks up once a
// second whether another process has stored the value.
func (r *run[V]) awaitPermit(ctx context.Context) (seen look[V], err error) {
	if r.permits == nil || r.permit != nil || r.part != nil { // a batch fetch has one permit
		return look[V]{}, nil
	}
	var lookErr error
	r.permit, err = r.permits.acquire(ctx, func() bool {
		r.call.Mark()
		seen, lookErr = r.look(ctx, r.k)
		return seen.found // an error of the lookup does not end the wait
	})
	switch {
	case err != nil:
		return look[V]{}, r.fail(err)
	case !seen.found:
		return look[V]{}, nil
	}
	r.call.Close()
	return seen, lookErr
}

// releasePermit releases the permit, unless a fetch has it.
func (r *run[V]) releasePermit() {
	r.permit.release()
	r.permit = nil
}

// learnClock notes how far the server's clock is ahead of ours: it said now at
// some time between sent and now.
func (r *run[V]) learnClock(now, sent time.Time) {
	if now.IsZero() {
		return
	}
	took := time.Since(sent)
	r.ahead.Store(int64(now.Sub(sent.Round(0).Add(took / 2))))
}
