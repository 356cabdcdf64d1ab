// Package lease keeps a lease alive while somebody works under it, and ends
// their context no later than the lease itself.
//
// It knows how long a lease lasts, when it was asked for, and a function that
// renews it; nothing of Redis, of keys or of values. It is used by the loader and the locker.
//
// # What local time may decide
//
// Redis alone decides who holds a lease. But a holder that cannot reach Redis
// must know by itself when to stop, and it can: Redis began to count when the
// request arrived, which is later than it was sent. So
//
//	the holder's deadline = time of sending + lease - margin
//
// lies before the end of the lease, whatever the network does and whatever the
// clocks of the two machines say: only durations are compared, by this
// process's monotonic clock. The margin, a twentieth, is for clocks that run at
// different speeds and for the time it takes to notice.
//
//	sent        1/3          2/3        deadline  end in Redis
//	 |-----------|------------|------------|---|----> t
//	             renew        renew again, if  |
//	             (moves all   the first failed the context has ended
//	             to the right)
//
// What it cannot see: a machine that is itself stopped, with its monotonic
// clock, for longer than the lease. Who needs more checks the fence where the
// data lives.
package lease

import (
	"context"
	"sync"
	"time"
)

// A Keeper keeps one lease. It must be stopped.
type Keeper struct {
	length time.Duration
	renew  func(ctx context.Context) (bool, error)
	lost   error
	ctx    heldContext
	cancel context.CancelCauseFunc

	renewing sync.WaitGroup

	mu       sync.Mutex
	stopped  bool               // guarded by mu, as are those below
	cause    error              // of the context's end; not changed once stopped, nor is cut
	wasLost  bool               // it was stopped for that
	refused  bool               // a renewal has found that the lease is gone
	whenLost func()             // see WhenLost
	cut      context.CancelFunc // ends the renewal under way
	deadline time.Time
	next     time.Time   // when to renew
	busy     bool        // a renewal is under way
	timer    *time.Timer // rings for whatever is due first
}

// Keep keeps a lease of the given length that was asked for at sent. Every
// third of it, it calls renew, which reports whether the lease was still ours.
// The returned context ends with cause lost as soon as it was not, when Lost is
// called, and at the latest at the holder's deadline.
//
// The lease is kept until Stop, also when parent has ended: whoever works under
// it may need a while to notice, and the lease is there for that while, too.
func Keep(parent context.Context, sent time.Time, length time.Duration, lost error, renew func(ctx context.Context) (bool, error)) (context.Context, *Keeper) {
	inner, cancel := context.WithCancelCause(parent)
	k := &Keeper{length: length, renew: renew, lost: lost, cancel: cancel, deadline: sent.Add(valid(length))}
	k.ctx = heldContext{Context: inner, keeper: k}
	k.next = sent.Add(length / 3)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = time.AfterFunc(time.Until(k.next), k.ring) // one timer for both: what is made for every lease is dear
	return &k.ctx, k
}

func valid(length time.Duration) time.Duration { return length - length/20 }

// ring does what is due: at the deadline it ends the context, before that it
// renews the lease, once. A lease shorter than the time to renew three times
// costs no renewal at all.
func (k *Keeper) ring() {
	k.mu.Lock()
	now := time.Now()
	switch {
	case k.stopped:
		k.mu.Unlock()
		return
	case !now.Before(k.deadline):
		k.mu.Unlock()
		k.Lost()
		return
	case k.busy:
		k.set()
		k.mu.Unlock()
		return
	}
	k.busy = true
	k.set()
	ctx, cut := context.WithCancel(context.WithoutCancel(k.ctx.Context)) // ends with the keeping
	k.cut = cut
	k.renewing.Add(1)
	k.mu.Unlock()
	defer k.renewing.Done()
	defer cut()

	sent := time.Now()
	ours, err := k.renew(ctx)
	if err == nil && !ours {
		k.mu.Lock()
		k.refused = true // also if it is being stopped
		k.mu.Unlock()
		k.Lost()
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped {
		return
	}
	k.busy = false
	if err != nil {
		// Nothing is lost yet. Try again soon, until the deadline: at once after a
		// renewal that was not answered.
		k.next = sent.Add(k.length / 10)
	} else {
		k.deadline = sent.Add(valid(k.length))
		k.next = sent.Add(k.length / 3)
	}
	k.set()
}

// set sets the timer. The caller holds k.mu.
func (k *Keeper) set() {
	due := k.deadline
	if !k.busy && k.next.Before(due) {
		due = k.next
	}
	k.timer.Reset(time.Until(due))
}

// Lost ends the context with cause lost: somebody said that the lease is gone.
func (k *Keeper) Lost() {
	k.mu.Lock()
	first := !k.stopped
	if first {
		k.wasLost = true
		k.stop(k.lost)
	}
	whenLost := k.whenLost
	k.mu.Unlock()
	k.end()
	if first && whenLost != nil {
		whenLost()
	}
}

// WhenLost makes the keeper call f once the lease is lost, after the context
// has ended; at once if it is already. Where ctx.Err is called, f may be.
func (k *Keeper) WhenLost(f func()) {
	k.mu.Lock()
	lost := k.wasLost
	k.whenLost = f
	k.mu.Unlock()
	if lost {
		f()
	}
}

// End ends the context with a cause; the lease is kept until Stop.
func (k *Keeper) End(cause error) { k.cancel(cause) }

// Stop ends the keeping: the lease is given back, or about to be. The context
// ends. Stop waits for a renewal that is under way. It reports whether the lease may be
// taken for ours until then: it was neither lost nor stopped before, and a renewal that
// was under way has not found that it is gone.
func (k *Keeper) Stop() (held bool) {
	k.mu.Lock()
	held = !k.stopped && time.Now().Before(k.deadline)
	if !k.stopped {
		k.stop(nil)
	}
	k.mu.Unlock()
	k.end()
	k.renewing.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	return held && !k.refused
}

// stop ends the renewals. The caller holds k.mu, and calls end once it has unlocked it.
func (k *Keeper) stop(cause error) {
	k.stopped, k.cause = true, cause
	k.timer.Stop()
}

// end ends the contexts of a keeper that is stopped; more than once does no harm. The
// caller does not hold k.mu: to end a context calls methods of its parent, which may
// be the context of another lease.
func (k *Keeper) end() {
	if k.cut != nil {
		k.cut()
	}
	k.cancel(k.cause)
}

// Held reports whether the lease may still be taken for ours.
func (k *Keeper) Held() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.stopped && time.Now().Before(k.deadline)
}

// A heldContext looks at the clock itself. A process that was stopped beyond
// its lease may come back in the middle of its work before the runtime has come
// to its timers: whoever asks this context first gets the right answer.
type heldContext struct {
	context.Context
	keeper *Keeper
}

func (c *heldContext) look() {
	if c.Context.Err() == nil && !c.keeper.Held() {
		c.keeper.Lost()
	}
}

func (c *heldContext) Done() <-chan struct{} {
	c.look()
	return c.Context.Done()
}

func (c *heldContext) Err() error {
	c.look()
	return c.Context.Err()
}
