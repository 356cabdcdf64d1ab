// Package lease renews a lease while a function runs under it, and ends the function's context
// before the lease ends. The Loader and the Locker use it.
//
// It gets the length of a lease, the time at which its request was sent, and a function that renews
// it. It does not know Redis, keys or values.
//
// # What local time may decide
//
// Only Redis decides which process has a lease. But a holder that cannot reach Redis must
// stop without its help. It can: the lease began when the request arrived in Redis, which is
// after it was sent. The holder's deadline is
//
//	time of sending + lease - margin
//
// It is before the end of the lease, whatever the network and the clocks of the two machines do,
// because only durations of this process's monotonic clock are compared. The margin is a twentieth
// of the lease. It covers clocks that run at different speeds, and the time until the function
// notices the end of its context.
//
//	sent        1/3          2/3        deadline  end in Redis
//	 |-----------|------------|------------|---|----> t
//	             renew        renew again, if  |
//	             (moves all   the first failed the context has ended
//	             to the right)
//
// A keeper cannot detect that the machine itself, with its monotonic clock, was stopped for
// longer than the lease. To be safe from that, check the fence where the data is stored.
package lease

import (
	"context"
	"sync"
	"time"
)

// A Keeper keeps one lease. The caller of Keep must stop it.
type Keeper struct {
	length time.Duration
	renew  func(ctx context.Context) (bool, error)
	lost   error
	ctx    heldContext
	cancel context.CancelCauseFunc

	renewing sync.WaitGroup

	mu       sync.Mutex
	stopped  bool               // guarded by mu, as are those below
	cause    error              // of the context's end; constant once stopped
	isLost   bool               // Lost has stopped it
	refused  bool               // Redis has refused a renewal: the lease is lost
	onLost   func()             // see OnLost
	abort    context.CancelFunc // ends the running renewal; constant once stopped
	deadline time.Time
	next     time.Time   // of the next renewal
	busy     bool        // a renewal is running
	timer    *time.Timer // for the deadline or the next renewal
}

// Keep keeps a lease of the given length. sent is when its request was sent. After each third of
// the length it calls renew, which reports whether this process still has the lease. The
// returned context ends with the cause lost when renew reports false, when Lost is called, or
// at the holder's deadline.
//
// The keeper renews the lease until Stop, also after the end of parent: a function that runs
// under the lease may need some time to notice that end.
func Keep(parent context.Context, sent time.Time, length time.Duration, lost error, renew func(ctx context.Context) (bool, error)) (context.Context, *Keeper) {
	inner, cancel := context.WithCancelCause(parent)
	k := &Keeper{length: length, renew: renew, lost: lost, cancel: cancel, deadline: sent.Add(valid(length))}
	k.ctx = heldContext{Context: inner, keeper: k}
	k.next = sent.Add(length / 3)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = time.AfterFunc(time.Until(k.next), k.onTimer) // one timer for both: Keep runs for every lease
	return &k.ctx, k
}

func valid(length time.Duration) time.Duration { return length - length/20 }

// onTimer runs when the timer fires. It renews the lease once or, at the deadline, ends the
// context. A lease that is released within a third of its length is never renewed.
func (k *Keeper) onTimer() {
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
		k.setTimer()
		k.mu.Unlock()
		return
	}
	k.busy = true
	k.setTimer()
	ctx, abort := context.WithCancel(context.WithoutCancel(k.ctx.Context)) // ends with the keeper
	k.abort = abort
	k.renewing.Add(1)
	k.mu.Unlock()
	defer k.renewing.Done()
	defer abort()

	sent := time.Now()
	ours, err := k.renew(ctx)
	if err == nil && !ours {
		k.mu.Lock()
		k.refused = true // also while Stop runs
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
		// The lease is not lost yet. Until the deadline, the next renewal is sent a tenth of the
		// length after this one was sent, or at once if that time has passed.
		k.next = sent.Add(k.length / 10)
	} else {
		k.deadline = sent.Add(valid(k.length))
		k.next = sent.Add(k.length / 3)
	}
	k.setTimer()
}

// setTimer sets the timer. The caller holds k.mu.
func (k *Keeper) setTimer() {
	due := k.deadline
	if !k.busy && k.next.Before(due) {
		due = k.next
	}
	k.timer.Reset(time.Until(due))
}

// Lost ends the context with the cause given to Keep. The keeper calls it at the deadline and after
// a refused renewal. Its user calls it when another process has ended the lease.
func (k *Keeper) Lost() {
	k.mu.Lock()
	first := !k.stopped
	if first {
		k.isLost = true
		k.stop(k.lost)
	}
	onLost := k.onLost
	k.mu.Unlock()
	k.end()
	if first && onLost != nil {
		onLost()
	}
}

// OnLost makes the keeper call f when the lease is lost, after the context has ended. If it
// is lost already, OnLost calls f. f may run inside the context's Err or Done, so it must not lock a
// mutex under which these are called.
func (k *Keeper) OnLost(f func()) {
	k.mu.Lock()
	lost := k.isLost
	k.onLost = f
	k.mu.Unlock()
	if lost {
		f()
	}
}

// End ends the context with a cause. The keeper renews the lease until Stop.
func (k *Keeper) End(cause error) { k.cancel(cause) }

// Stop ends the renewals and the context. It does not release the lease.
// Stop waits for a renewal that is running. It reports whether this process had the lease
// until now, as far as it knows: the keeper was not lost or stopped before, and the running
// renewal was not refused.
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

// end ends the contexts of a stopped keeper. A second call does nothing. The caller does not
// hold k.mu: the end of a context calls methods of its parent, which may be the context of
// another lease.
func (k *Keeper) end() {
	if k.abort != nil {
		k.abort()
	}
	k.cancel(k.cause)
}

// Held reports whether this process has the lease, as far as it knows.
func (k *Keeper) Held() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.stopped && time.Now().Before(k.deadline)
}

// A heldContext reads the clock in Err and Done. A process that was stopped for longer than
// its lease may resume before the runtime fires its timers.
type heldContext struct {
	context.Context
	keeper *Keeper
}

func (c *heldContext) checkClock() {
	if c.Context.Err() == nil && !c.keeper.Held() {
		c.keeper.Lost()
	}
}

func (c *heldContext) Done() <-chan struct{} {
	c.checkClock()
	return c.Context.Done()
}

func (c *heldContext) Err() error {
	c.checkClock()
	return c.Context.Err()
}
