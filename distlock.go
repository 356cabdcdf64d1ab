package fetchonce

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/lease"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// A Locker lets one holder at a time do a thing, of all processes that share a
// Redis; or a number of them, see [LockOptions.Slots].
//
// Waiting is a queue: the lock goes to the process that has waited longest, and
// in that process to the goroutine that has. A process that gets it serves the
// goroutines that wait there, but only so many, and only for a few
// milliseconds, before the next process has its turn.
//
// A lock in Redis saves work; it does not by itself make work safe. It can be
// lost: Redis may fail over to a replica that has not heard of it, and a
// process may be stopped for longer than its lease. The holder's context then
// ends. Where two holders at once would do harm, also check [Lease.Fence] where
// the data lives.
//
// When Redis does not answer, the methods say so with an [*Error], and nothing
// is run.
type Locker struct {
	opt     LockOptions
	router  *batch.Router
	client  *protocol.Client
	notices notices
	trace   tracer
	ns      *protocol.Namespace
	mailbox *wake.Mailbox
	channel string
	unused  func() // ends that

	ctx       context.Context // ends with Close; no request is sent with it, see send
	stop      context.CancelFunc
	closing   sync.Once
	leftovers cleanup.List

	mu     sync.Mutex
	closed bool
	names  map[string]*lockName
	open   int           // what Close waits for: leases, and requests that may change who has one
	idle   chan struct{} // closed when the locker is closed and open is 0
}

// A lockName is what goes on under one name in this process. It is there while
// somebody here holds the lock or wants to.
type lockName struct {
	name string
	lock protocol.Lock
	left chan struct{} // receives when the last of waiters has left

	// Guarded by the locker's mu.
	waiters list.List // of *lockWaiter, the longest first
	held    []*holding
	asking  bool // a goroutine is asking Redis, for itself or on behalf of the waiters
	trying  int  // calls that ask Redis for themselves
}

// A lockWaiter is a goroutine that waits for a lock.
type lockWaiter struct {
	ctx   context.Context // the caller's, without its end
	ready chan lockTurn   // has room for one

	// Guarded by the locker's mu.
	place *list.Element // in the local queue; nil if it is not in it
	over  bool          // it has left, or something was sent to ready
}

// A lockTurn is what a waiter waits for.
type lockTurn struct {
	holding *holding
	err     error
}

// A holding is a lease in Redis, which may go from hand to hand in this process.
type holding struct {
	owner string
	began time.Time // when this process got it

	// Guarded by the locker's mu.
	sent   time.Time // when what it lives on was sent: the request for it, or the last renewal
	fence  int64     // of the present turn
	handed bool      // it was handed on in this process
	more   int       // how many turns it may still be handed on for
	keeper *lease.Keeper
}

const (
	// How long a process goes on by itself while others may be waiting. Handing
	// on inside the process costs next to nothing, so turns that are short are
	// bundled; for long ones, asking the others costs next to nothing.
	mostTurns = protocol.LockFences
	turnsTime = 10 * time.Millisecond

	lookAgain      = time.Second            // a waiter looks this often whether a message was lost, or after a lease if that is shorter
	lookLater      = 50 * time.Millisecond  // and so much after a lease should have ended, at most
	firstDeafLook  = 10 * time.Millisecond  // without a mailbox that hears, it looks
	latestDeafLook = 100 * time.Millisecond // more often
)

// NewLocker returns a locker for the locks under opt.Prefix. It must be closed.
// It accepts the clients that [New] accepts. The error is an [*Error] that names
// the option that cannot be used, or says why the client cannot.
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
	ns := protocol.NewNamespace(opt.Prefix, "")
	mailbox := wake.Open(rdb)
	router := batch.NewRouter(rdb)
	lk := &Locker{
		opt: opt, router: router, ns: ns, mailbox: mailbox, channel: ns.Channel(mailbox.Process()),
		client: protocol.NewClient(router, ns, mailbox.Process(), opt.RedisTimeout, cluster),
		names:  make(map[string]*lockName), idle: make(chan struct{}),
	}
	lk.leftovers.IsFinal = protocol.IsFinal
	lk.unused = mailbox.Use(lk.channel)
	lk.notices = notices{logger: opt.Logger}
	lk.trace = newTracer(opt.Trace, &lk.notices)
	lk.client.Failed = lk.trace.redisFailed()
	lk.client.Unnotified = lk.notices.unnotified
	lk.ctx, lk.stop = context.WithCancel(context.Background())
	return lk, nil
}

// Do waits for the lock, calls fn while it holds it, and gives it back, also if
// fn panics. The context given to fn ends with cause [ErrLockLost] when the
// lock is lost, and with [ErrMaxHold] when it is held for too long; fn must
// then stop.
//
// Do returns fn's error as it is; if the lock was lost meanwhile, joined with
// ErrLockLost. It is an error to call Do for a name inside a Do, or with the
// context of a [Lease], of the same name: it would wait for itself.
//
// When ctx ends before fn was called, the error is [ErrLocked] joined with the
// cause of that. When Redis fails, or does not answer within RedisTimeout, the error is an
// [*Error], and fn is not called.
//
// The context given to fn compares the clock in Err and Done. So after a pause of the
// process that was longer than the lease, it has ended when fn asks it next. A context
// that is derived from it, with [context.WithTimeout] or another function, does not
// compare the clock: after such a pause it ends a moment later, when the runtime has run
// its timers. Code that must not go on without the lock asks the context given to fn.
func (lk *Locker) Do(ctx context.Context, name string, fn func(ctx context.Context) error) error {
	return lk.do(ctx, name, fn, lk.Acquire)
}

// TryDo is like [Locker.Do], but does not wait: if the lock is held, or others
// wait for it, it returns [ErrLocked].
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
	// Deferred, so that a panic and a Goexit go on their way with the lock given back.
	defer func() {
		switch back := ls.Release(); {
		case back == nil:
		case !errors.Is(back, ErrLockLost):
			// fn had the lock for as long as it ran, so that is no error of Do's.
			lk.opt.Logger.LogAttrs(ctx, slog.LevelWarn, "fetchonce: lock not released; it ends with its lease",
				slog.Any("error", keyless(back)))
		case err == nil:
			err = ErrLockLost
		default:
			err = errors.Join(err, ErrLockLost)
		}
	}()
	return fn(ctx)
}

// Acquire waits for the lock and returns its lease, which must be released, and
// a context to work with, as [Locker.Do] gives to fn. That context ends with
// the lease. A caller whose ctx has ended never has the lock.
func (lk *Locker) Acquire(ctx context.Context, name string) (context.Context, *Lease, error) {
	if err := lk.check(ctx, name); err != nil {
		return ctx, nil, err
	}
	asked := lk.trace.asked()
	for {
		n, h, err := lk.wait(ctx, name)
		if err != nil {
			lk.trace.locked(ctx, asked, TraceLock{Name: name, Err: err})
			return ctx, nil, err
		}
		held, ls, err := lk.begin(ctx, n, h)
		if !errors.Is(err, errTooLate) {
			lk.trace.locked(ctx, asked, TraceLock{Name: name, LocalHandoff: ls != nil && ls.handed, Err: err})
			return held, ls, err
		}
		// This process was stopped between having the lease and using it.
	}
}

// TryAcquire is like [Locker.Acquire], but does not wait: if the lock is held,
// or others wait for it, it returns [ErrLocked]. If ctx ends first, it returns the cause
// of that; if the answer of Redis comes when the lease has ended, an [*Error].
func (lk *Locker) TryAcquire(ctx context.Context, name string) (context.Context, *Lease, error) {
	if err := lk.check(ctx, name); err != nil {
		return ctx, nil, err
	}
	asked := lk.trace.asked()
	n, h, err := lk.try(ctx, name)
	if err != nil {
		lk.trace.locked(ctx, asked, TraceLock{Name: name, Try: true, Err: err})
		return ctx, nil, err
	}
	held, ls, err := lk.begin(ctx, n, h)
	if errors.Is(err, errTooLate) {
		err = &Error{Op: "lock", Key: name, Err: errTooLate}
	}
	lk.trace.locked(ctx, asked, TraceLock{Name: name, Try: true, Err: err})
	return held, ls, err
}

// errTooLate says that the answer to a request came when the lease it granted had ended.
var errTooLate = errors.New("redis granted the lock too late: its lease has ended")

var errReentrant = errors.New("this call holds the lock already, and would wait for itself")

// heldKey is the key of a context's value that says which lease of a locker it
// works under; that lease's own context may say another.
type heldKey struct{ locker *Locker }

func (lk *Locker) check(ctx context.Context, name string) error {
	if ctx == nil {
		return &Error{Op: "lock", Key: name, Err: errors.New("the context is nil")}
	}
	for ls, _ := ctx.Value(heldKey{lk}).(*Lease); ls != nil; ls, _ = ls.ctx.Value(heldKey{lk}).(*Lease) {
		if ls.name.name == name && !ls.released.Load() {
			return &Error{Op: "lock", Key: name, Err: errReentrant}
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// A Lease is the right to do what a lock is for.
type Lease struct {
	locker   *Locker
	name     *lockName
	holding  *holding
	keeper   *lease.Keeper
	fence    int64
	ctx      context.Context // of who took it; only for its values
	begun    time.Time       // when it could be used; zero if it never could
	handed   bool            // from another in this process
	tooLong  *time.Timer     // nil without a MaxHold
	released atomic.Bool
	once     sync.Once
	err      error       // what Release returns
	traced   atomic.Bool // the Trace was called, or is
}

// Fence returns a number that is higher than that of every lease of this lock
// before. Data that remembers the highest fence it has seen can refuse a holder
// that does not know yet that its lease has ended:
//
//	UPDATE thing SET state = $1, fence = $2 WHERE id = $3 AND fence < $2
//
// Several holders of a semaphore have different fences, each higher than those
// given out before it.
func (ls *Lease) Fence() int64 { return ls.fence }

// Release gives the lock back. It works after the context ended, and takes no
// longer than RedisTimeout. It returns [ErrLockLost] if the lock was lost
// before, and an [*Error] if Redis did not answer: then the lock stays blocked
// until Redis answers, or until the lease has ended. If a connection breaks after
// Redis released the lock and before its answer arrives, Release is sent again,
// finds no lease, and returns ErrLockLost too. A second Release does nothing, and
// returns what the first did.
func (ls *Lease) Release() error {
	ls.once.Do(func() {
		ls.released.Store(true)
		if ls.tooLong != nil {
			ls.tooLong.Stop()
		}
		held := ls.keeper.Stop()
		ls.err = ls.locker.handOn(ls.name, ls.holding, held)
	})
	if ls.traced.CompareAndSwap(false, true) { // not inside once: a Trace may call Release
		ls.locker.trace.unlocked(ls)
	}
	return ls.err
}

// Close ends the locker. Callers that wait get [ErrClosed]. The contexts of the
// holders end with that cause, and their leases are not renewed any more. A holder
// keeps its lock until it calls [Lease.Release], as only the holder knows when it has
// stopped. Close returns when all holders have released their locks, or their leases
// have ended. Requests to Redis that may change who holds a lock are waited for, each
// at most RedisTimeout; what failed requests have left behind is then taken back, also
// within RedisTimeout.
func (lk *Locker) Close() error {
	lk.closing.Do(func() {
		for _, k := range lk.shut() {
			k.End(ErrClosed)
		}
		lk.stop()
		<-lk.idle
		lk.leftovers.Close(lk.opt.RedisTimeout)
		lk.router.Close(ErrClosed)
		lk.unused()
		lk.mailbox.Close()
	})
	return nil
}

// shut closes the locker to newcomers, sends the waiters away, and returns the
// keepers of what is held.
func (lk *Locker) shut() []*lease.Keeper {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	lk.closed = true
	var keepers []*lease.Keeper
	for _, n := range lk.names {
		n.fail(ErrClosed)
		for _, h := range n.held {
			if h.keeper != nil { // else it has not begun, and never will
				keepers = append(keepers, h.keeper)
			}
		}
	}
	lk.checkIdle()
	return keepers
}

// begin starts a turn: from now on its lease is kept. It fails if the lease has
// ended already, or the locker was closed.
func (lk *Locker) begin(ctx context.Context, n *lockName, h *holding) (context.Context, *Lease, error) {
	ls := &Lease{locker: lk, name: n, holding: h, ctx: ctx}
	begun := time.Now()
	lk.mu.Lock()
	sent := h.sent
	ls.fence, ls.handed = h.fence, h.handed
	lk.mu.Unlock()
	held, keeper := lease.Keep(context.WithValue(ctx, heldKey{lk}, ls), sent, lk.opt.Lease, ErrLockLost,
		func(ctx context.Context) (bool, error) { return lk.renew(ctx, n, h, begun) })
	ls.keeper = keeper
	lk.mu.Lock()
	h.keeper = keeper
	closed := lk.closed
	lk.mu.Unlock()
	keeper.WhenLost(func() { lk.lost(n, h) })
	switch {
	case !keeper.Held():
		_ = ls.Release()
		return ctx, nil, errTooLate
	case closed:
		_ = ls.Release()
		return ctx, nil, ErrClosed
	case lk.opt.MaxHold > 0:
		ls.tooLong = time.AfterFunc(lk.opt.MaxHold, func() { keeper.End(ErrMaxHold) })
	}
	ls.begun = begun
	return held, ls, nil
}

var errNotRenewed = errors.New("not to be renewed any more")

func (lk *Locker) renew(ctx context.Context, n *lockName, h *holding, begun time.Time) (bool, error) {
	sent := time.Now()
	if lk.ctx.Err() != nil || lk.opt.MaxHold > 0 && sent.Sub(begun) >= lk.opt.MaxHold {
		return false, errNotRenewed
	}
	ours, err := lk.client.RenewLock(ctx, n.lock, lk.wish(h.owner))
	if err == nil && ours {
		lk.mu.Lock()
		h.sent = sent
		lk.mu.Unlock()
	}
	return ours, err
}

// fences returns how many fences a lease in Redis comes with: one for each
// turn. A semaphore's leases are not handed on inside a process, for then a
// later turn of one lease would have a lower fence than another lease.
func (lk *Locker) fences() int {
	if lk.opt.Slots > 1 {
		return 1
	}
	return mostTurns
}

// wait waits for a turn.
func (lk *Locker) wait(ctx context.Context, name string) (*lockName, *holding, error) {
	n, w, err := lk.join(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	h, err := lk.await(ctx, n, w)
	if errors.Is(err, errEnded) {
		err = errors.Join(ErrLocked, context.Cause(ctx))
	}
	return n, h, err
}

// join puts a waiter at the end of the local queue of a name, and makes somebody ask
// Redis if nobody does.
func (lk *Locker) join(ctx context.Context, name string) (*lockName, *lockWaiter, error) {
	w := newWaiter(ctx)
	lk.mu.Lock()
	defer lk.mu.Unlock()
	if lk.closed {
		return nil, nil, ErrClosed
	}
	n := lk.named(name)
	w.place = n.waiters.PushBack(w)
	lk.hire(n)
	return n, w, nil
}

func newWaiter(ctx context.Context) *lockWaiter {
	return &lockWaiter{ctx: context.WithoutCancel(ctx), ready: make(chan lockTurn, 1)}
}

// errEnded says that the context of a waiter has ended.
var errEnded = errors.New("the context has ended")

// await waits for what is sent to a waiter. A context that has ended always loses:
// what was sent is then handed on in the background, and await returns errEnded.
func (lk *Locker) await(ctx context.Context, n *lockName, w *lockWaiter) (*holding, error) {
	var t lockTurn
	select {
	case t = <-w.ready:
	case <-ctx.Done():
		if lk.leave(n, w) {
			return nil, errEnded
		}
		t = <-w.ready
	}
	if ctx.Err() == nil {
		return t.holding, t.err
	}
	if t.holding != nil {
		lk.mu.Lock()
		lk.run(func() { _ = lk.handOn(n, t.holding, true) }) // ends within RedisTimeout
		lk.mu.Unlock()
	}
	return nil, errEnded
}

// leave ends the wait of a waiter. It reports whether nothing was sent to it before.
func (lk *Locker) leave(n *lockName, w *lockWaiter) bool {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	if w.over {
		return false
	}
	w.over = true
	if w.place == nil {
		return true
	}
	n.waiters.Remove(w.place)
	w.place = nil
	if n.waiters.Len() == 0 {
		select {
		case n.left <- struct{}{}:
		default:
		}
		lk.drop(n)
	}
	return true
}

// named returns what goes on under a name. The caller holds lk.mu, as it does
// for all the functions below that say nothing about it and take a lockName.
func (lk *Locker) named(name string) *lockName {
	n := lk.names[name]
	if n == nil {
		n = &lockName{name: name, lock: lk.ns.Lock(name), left: make(chan struct{}, 1)}
		lk.names[name] = n
	}
	return n
}

// drop forgets a name under which nothing goes on any more.
func (lk *Locker) drop(n *lockName) {
	if n.waiters.Len() == 0 && len(n.held) == 0 && !n.asking && n.trying == 0 && lk.names[n.name] == n {
		delete(lk.names, n.name)
	}
}

// next takes the longest waiter out of the queue and gives it its turn.
func (n *lockName) next(t lockTurn) {
	w := n.waiters.Remove(n.waiters.Front()).(*lockWaiter)
	w.place = nil
	w.send(t)
}

// send gives a waiter what it waits for.
func (w *lockWaiter) send(t lockTurn) {
	w.over = true
	w.ready <- t // never blocks
}

func (n *lockName) fail(err error) {
	for n.waiters.Len() > 0 {
		n.next(lockTurn{err: err})
	}
}

// hire makes somebody ask Redis if there is a reason to.
func (lk *Locker) hire(n *lockName) {
	if lk.wanting(n) {
		n.asking = true
		lk.run(func() { lk.ask(n) }) // ends when nobody waits, or with lk.ctx
	}
}

func (lk *Locker) wanting(n *lockName) bool {
	return n.waiters.Len() > 0 && !n.asking && len(n.held) < lk.opt.Slots && !lk.closed
}

// run runs f on a goroutine that Close waits for.
func (lk *Locker) run(f func()) {
	lk.open++
	go func() {
		defer lk.done()
		f()
	}()
}

// done says that something which Close waits for has ended.
func (lk *Locker) done() {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	lk.open--
	lk.checkIdle()
}

func (lk *Locker) checkIdle() {
	if !lk.closed || lk.open > 0 {
		return
	}
	select {
	case <-lk.idle: // a lease that was lost was released after Close
	default:
		close(lk.idle)
	}
}

func (lk *Locker) hold(n *lockName, h *holding) {
	n.held = append(n.held, h)
	lk.open++
}

func (lk *Locker) unhold(n *lockName, h *holding) {
	i := slices.Index(n.held, h)
	if i < 0 {
		return
	}
	n.held = slices.Delete(n.held, i, i+1)
	lk.open--
	lk.checkIdle()
}

// lost is called when a lease was lost: those who wait here must not wait for
// its holder to notice.
func (lk *Locker) lost(n *lockName, h *holding) {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	lk.unhold(n, h)
	lk.hire(n)
	lk.drop(n)
}

// handOn ends a turn. The next one is that of a waiter here, or whose turn it
// is in Redis. held says that the lease is believed to be ours. Its requests change who
// holds the lock: they are sent with a context that does not end before their answer.
func (lk *Locker) handOn(n *lockName, h *holding, held bool) error {
	ask, here := lk.endTurn(n, h, held)
	if here {
		return nil
	}
	defer lk.done()
	if ask {
		return lk.passOn(n, h)
	}
	ours, err := lk.client.ReleaseLock(context.Background(), n.lock, lk.wish(h.owner))
	switch {
	case !held:
		return ErrLockLost // and that was only to be sure that nothing is left of it
	case err != nil:
		lk.takeBack(n.lock, h.owner, 0)
		return &Error{Op: "release", Key: n.name, Err: err}
	case !ours:
		return ErrLockLost
	}
	return nil
}

// endTurn hands the lease to the next waiter here, if there is one and it may, and
// reports that as here. Else it reports whether, while giving the lease back, one should
// ask for another; Close then waits until the caller calls done.
func (lk *Locker) endTurn(n *lockName, h *holding, held bool) (ask, here bool) {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	if held && h.more > 0 && n.waiters.Len() > 0 && time.Since(h.began) < turnsTime && !lk.closed {
		h.more--
		h.fence++
		h.handed = true
		h.keeper = nil
		n.next(lockTurn{holding: h})
		return false, true
	}
	lk.open++ // before unhold, so that Close does not take the locker for idle in between
	lk.unhold(n, h)
	if !held {
		lk.hire(n)
	} else if ask = lk.wanting(n); ask {
		n.asking = true
	}
	lk.drop(n)
	return ask, false
}

// passOn gives a lease back and asks for another in one request.
func (lk *Locker) passOn(n *lockName, h *holding) error {
	r := lk.request(n)
	r.wish.Return = h.owner
	answer, err := r.send(lk)
	lk.mu.Lock()
	lk.run(func() { lk.goOn(r, answer, err) }) // as in hire
	lk.mu.Unlock()
	if err != nil {
		lk.takeBack(n.lock, h.owner, lk.opt.RedisTimeout)
		return &Error{Op: "release", Key: n.name, Err: err}
	}
	if !answer.Returned {
		return ErrLockLost
	}
	return nil
}

// ask gets leases from Redis for those who wait here, until nobody does, or
// there are as many as there may be.
func (lk *Locker) ask(n *lockName) {
	r := lk.request(n)
	answer, err := r.send(lk)
	lk.goOn(r, answer, err)
}

// goOn is ask after its first answer.
func (lk *Locker) goOn(r *lockRequest, answer protocol.LockAnswer, err error) {
	for lk.follow(r, answer, err) {
		r = lk.request(r.name)
		answer, err = r.send(lk)
	}
}

// A lockRequest is one place in the queue in Redis.
type lockRequest struct {
	name     *lockName
	wish     protocol.LockWish
	slot     *wake.Slot
	sent     time.Time
	answered bool // once at least
}

func (lk *Locker) request(n *lockName) *lockRequest {
	owner := lk.mailbox.Owner()
	return &lockRequest{
		name: n,
		wish: lk.wish(owner),
		slot: lk.mailbox.Wait(owner), // before the request: the message may come before the answer
	}
}

func (lk *Locker) wish(owner string) protocol.LockWish {
	return protocol.LockWish{Owner: owner, Lease: lk.opt.Lease, Slots: lk.opt.Slots}
}

// send sends the request and waits for its answer, at most RedisTimeout: neither Close
// nor the end of a caller's context ends the wait. A release that is sent without that
// answer may overtake the request, and the lock is then held by nobody for a lease.
func (r *lockRequest) send(lk *Locker) (protocol.LockAnswer, error) {
	return r.sendFor(lk.contextOf(r.name), lk)
}

// sendFor is send with the values of a context that does not end.
func (r *lockRequest) sendFor(ctx context.Context, lk *Locker) (protocol.LockAnswer, error) {
	r.sent = time.Now()
	answer, err := lk.client.AcquireLock(ctx, r.name.lock, r.wish)
	r.answered = r.answered || err == nil
	r.wish.Ticket = answer.Ticket
	r.wish.Return = ""
	return answer, err
}

// contextOf returns the context of the longest waiter for a name, without its end.
func (lk *Locker) contextOf(n *lockName) context.Context {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	if n.waiters.Len() == 0 {
		return context.Background()
	}
	return n.waiters.Front().Value.(*lockWaiter).ctx
}

// holding returns the lease that was the answer.
func (r *lockRequest) holding(answer protocol.LockAnswer) *holding {
	return &holding{owner: r.wish.Owner, began: time.Now(), sent: r.sent, fence: answer.Fence}
}

// follow waits in the queue in Redis until the request is granted, and gives
// the lease to the longest waiter here. It reports whether there are more of
// them to ask for.
func (lk *Locker) follow(r *lockRequest, answer protocol.LockAnswer, err error) (more bool) {
	defer r.slot.Close()
	n := r.name
	byItself := false
	for deaf := firstDeafLook; ; {
		switch {
		case err != nil:
			lk.refused(n, err)
			lk.forget(r, err)
			return false
		case answer.Held:
			if answer.Handed && byItself {
				lk.mailbox.Suspect(lk.channel) // the message should have been here before
			}
			return lk.granted(r, answer)
		}
		again := min(lookAgain, lk.opt.Lease)
		wait := min(answer.Left+rand.N(lookLater), again-rand.N(again/4))
		if !lk.mailbox.Hears(lk.channel) {
			lk.mailbox.Listen(lk.ctx, lk.channel)
			wait = min(wait, deaf/2+rand.N(deaf/2))
			deaf = min(2*deaf, latestDeafLook)
		}
		if byItself, err = lk.sleep(r, wait); err != nil {
			lk.forget(r, nil)
			return false
		}
		answer, err = r.send(lk)
	}
}

var errNobodyWaits = errors.New("nobody waits any more")

// sleep waits for a message, or until it is time to look again. It returns an
// error when all waiters have left.
func (lk *Locker) sleep(r *lockRequest, wait time.Duration) (byItself bool, err error) {
	n := r.name
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		if lk.abandoned(n) {
			return false, errNobodyWaits
		}
		select {
		case <-r.slot.Ready():
			r.slot.Take(0) // whatever it says, Redis is asked; and what stays in the slot would keep the next one out
			return false, nil
		case <-timer.C:
			return true, nil
		case <-n.left: // maybe long ago
		case <-lk.ctx.Done(): // then nobody waits
		}
	}
}

// abandoned reports whether nobody waits any more; then the asking has ended.
func (lk *Locker) abandoned(n *lockName) bool {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	if n.waiters.Len() > 0 {
		return false
	}
	n.asking = false
	lk.drop(n)
	return true
}

// refused tells those who wait here that Redis could not be asked.
func (lk *Locker) refused(n *lockName, err error) {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	n.fail(&Error{Op: "lock", Key: n.name, Err: err})
	n.asking = false
	lk.drop(n)
}

// granted gives a lease from Redis to the longest waiter here.
func (lk *Locker) granted(r *lockRequest, answer protocol.LockAnswer) (more bool) {
	n := r.name
	h := r.holding(answer)
	lk.mu.Lock()
	n.asking = false
	if n.waiters.Len() == 0 {
		lk.drop(n)
		lk.mu.Unlock()
		lk.forget(r, nil)
		return false
	}
	h.more = min(n.waiters.Len(), lk.fences()) - 1 // those who come later have their turn after the other processes
	lk.hold(n, h)
	n.next(lockTurn{holding: h})
	more = lk.wanting(n)
	n.asking = more
	lk.mu.Unlock()
	return more
}

// try asks Redis for a lease that is free this moment.
func (lk *Locker) try(ctx context.Context, name string) (*lockName, *holding, error) {
	n, w, err := lk.startTry(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	h, err := lk.await(ctx, n, w)
	if errors.Is(err, errEnded) {
		err = context.Cause(ctx)
	}
	return n, h, err
}

// startTry starts a request for a lease that is free this moment, unless it is known
// here that none is.
func (lk *Locker) startTry(ctx context.Context, name string) (*lockName, *lockWaiter, error) {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	if lk.closed {
		return nil, nil, ErrClosed
	}
	n := lk.named(name)
	if n.waiters.Len() > 0 || len(n.held) >= lk.opt.Slots {
		return nil, nil, ErrLocked
	}
	w := newWaiter(ctx)
	n.trying++
	lk.run(func() { lk.sendTry(n, w) }) // ends within RedisTimeout
	return n, w, nil
}

// sendTry sends a request, and gives what it came to to a waiter, if that has not left.
func (lk *Locker) sendTry(n *lockName, w *lockWaiter) {
	r := &lockRequest{name: n, wish: lk.wish(lk.mailbox.Owner())}
	r.wish.Try = true
	answer, err := r.sendFor(w.ctx, lk)
	if !lk.tried(r, w, answer, err) && (err != nil || answer.Held) {
		lk.forget(r, err)
	}
}

// tried gives the outcome of a request to a waiter. It reports whether the waiter has
// the lease that was granted.
func (lk *Locker) tried(r *lockRequest, w *lockWaiter, answer protocol.LockAnswer, err error) (taken bool) {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	n := r.name
	n.trying--
	t := lockTurn{err: ErrLocked}
	switch {
	case lk.closed:
		t.err = ErrClosed
	case err != nil:
		t.err = &Error{Op: "lock", Key: n.name, Err: err}
	case answer.Held && !w.over:
		h := r.holding(answer)
		h.more = lk.fences() - 1
		lk.hold(n, h)
		t, taken = lockTurn{holding: h}, true
	}
	if !w.over {
		w.send(t)
	}
	lk.drop(n)
	return taken
}

// forget takes the owner of a request out of a lock in the background, whether it is in
// the queue, holds it, or neither. err is what the request has come to; if that is
// not known, it may still arrive, and forget does it once more, later. If nothing was
// sent, or Redis has refused it for good, there is nothing to do.
func (lk *Locker) forget(r *lockRequest, err error) {
	var again time.Duration
	if err != nil {
		if !r.answered && (protocol.NotSent(err) || protocol.IsFinal(err)) {
			return
		}
		again = lk.opt.RedisTimeout
	}
	lk.takeBack(r.name.lock, r.wish.Owner, again)
}

// takeBack is forget for an owner that may hold the lock, or be in its queue.
func (lk *Locker) takeBack(l protocol.Lock, owner string, again time.Duration) {
	lk.leftovers.Add(cleanup.Task{
		Lasts: lk.opt.Lease,
		Again: again,
		TakeBack: func(ctx context.Context) error {
			_, err := lk.client.ReleaseLock(ctx, l, lk.wish(owner))
			return err
		},
	})
}
