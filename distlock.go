package fetchonce

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/lease"
	"github.com/fetchonce/fetchonce/internal/lockqueue"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/ratelog"
)

// A Locker gives a lock to one holder at a time, in all processes that share a Redis, or to several
// holders with [LockOptions.Slots]. [NewLocker] returns one. It is safe for concurrent use, and must
// be closed.
//
// Callers wait in a queue. The process that has waited longest gets the lock next, for its
// goroutine that has waited longest. It may then pass the lock to its other goroutines that waited
// at that moment: for at most 16 holds in all, and not later than 10 ms after it got the lock. With
// Slots above 1, it passes nothing on.
//
// A lock in Redis saves work. It does not make work safe. It is lost if Redis fails over to a
// replica that does not have it, or if a process is stopped for longer than its lease. The holder's
// context then ends. If two holders at once do harm, also check [Lease.Fence] in the database.
//
// If Redis does not answer, the methods return an [*Error] and run nothing.
type Locker struct {
	opt     LockOptions
	queue   *lockqueue.Queue
	client  *client.Client
	log     *ratelog.Log
	trace   tracer
	closing sync.Once
	closed  atomic.Bool
}

// NewLocker returns a Locker for the locks under opt.Prefix. It accepts the clients that [New]
// accepts. The error is an [*Error] that names the invalid option, or says why the client is not
// accepted.
func NewLocker(rdb redis.UniversalClient, opt LockOptions) (*Locker, error) {
	err := opt.check()
	cluster, refused := client.Check(rdb)
	if err == nil {
		err = refused
	}
	if err != nil {
		return nil, &Error{Op: "new", Err: err}
	}
	opt = opt.withDefaults()
	names := protocol.NewNamespace(opt.Prefix, "")
	c := client.Open(rdb, cluster)
	lk := &Locker{opt: opt, client: c, log: ratelog.New(opt.Logger, "prefix", opt.Prefix, "type", "lock", "instance", cmp.Or(opt.Instance, instance()))}
	lk.trace = newTracer(opt.Trace, lk.log)
	scripts := protocol.NewClient(c.Router.Link(opt.RedisBreaker, opt.RedisTimeout), names, c.Mailbox.Process(), opt.RedisTimeout, c.Cluster)
	scripts.Renewals = c.Router.Link(0, 0)
	scripts.Failed = lk.trace.redisFailed()
	scripts.Unnotified = func(err error) { lk.log.Once(logNoPublish, err) }
	lk.queue = lockqueue.New(lockqueue.Config{
		Redis: scripts, Names: names, Mailbox: c.Mailbox,
		Lease: opt.Lease, Slots: opt.Slots, RedisTimeout: opt.RedisTimeout,
	})
	return lk, nil
}

// Do waits for the lock, calls fn while it holds the lock, and releases it, even if fn panics. The
// context of fn ends with the cause [ErrLockLost] if the lock is lost, and [ErrMaxHold] if it is
// held for too long. fn must then stop.
//
// Do returns fn's error unchanged, joined with ErrLockLost if the lock was lost. If ctx ends before
// fn is called, the error wraps [ErrLocked] and the cause. If Redis fails or does not answer within
// RedisTimeout, the error is an [*Error], and fn is not called. A Do with the context of a hold of
// the same name returns an *Error, because it would wait for itself.
//
// Err and Done of fn's context also check the clock. So if the process was stopped for longer than
// the lease, the next call of Err or Done reports the end. A context that is derived from it, for
// example by [context.WithTimeout], ends a moment later, when the runtime has run its timers. Code
// that must not continue without the lock must check the context of fn itself.
func (lk *Locker) Do(ctx context.Context, name string, fn func(ctx context.Context) error) error {
	return lk.do(ctx, name, fn, lk.Acquire)
}

// TryDo is like [Locker.Do], but does not wait: it returns [ErrLocked] if the lock is held or others
// wait for it. If ctx ends first, the error wraps ErrLocked and the cause.
func (lk *Locker) TryDo(ctx context.Context, name string, fn func(ctx context.Context) error) error {
	return lk.do(ctx, name, fn, lk.TryAcquire)
}

func (lk *Locker) do(ctx context.Context, name string, fn func(ctx context.Context) error,
	acquire func(context.Context, string) (context.Context, *Lease, error),
) (err error) {
	if fn == nil {
		return &Error{Op: "lock", Key: name, Err: errors.New("the function is nil")}
	}
	ctx, ls, err := acquire(ctx, name)
	if err != nil {
		return err
	}
	// Deferred, so that the lock is released after a panic and a Goexit, too.
	defer func() {
		switch back := ls.Release(); {
		case back == nil:
		case !errors.Is(back, ErrLockLost):
			// fn had the lock for as long as it ran, so Do did not fail.
			lk.log.Warn(logNotReleased, keyless(back))
		case err == nil:
			err = ErrLockLost
		default:
			err = errors.Join(err, ErrLockLost)
		}
	}()
	return fn(ctx)
}

// Acquire waits for the lock. It returns a [Lease], which the caller must release, and a context
// that ends when the lease does; see [Locker.Do]. A caller whose ctx has ended never gets the lock:
// the error wraps [ErrLocked] and the cause. After [LockOptions.MaxWait] it is ErrLocked, after
// Close [ErrClosed], and otherwise an [*Error].
func (lk *Locker) Acquire(ctx context.Context, name string) (context.Context, *Lease, error) {
	if err := lk.check(ctx, name); err != nil {
		return ctx, nil, err
	}
	requested := lk.trace.lockRequested()
	limit, stop := lk.waitLimit()
	defer stop()
	for {
		h, err := lk.queue.Acquire(ctx, name, limit)
		if err != nil {
			err = lockError(ctx, name, err)
			lk.trace.locked(ctx, requested, TraceLock{Name: name, Err: err})
			return ctx, nil, err
		}
		held, ls, err := lk.begin(ctx, name, h)
		if !errors.Is(err, errTooLate) {
			lk.trace.locked(ctx, requested, TraceLock{Name: name, LocalHandoff: h.Local(), Err: err})
			return held, ls, err
		}
		// This process was stopped between the grant and its use.
	}
}

// waitLimit returns a channel that is closed after MaxWait, and nil without a MaxWait.
func (lk *Locker) waitLimit() (limit <-chan struct{}, stop func() bool) {
	if lk.opt.MaxWait == 0 {
		return nil, func() bool { return true }
	}
	passed := make(chan struct{})
	return passed, time.AfterFunc(lk.opt.MaxWait, func() { close(passed) }).Stop
}

// TryAcquire is like [Locker.Acquire], but does not wait: it returns [ErrLocked] if the lock is held
// or others wait for it. If ctx ends first, the error wraps ErrLocked and the cause. If the answer
// of Redis arrives after the lease has ended, the error is an [*Error].
func (lk *Locker) TryAcquire(ctx context.Context, name string) (context.Context, *Lease, error) {
	if err := lk.check(ctx, name); err != nil {
		return ctx, nil, err
	}
	requested := lk.trace.lockRequested()
	h, err := lk.queue.TryAcquire(ctx, name)
	if err != nil {
		err = lockError(ctx, name, err)
		lk.trace.locked(ctx, requested, TraceLock{Name: name, Try: true, Err: err})
		return ctx, nil, err
	}
	held, ls, err := lk.begin(ctx, name, h)
	if errors.Is(err, errTooLate) {
		err = &Error{Op: "lock", Key: name, Err: errTooLate}
	}
	lk.trace.locked(ctx, requested, TraceLock{Name: name, Try: true, Err: err})
	return held, ls, err
}

// lockError returns the error of the queue as callers know it.
func lockError(ctx context.Context, name string, err error) error {
	switch {
	case errors.Is(err, lockqueue.ErrClosed):
		return ErrClosed
	case errors.Is(err, lockqueue.ErrBusy):
		return ErrLocked
	case errors.Is(err, lockqueue.ErrEnded):
		return &endedError{name, context.Cause(ctx)}
	}
	return &Error{Op: "lock", Key: name, Err: err}
}

// errTooLate says that the answer to a request came when the lease it granted had ended.
var errTooLate = errors.New("redis granted the lock too late: its lease has ended")

var errReentrant = errors.New("this call holds the lock already, and would wait for itself")

// heldKey is the context key of the Lease under which a context was made. The context of that Lease
// may have another one, of an outer hold.
type heldKey struct{ locker *Locker }

func (lk *Locker) check(ctx context.Context, name string) error {
	if ctx == nil {
		return &Error{Op: "lock", Key: name, Err: errors.New("the context is nil")}
	}
	for ls, _ := ctx.Value(heldKey{lk}).(*Lease); ls != nil; ls, _ = ls.ctx.Value(heldKey{lk}).(*Lease) {
		if ls.name == name && !ls.released.Load() {
			return &Error{Op: "lock", Key: name, Err: errReentrant}
		}
	}
	if ctx.Err() != nil {
		return &endedError{name, context.Cause(ctx)}
	}
	return nil
}

// A Lease is a hold of a lock.
type Lease struct {
	locker   *Locker
	name     string
	hold     *lockqueue.Hold
	keeper   *lease.Keeper
	ctx      context.Context // of the caller of Acquire; only its values are used
	begun    time.Time       // zero if the lease had ended before Acquire returned
	maxHold  *time.Timer     // nil without a MaxHold
	released atomic.Bool
	once     sync.Once
	err      error // what Release returns
	traced   atomic.Bool
}

// Fence returns the fencing token of the hold: a number higher than those of all holds of this lock
// that Redis granted before. A table that stores the highest fence can refuse a holder that does
// not know that its lease has ended:
//
//	UPDATE thing SET state = $1, fence = $2 WHERE id = $3 AND fence < $2
//
// With [LockOptions.Slots] above 1, two calls of Acquire may return in another order than Redis
// granted their leases.
//
// The next fence may be lower if Redis has lost all data of the lock, or if the server's clock is
// set back by more than a second.
func (ls *Lease) Fence() int64 { return ls.hold.Fence() }

// Release releases the lock. It works after the context has ended, and takes as long as
// one operation; see [LockOptions.RedisTimeout].
// It returns [ErrLockLost] if the lock was lost before. It returns an [*Error] if Redis did not
// answer: the lock then stays held until a background request releases it, or until the lease ends.
//
// If the connection breaks after Redis released the lock and before its answer arrives, Release
// sends the request again, finds no lease, and returns ErrLockLost. A second Release does nothing
// and returns the same error.
func (ls *Lease) Release() error {
	ls.once.Do(func() {
		ls.released.Store(true)
		if ls.maxHold != nil {
			ls.maxHold.Stop()
		}
		held := ls.keeper.Stop()
		switch err := ls.hold.Release(held); {
		case errors.Is(err, lockqueue.ErrLost):
			ls.err = ErrLockLost
		case err != nil:
			ls.err = &Error{Op: "release", Key: ls.name, Err: err}
		}
	})
	if ls.traced.CompareAndSwap(false, true) { // not inside once: a Trace may call Release
		ls.locker.trace.unlocked(ls)
	}
	return ls.err
}

// Close ends the Locker. Waiting callers receive [ErrClosed]. The contexts of holders end with that
// cause, and their leases are no longer renewed. Close does not release their locks, because only a
// holder knows when it has stopped: a lock is held until [Lease.Release] or the end of its lease.
//
// Close returns when all holders have released their locks or their leases have ended. It also waits
// for requests that may change the holder of a lock, at most RedisTimeout for each, and then undoes
// failed requests within another RedisTimeout.
func (lk *Locker) Close() error {
	lk.closing.Do(func() {
		lk.closed.Store(true)
		lk.queue.Close(ErrClosed)
		lk.client.Close(ErrClosed)
	})
	return nil
}

// begin starts a hold: from now on its lease is renewed. It fails if the lease has ended,
// or the Locker is closed.
func (lk *Locker) begin(ctx context.Context, name string, h *lockqueue.Hold) (context.Context, *Lease, error) {
	ls := &Lease{locker: lk, name: name, hold: h, ctx: ctx}
	begun := time.Now()
	held, keeper := lease.Keep(context.WithValue(ctx, heldKey{lk}, ls), h.Sent(), lk.opt.Lease, ErrLockLost,
		func(ctx context.Context) (bool, error) { return lk.renew(ctx, h, begun) })
	ls.keeper = keeper
	closed := h.Begin(keeper.End)
	keeper.OnLost(h.Lost)
	switch {
	case !keeper.Held():
		_ = ls.Release()
		return ctx, nil, errTooLate
	case closed != nil:
		_ = ls.Release()
		return ctx, nil, ErrClosed
	case lk.opt.MaxHold > 0:
		ls.maxHold = time.AfterFunc(lk.opt.MaxHold, func() { keeper.End(ErrMaxHold) })
	}
	ls.begun = begun
	return held, ls, nil
}

var errNotRenewed = errors.New("the lock is not renewed any more")

func (lk *Locker) renew(ctx context.Context, h *lockqueue.Hold, begun time.Time) (bool, error) {
	if lk.closed.Load() || lk.opt.MaxHold > 0 && time.Since(begun) >= lk.opt.MaxHold {
		return false, errNotRenewed
	}
	return h.Renew(ctx)
}
