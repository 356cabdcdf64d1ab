package fetchonce

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/internal/errtext"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/ratelog"
)

// A Trace has hooks that report what a [Loader] or a [Locker] does. A nil hook costs nothing.
// Package onceotel has a Trace that records metrics.
//
// A hook is called once for each event, after the event. Hooks run concurrently, on the callers'
// goroutines and on internal ones. While a hook runs, its goroutine does nothing else, such as
// dropping near entries. So a hook must return quickly and must not call the Loader or Locker. A
// panic in a hook is recovered, and logged at most every ten seconds. [New] and [NewLocker] copy
// the hooks.
//
// The context carries the values of the caller's context. If several callers share the event, it is
// the context of one of them. Without a caller it is empty. It may have ended.
//
// Keys and lock names are as the caller gave them. They may be secret and their number is unlimited:
// do not use them as metric labels. The text of an error may contain a key.
//
// # Fetches saved
//
// Each Get has one [GetKind]. Over any period:
//
//	gets                       = hits + misses + joined + failed
//	fetches without fetchonce  = misses + joined
//	saved                      = misses + joined - fetches
//
// where fetches is the sum of [TraceFetch.Keys] of all fetches that are not [TraceFetch.Background].
// If 50 callers in all processes Get a missing key at once, 49 fetches are saved. For one process
// the number may be negative for a moment, because a fetch is reported before its Gets.
type Trace struct {
	// Got reports a [Loader.Get], a [Loader.Load] or one key of a [Loader.GetMany]. It
	// runs on the caller's goroutine, just before the call returns. Calls with invalid
	// arguments, an ended context or a closed Loader are not reported.
	Got func(context.Context, TraceGet)

	// Fetched reports the end of a fetch: its function returned, it timed out, or all its callers
	// left.
	Fetched func(context.Context, TraceFetch)

	// Waited reports the end of a load's wait for another process. All callers in this
	// process share one wait.
	Waited func(context.Context, TraceWait)

	// Stored reports the result of storing a fetched value in Redis. It does not report
	// [Loader.Set], nor values that are not to be kept.
	Stored func(context.Context, TraceStore)

	// LeaseLost reports a lease that was lost during its fetch, because the key was changed or a
	// renewal failed. It is called when the fetch has ended.
	LeaseLost func(context.Context, TraceLease)

	// RedisFailed reports a Redis operation that failed after all retries. Operations
	// that were cancelled by their caller's context are not reported.
	RedisFailed func(context.Context, TraceRedisError)

	// NearDropped reports near entries that were dropped before their TTL; see [Near].
	NearDropped func(context.Context, TraceNearDrop)

	// Locked reports the result of an Acquire, Do, TryAcquire or TryDo. Calls with invalid arguments,
	// with a context that has ended, or with the context of a hold of the same lock are not reported.
	Locked func(context.Context, TraceLock)

	// Unlocked reports the release of a [Lease], on the goroutine that released it.
	Unlocked func(context.Context, TraceUnlock)
}

// A TraceGet is the event of [Trace.Got].
type TraceGet struct {
	Key    string
	Kind   GetKind
	Source Source        // where the value, or the knowledge that there is none, came from; 0 if unknown
	Stale  bool          // a stale value was returned; see [Result.Stale]
	Took   time.Duration // from the end of the lookup to the return; for a key of a GetMany, from the end of all lookups to the end of all loads; 0 for a hit
	Err    error         // what the caller receives; a [*PanicError] if Get panics with it
}

// A GetKind says how a Get was answered.
type GetKind int

// The kinds of Gets.
const (
	GetHit    GetKind = iota + 1 // by the lookup: near cache, Redis, or a Store without Redis
	GetMiss                      // by a load that this caller started
	GetJoined                    // by a load that another caller of this process started
	GetFailed                    // by an error, before a load
)

// String returns the name of k: hit, miss, joined or failed.
func (k GetKind) String() string {
	switch k {
	case GetHit:
		return "hit"
	case GetMiss:
		return "miss"
	case GetJoined:
		return "joined"
	case GetFailed:
		return "failed"
	}
	return "none"
}

// A TraceFetch is the event of [Trace.Fetched].
type TraceFetch struct {
	Key        string // empty for a batch fetch of several keys
	Keys       int    // number of keys to fetch: 1 except in a GetMany
	Background bool   // no caller waited for it when it started: it refreshes a value that was returned without it
	Unleased   bool   // it ran without a lease, because Redis was unavailable
	Took       time.Duration

	// Err is nil, an [ErrNotFound], the fetch's own error, or a [*PanicError] if the fetch panicked.
	// If the fetch's context ended, Err is the cause: [ErrFetchTimeout], [ErrLockLost], [ErrClosed],
	// or [context.Canceled] if all callers left. A batch fetch that does not find some of its keys
	// has no error.
	Err error
}

// A TraceWait is the event of [Trace.Waited].
type TraceWait struct {
	Key      string
	Took     time.Duration
	Answered bool // the other process answered, with its value or its failure
}

// A TraceStore is the event of [Trace.Stored].
type TraceStore struct {
	Key        string
	Bytes      int   // encoded size
	Superseded bool  // not stored: the lease was lost before the value arrived
	Err        error // it cannot be encoded or read back, is too large, or Redis failed
}

// A TraceLease is the event of [Trace.LeaseLost].
type TraceLease struct {
	Key  string
	Held time.Duration // from the request for the lease to the end of the fetch
}

// A TraceRedisError is the event of [Trace.RedisFailed].
type TraceRedisError struct {
	// Op is, for a Loader, one of read, acquire, renew, fill, release, set and invalidate. Delete
	// and Update report invalidate. For a Locker, Op is one of lock, renew lock and unlock.
	Op  string
	Err error
}

// A TraceNearDrop is the event of [Trace.NearDropped].
type TraceNearDrop struct {
	Copies int  // number of entries, approximate
	Reset  bool // all entries: the tracking connection was lost, the cluster changed, or the database was emptied
}

// A TraceLock is the event of [Trace.Locked].
type TraceLock struct {
	Name         string
	Try          bool // TryAcquire or TryDo
	Waited       time.Duration
	LocalHandoff bool  // taken over from a holder in this process, without a command to Redis
	Err          error // why there is no lock: [ErrLocked], joined with the cause of a wait that ended, [ErrClosed], or an [*Error]
}

// A TraceUnlock is the event of [Trace.Unlocked].
type TraceUnlock struct {
	Name string
	Held time.Duration
	Err  error // as [Lease.Release] returns it: [ErrLockLost] if the lock was lost
}

// A tracer calls the hooks of a Trace. Its methods do nothing where a hook is nil.
type tracer struct {
	Trace // a copy
	log   *ratelog.Log
}

func newTracer(t *Trace, log *ratelog.Log) tracer {
	if t == nil {
		t = &Trace{}
	}
	return tracer{*t, log}
}

// caught is deferred around each call of a hook: a panic in it must not leave a key
// locked, nor be taken for a panic of a fetch.
func (t *tracer) caught() {
	if r := recover(); r != nil {
		t.log.Warn(logTrace, fmt.Errorf("%s\n\n%s", errtext.OfPanic(r), debug.Stack()))
	}
}

// gotByLookup reports a Get that needs no load: it has a value or an error.
func (t *tracer) gotByLookup(ctx context.Context, key string, found bool, source Source, err error) {
	if t.Got != nil {
		t.reportLookup(ctx, key, found, source, err)
	}
}

func (t *tracer) reportLookup(ctx context.Context, key string, found bool, source Source, err error) {
	defer t.caught()
	kind := GetFailed
	if found {
		kind = GetHit
	}
	t.Got(ctx, TraceGet{Key: key, Kind: kind, Source: source, Err: err})
}

// A miss is what is noted for the event of a Get that its lookup did not answer.
type miss struct {
	began time.Time // zero without a Got hook
	kind  GetKind
}

func (t *tracer) missed() miss {
	if t.Got == nil {
		return miss{}
	}
	return miss{began: time.Now(), kind: GetFailed}
}

// joined notes that the Get waits for a load, which it has started or not.
func (m *miss) joined(started bool) {
	switch {
	case started:
		m.kind = GetMiss
	case m.kind != GetMiss:
		m.kind = GetJoined
	}
}

// byLookup notes that a lookup answers the Get: a hit, unless it has waited for a load.
func (m *miss) byLookup() {
	if m.kind == GetFailed {
		m.kind = GetHit
	}
}

// byAcquire notes that the load's ACQUIRE was the Get's lookup: a hit, if it found a value.
func (m *miss) byAcquire(found bool) {
	if found {
		m.kind = GetHit
	}
}

// gotByLoad reports the end of a Get whose first lookup did not answer it.
func gotByLoad[V any](ctx context.Context, t *tracer, key string, m miss, o *outcome[V]) {
	if t.Got != nil {
		t.reportLoad(ctx, m, TraceGet{Key: key, Source: o.result.Source, Stale: o.result.Stale, Err: o.err})
	}
}

func (t *tracer) reportLoad(ctx context.Context, m miss, g TraceGet) {
	defer t.caught()
	if g.Err != nil && !errors.Is(g.Err, ErrNotFound) {
		g.Source = 0
	}
	g.Kind, g.Err = m.kind, callerError(g.Key, g.Err)
	if m.kind != GetHit {
		g.Took = time.Since(m.began)
	}
	t.Got(ctx, g)
}

// A fetchTrace reports one fetch, once: when it has ended, or no caller waits for it any more.
// It is nil without a Fetched hook.
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

// Begin notes that the fetch starts.
func (f *fetchTrace) Begin() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.began = time.Now()
}

// End reports the fetch, if it has begun and was not reported before.
func (f *fetchTrace) End(err error) {
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

// outcome returns the error of a fetch; if its context has ended, the cause of that.
func (f *fetchTrace) outcome(err error) error {
	if err = callerError(f.info.Key, err); !mayFallBack(err) || f.ctx.Err() == nil {
		return err
	}
	if cause := context.Cause(f.ctx); !errors.Is(cause, flight.ErrAbandoned) {
		return cause
	}
	return context.Canceled
}

func (t *tracer) waited(ctx context.Context, w TraceWait) {
	if t.Waited != nil {
		defer t.caught()
		t.Waited(ctx, w)
	}
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

// lockRequested returns the time, if there is a Locked hook.
func (t *tracer) lockRequested() time.Time {
	if t.Locked == nil {
		return time.Time{}
	}
	return time.Now()
}

func (t *tracer) locked(ctx context.Context, requested time.Time, l TraceLock) {
	if t.Locked != nil {
		defer t.caught()
		l.Waited = time.Since(requested)
		t.Locked(ctx, l)
	}
}

func (t *tracer) unlocked(ls *Lease) {
	if t.Unlocked != nil && !ls.begun.IsZero() {
		defer t.caught()
		t.Unlocked(ls.ctx, TraceUnlock{Name: ls.name, Held: time.Since(ls.begun), Err: ls.err})
	}
}
