package fetchonce

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/internal/flight"
)

// A Trace is functions that are told what a [Loader] or a [Locker] does; any of
// them may be nil, and then costs nothing. The package onceotel has a Trace that
// makes metrics of it.
//
// Each function is called once for each thing that it tells of, after that has
// happened. A function may be called by many goroutines at once: by that of the
// caller whom it is about, and by goroutines of ours. All wait for it, and the
// one that hears of changes for the near copies is among them, so it must return
// soon, and must not call the Loader or the Locker. A panic in it is told the
// Logger, once in ten seconds, and goes no further. The functions are read when
// the Loader or Locker is made.
//
// The context has the values of the caller's, or of one of the callers' where
// there are several, and may have ended. Where there is no caller it has none.
//
// Keys and names are as the caller gave them. They may be secrets, and there may
// be millions of them: nothing to have as a label of a metric. Errors may have a
// key in their text.
//
// # Fetches saved
//
// Every Got is of one [GetKind]. So, in any time,
//
//	gets   = hits + misses + joined + refused
//	misses and joined = Gets for which a fetch would be due
//	saved  = misses + joined - fetches
//
// where fetches is the sum of [TraceFetch.Keys] of all that are not
// [TraceFetch.Behind]. That is what this library has saved beyond what a cache
// without it would: of 50 callers of a key that is not there, in all processes,
// 49 are saved. Over one process it is what that process has saved, and it may be
// less than none for a while, as a fetch is told before the Gets that it answers.
type Trace struct {
	// Got tells of a [Loader.Get] or [Loader.Load], or of one key of a
	// [Loader.GetMany], that is about to return, on the caller's goroutine. A call
	// that is refused for its arguments, because its context had ended before, or
	// because the Loader was closed, is not told.
	Got func(context.Context, TraceGet)

	// Fetched tells of a fetch that has returned, or that is not waited for any
	// more, whatever it does: because its time is over, or all callers have left.
	Fetched func(context.Context, TraceFetch)

	// Waited tells of a load that has waited for another process, once it does
	// not any more. All callers in this process wait in one load.
	Waited func(context.Context, TraceWait)

	// Stored tells of what was fetched and came to be stored in Redis, or did not.
	// What [Loader.Set] stores, and what is not to be kept, is not told.
	Stored func(context.Context, TraceStore)

	// LeaseLost tells of a lease that was lost while the fetch ran under it: the
	// key was deleted or set meanwhile, or the lease could not be renewed in time.
	// It is called when the fetch has ended.
	LeaseLost func(context.Context, TraceLease)

	// RedisFailed tells of an operation in Redis that failed, after all retries. An
	// operation that was given up because its caller's context had ended is not
	// told.
	RedisFailed func(context.Context, TraceRedisError)

	// NearDropped tells of near copies that are not used any more before their
	// time; see [Near].
	NearDropped func(context.Context, TraceNearDrop)

	// Locked tells of an Acquire or a Do, or of a TryAcquire or TryDo, that has
	// the lock, or will not get it. What is refused for its arguments is not told.
	Locked func(context.Context, TraceLock)

	// Unlocked tells of a [Lease] that was released, on the goroutine that did.
	Unlocked func(context.Context, TraceUnlock)
}

// A TraceGet is what [Trace.Got] is told.
type TraceGet struct {
	Key    string
	Kind   GetKind
	Source Source        // where the value came from, or the word that there is none; 0 if it is not known
	Stale  bool          // an old value was returned; see [Result.Stale]
	Took   time.Duration // from when there was nothing to be found until it returns, a GetMany with all its keys; 0 for a hit
	Err    error         // as the caller gets it; a [*PanicError] if Get panics with it
}

// A GetKind says how a Get was answered.
type GetKind int

// The kinds of Gets.
const (
	GetHit     GetKind = iota + 1 // with what was kept: near, in Redis, or in a Store without Redis
	GetMiss                       // by a load that this caller has begun
	GetJoined                     // by a load that another caller of this process had begun
	GetRefused                    // by an error, before it came to a load
)

// String returns the name of k: hit, miss, joined or refused.
func (k GetKind) String() string {
	switch k {
	case GetHit:
		return "hit"
	case GetMiss:
		return "miss"
	case GetJoined:
		return "joined"
	case GetRefused:
		return "refused"
	}
	return "none"
}

// A TraceFetch is what [Trace.Fetched] is told.
type TraceFetch struct {
	Key    string // empty for a batch of several keys
	Keys   int    // how many keys it was to fetch: 1 but for a GetMany
	Behind bool   // nobody waited for it when it began: it is the refresh of a value that is kept
	Blind  bool   // without a lease, because Redis was down
	Took   time.Duration

	// Err is nil, an [ErrNotFound], or the failure: a [*PanicError] if the fetch
	// has panicked; if its context has ended, why: [ErrFetchTimeout],
	// [ErrLockLost], [ErrClosed], or [context.Canceled] if all callers have left;
	// else its own error. That a batch has not found some of its keys is no error.
	Err error
}

// A TraceWait is what [Trace.Waited] is told.
type TraceWait struct {
	Key    string
	Took   time.Duration
	Served bool // the other process, or what it has stored or failed with, was the answer
}

// A TraceStore is what [Trace.Stored] is told.
type TraceStore struct {
	Key     string
	Bytes   int   // as encoded
	Refused bool  // it came too late: the lease was not ours any more
	Err     error // it cannot be encoded or read back, is too large, or Redis failed
}

// A TraceLease is what [Trace.LeaseLost] is told.
type TraceLease struct {
	Key  string
	Held time.Duration // from when the lease was asked for until the fetch had ended
}

// A TraceRedisError is what [Trace.RedisFailed] is told.
type TraceRedisError struct {
	// Op is one of read, acquire, renew, fill, release, set and invalidate of a
	// Loader, where invalidate is of a Delete or Update, and of lock, renew lock and
	// unlock of a Locker.
	Op  string
	Err error
}

// A TraceNearDrop is what [Trace.NearDropped] is told.
type TraceNearDrop struct {
	Copies int  // how many, about
	Reset  bool // all there were: the connection that hears of changes was lost, a cluster has changed, or the database was emptied. Else one value has changed
}

// A TraceLock is what [Trace.Locked] is told.
type TraceLock struct {
	Name     string
	Try      bool // it would not wait
	Waited   time.Duration
	HandedOn bool  // from another holder in this process, without a word to Redis
	Err      error // why there is no lock: [ErrLocked], with the cause if a wait was given up, [ErrClosed], or an [*Error] of Redis
}

// A TraceUnlock is what [Trace.Unlocked] is told.
type TraceUnlock struct {
	Name string
	Held time.Duration
	Err  error // as [Lease.Release] returns it: [ErrLockLost] if the lock was lost
}

// A tracer calls a Trace, if there is one. Its methods are called whether or not
// there is, and do nothing then.
type tracer struct {
	Trace   // a copy
	notices *notices
}

func newTracer(t *Trace, n *notices) tracer {
	if t == nil {
		t = &Trace{}
	}
	return tracer{*t, n}
}

// caught is deferred around each call: what a function of the Trace does must not
// leave a key locked, nor pass for a panic of a fetch.
func (t *tracer) caught() {
	if r := recover(); r != nil {
		t.notices.warn(noticeTrace, fmt.Errorf("%v\n\n%s", r, debug.Stack()))
	}
}

// looked tells of a Get that needs no load. It is found, or has an error.
func (t *tracer) looked(ctx context.Context, key string, found bool, source Source, err error) {
	if t.Got != nil {
		t.got(ctx, key, found, source, err)
	}
}

func (t *tracer) got(ctx context.Context, key string, found bool, source Source, err error) {
	defer t.caught()
	kind := GetRefused
	if found {
		kind = GetHit
	}
	t.Got(ctx, TraceGet{Key: key, Kind: kind, Source: source, Err: err})
}

// A miss is a Get on its way through a load.
type miss struct {
	began time.Time // zero if nobody wants to know
	kind  GetKind
}

func (t *tracer) missed() miss {
	if t.Got == nil {
		return miss{}
	}
	return miss{began: time.Now(), kind: GetRefused}
}

// joined notes that it waits for a load, which it has started or not.
func (m *miss) joined(started bool) {
	switch {
	case started:
		m.kind = GetMiss
	case m.kind != GetMiss:
		m.kind = GetJoined
	}
}

// old notes that what was seen is the answer: a hit, unless it has waited before.
func (m *miss) old() {
	if m.kind == GetRefused {
		m.kind = GetHit
	}
}

// saw notes that the load it waited for had nothing to do, if what was there is
// found.
func (m *miss) saw(found bool) {
	if found {
		m.kind = GetHit
	}
}

// answered tells of the end of m.
func (t *tracer) answered(ctx context.Context, key string, m miss, source Source, stale bool, err error) {
	if t.Got == nil {
		return
	}
	defer t.caught()
	g := TraceGet{Key: key, Kind: m.kind, Source: source, Stale: stale, Err: err}
	if err != nil && !errors.Is(err, ErrNotFound) {
		g.Source = 0
	}
	if m.kind != GetHit {
		g.Took = time.Since(m.began)
	}
	t.Got(ctx, g)
}

// A fetchTrace tells of one fetch, once: when it has ended, or has been given up.
// It is nil if nobody wants to know.
type fetchTrace struct {
	tracer *tracer
	ctx    context.Context // the fetch's
	info   TraceFetch

	mu    sync.Mutex
	began time.Time // zero unless it is under way
}

func (t *tracer) fetching(ctx context.Context, info TraceFetch) *fetchTrace {
	if t.Fetched == nil {
		return nil
	}
	return &fetchTrace{tracer: t, ctx: ctx, info: info}
}

func (f *fetchTrace) begin() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.began = time.Now()
}

func (f *fetchTrace) end(err error) {
	if f == nil {
		return
	}
	f.mu.Lock()
	began := f.began
	f.began = time.Time{}
	f.mu.Unlock()
	if began.IsZero() {
		return
	}
	defer f.tracer.caught()
	f.info.Took, f.info.Err = time.Since(began), f.outcome(err)
	f.tracer.Fetched(f.ctx, f.info)
}

// outcome says why a fetch has failed whose context has ended.
func (f *fetchTrace) outcome(err error) error {
	if err = outcome(f.info.Key, err); !isFailure(err) || f.ctx.Err() == nil {
		return err
	}
	if cause := context.Cause(f.ctx); !errors.Is(cause, flight.ErrAbandoned) {
		return cause
	}
	return context.Canceled
}

func (t *tracer) waited(ctx context.Context, w TraceWait) {
	defer t.caught()
	t.Waited(ctx, w)
}

func (t *tracer) stored(ctx context.Context, s TraceStore) {
	if t.Stored != nil {
		defer t.caught()
		t.Stored(ctx, s)
	}
}

func (t *tracer) leaseLost(ctx context.Context, l TraceLease) {
	if t.LeaseLost != nil {
		defer t.caught()
		t.LeaseLost(ctx, l)
	}
}

// redisFailed returns what the protocol's client is to call, or nil.
func (t *tracer) redisFailed() func(ctx context.Context, op string, err error) {
	if t.RedisFailed == nil {
		return nil
	}
	return func(ctx context.Context, op string, err error) {
		defer t.caught()
		t.RedisFailed(ctx, TraceRedisError{Op: op, Err: err})
	}
}

// nearDropped returns what a near cache is to call, or nil.
func (t *tracer) nearDropped() func(copies int, reset bool) {
	if t.NearDropped == nil {
		return nil
	}
	return func(copies int, reset bool) {
		defer t.caught()
		t.NearDropped(context.Background(), TraceNearDrop{Copies: copies, Reset: reset})
	}
}

// asked returns the time, if somebody wants to know how long a lock is waited for.
func (t *tracer) asked() time.Time {
	if t.Locked == nil {
		return time.Time{}
	}
	return time.Now()
}

func (t *tracer) locked(ctx context.Context, asked time.Time, l TraceLock) {
	if t.Locked != nil {
		defer t.caught()
		l.Waited = time.Since(asked)
		t.Locked(ctx, l)
	}
}

func (t *tracer) unlocked(ls *Lease) {
	if t.Unlocked != nil && !ls.begun.IsZero() {
		defer t.caught()
		t.Unlocked(ls.ctx, TraceUnlock{Name: ls.name.name, Held: time.Since(ls.begun), Err: ls.err})
	}
}
