// Package flight makes one call of many: while a key is being loaded in this
// process, whoever asks for it waits for that load.
//
// It knows no Redis and nothing of what is loaded. It is used by the loader.
//
// It is not golang.org/x/sync/singleflight, for four reasons. There a caller
// cannot leave: each here waits on its own context, and when the last has left,
// the load's context ends, unless the load is kept. There a newcomer joins whatever runs, also a load
// that was just cancelled, or that began before a Delete: here a load can be
// closed to newcomers, be forgotten, and say which of its callers came too late
// for what it found. A Goexit in the function leaves the callers of its DoChan
// waiting for ever (golang/go#67087); here it is an error like any other. And
// its Do runs the function on the first caller's goroutine, which then cannot
// leave either.
package flight

import (
	"context"
	"errors"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrAbandoned is the cause of a load's context once all callers have left.
	ErrAbandoned = errors.New("all callers have left")

	// ErrGoexit is what callers get when the load called runtime.Goexit.
	ErrGoexit = errors.New("runtime.Goexit was called")

	// ErrClosed is returned by Do on a closed group.
	ErrClosed = errors.New("closed")
)

// A PanicError is the error that a panic became.
type PanicError struct {
	Value any
	Stack []byte
}

func (p *PanicError) Error() string { return "panic" }

// Protect calls f and turns a panic into a [*PanicError] and a Goexit into
// [ErrGoexit]. Where f calls Goexit, f's goroutine ends all the same, after
// done was called; so done is where its caller hears of the outcome.
func Protect[V any](f func() (V, error), done func(V, error)) {
	var v V
	err := ErrGoexit
	defer func() { done(v, err) }()
	defer func() {
		// After a Goexit there is nothing to recover, and err still says so.
		if r := recover(); r != nil {
			err = &PanicError{Value: r, Stack: debug.Stack()}
		}
	}()
	v, err = f()
}

// A Group is the loads under way, one or none for each key. Its zero value is
// ready.
type Group[V any] struct {
	running sync.WaitGroup
	marks   atomic.Uint64 // how often Mark was called, for any load

	mu     sync.Mutex
	calls  map[string]*Call[V]   // that callers can join
	all    map[*Call[V]]struct{} // that have not ended
	closed error

	// For a quick look: calls that have invited callers and are not forgotten, and
	// when the last invitation ends, since epoch.
	inviting atomic.Int32
	latest   atomic.Int64
}

// epoch is where this room's time begins: it is monotonic.
var epoch = time.Now()

// A Call is one load of one key.
type Call[V any] struct {
	group  *Group[V]
	key    string
	cancel context.CancelCauseFunc

	done chan struct{} // closed when v and err are set
	v    V             // written once, before done is closed
	err  error

	// Guarded by the group's mu.
	joined  Arrival // the newest among its callers
	present int     // callers that have not left
	served  Arrival // callers up to this one may have what the load finds
	kept    bool    // it goes on without callers
	invites bool
	until   time.Time // of the invitation
}

// An Arrival says between which marks a caller came: a newer one is not smaller. A
// caller keeps it when it was too late for one load and asks again. The next load
// begins after it came, so it is never too late twice, however soon that load is
// marked.
type Arrival uint64

// Arrive returns the arrival of a caller that comes now. It only reads an atomic, so
// that a caller can have it before it knows whether it needs a load.
func (g *Group[V]) Arrive() Arrival { return Arrival(g.marks.Load() + 1) }

// Do joins the load of a key, or starts load on a goroutine and a context of
// its own, and waits for it, or for ctx. The load's context has the values of
// the caller's that started it, and ends with a cause: [ErrAbandoned], or the
// one given to Close.
//
// late reports that the caller came after what the load found was asked for
// (see [Call.Mark]): then it has nothing, and should look again.
func (g *Group[V]) Do(ctx context.Context, key string, load func(ctx context.Context, c *Call[V]) (V, error)) (v V, late bool, err error) {
	t, err := g.Join(ctx, key, g.Arrive(), load)
	if err != nil {
		return v, false, err
	}
	return t.Wait(ctx)
}

// A Ticket is one caller's place in a load. A caller that does not Wait never
// leaves: the load goes on until it has ended, or the group is closed.
type Ticket[V any] struct {
	Started bool // by this caller

	call *Call[V]
	came Arrival
}

// Join is the first half of Do, for a caller that may have come earlier. Its
// error is ErrClosed.
func (g *Group[V]) Join(ctx context.Context, key string, came Arrival, load func(ctx context.Context, c *Call[V]) (V, error)) (Ticket[V], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		return Ticket[V]{}, ErrClosed
	}
	c := g.calls[key]
	started := c == nil
	if started {
		c = g.start(ctx, key, load)
	}
	return c.join(came, started), nil
}

// join takes a caller in. The caller of it holds the group's mu.
func (c *Call[V]) join(came Arrival, started bool) Ticket[V] {
	c.joined = max(c.joined, came)
	c.present++
	return Ticket[V]{Started: started, call: c, came: came}
}

// Inviting reports whether there may be a load that invites callers.
func (g *Group[V]) Inviting() bool {
	return g.inviting.Load() > 0 && int64(time.Since(epoch)) < g.latest.Load()
}

// Invites reports whether the load of a key invites callers now.
func (g *Group[V]) Invites(key string) bool {
	if !g.Inviting() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.calls[key]
	return c != nil && c.invited()
}

// JoinInvited is Join for a caller that has not looked whether there is anything
// to load: it joins a load that invites such callers. If there is no load at all,
// it starts one, unless load is nil. It is not ok if the caller has to look first.
func (g *Group[V]) JoinInvited(ctx context.Context, key string, came Arrival, load func(ctx context.Context, c *Call[V]) (V, error)) (t Ticket[V], ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.calls[key]
	started := c == nil
	switch {
	case g.closed != nil, started && load == nil, !started && !c.invited():
		return Ticket[V]{}, false
	case started:
		c = g.start(ctx, key, load)
	}
	return c.join(came, started), true
}

func (c *Call[V]) invited() bool { return c.invites && time.Now().Before(c.until) }

// Invite lets callers join who have not looked, for so long from now: it is known
// that there was nothing to see just now.
func (c *Call[V]) Invite(lasts time.Duration) {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	if c.group.calls[c.key] != c {
		return
	}
	if !c.invites {
		c.invites = true
		c.group.inviting.Add(1)
	}
	c.until = time.Now().Add(lasts)
	if until := int64(c.until.Sub(epoch)); c.group.inviting.Load() == 1 || until > c.group.latest.Load() {
		c.group.latest.Store(until)
	}
}

// Wait is the second half of Do.
func (t Ticket[V]) Wait(ctx context.Context) (v V, late bool, err error) {
	c := t.call
	select {
	case <-c.done:
	case <-ctx.Done():
		if !c.leave() {
			return v, false, ctx.Err()
		}
		// It ended at the same moment: what is there is better than nothing.
	}
	if t.came > c.served { // not changed any more once done is closed
		return v, true, nil
	}
	return c.v, false, c.err
}

// Callers returns how many callers wait for the load of a key.
func (g *Group[V]) Callers(key string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.calls[key]; c != nil {
		return c.present
	}
	return 0
}

// start begins a load. The caller holds g.mu.
func (g *Group[V]) start(ctx context.Context, key string, load func(ctx context.Context, c *Call[V]) (V, error)) *Call[V] {
	// Its own end: the load belongs to all callers, and the first one must be
	// able to leave like any other.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	c := &Call[V]{group: g, key: key, cancel: cancel, done: make(chan struct{})}
	if g.calls == nil {
		g.calls = make(map[string]*Call[V])
		g.all = make(map[*Call[V]]struct{})
	}
	g.calls[key] = c
	g.all[c] = struct{}{}
	g.running.Go(func() {
		Protect(func() (V, error) { return load(ctx, c) }, c.end)
	})
	return c
}

func (c *Call[V]) end(v V, err error) {
	c.cancel(nil)
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.close()
	delete(c.group.all, c)
	if _, panicked := errors.AsType[*PanicError](err); panicked || errors.Is(err, ErrGoexit) {
		c.served = math.MaxUint64 // nobody asks again for a panic
	}
	c.v, c.err = v, err
	close(c.done)
}

// leave takes a caller off. It reports whether the load had ended before.
func (c *Call[V]) leave() (ended bool) {
	ended, last := c.left()
	if last {
		c.cancel(ErrAbandoned)
	}
	return ended
}

// left is leave, but for the cancellation, which the last caller owes.
func (c *Call[V]) left() (ended, last bool) {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	select {
	case <-c.done:
		return true, false
	default:
	}
	if c.present--; c.present > 0 || c.kept {
		return false, false
	}
	c.close() // before the cancellation: nobody may join a load that is cancelled
	return false, true
}

// Keep makes the load go on when all its callers leave, and lets new callers join it
// meanwhile. It returns false if all have left already: then the load's context has
// ended, or is about to.
func (c *Call[V]) Keep() bool {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.kept = c.kept || c.present > 0
	return c.kept
}

// Kept reports whether Keep has returned true.
func (c *Call[V]) Kept() bool {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	return c.kept
}

// Mark says that what the load finds from now on is good for everyone who has
// come so far. A load calls it right before it asks Redis, or the origin:
// what is asked for after a caller came cannot be older than the caller.
func (c *Call[V]) Mark() {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.served = Arrival(c.group.marks.Add(1))
}

// Late reports whether somebody has joined who came since the last Mark.
func (c *Call[V]) Late() bool {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	return c.joined > c.served
}

// Close closes the load to newcomers: the next caller of Do starts afresh.
func (c *Call[V]) Close() {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.close()
}

func (c *Call[V]) close() {
	if c.group.calls[c.key] == c {
		c.group.forget(c.key)
	}
}

// Forget closes the load of a key to newcomers, if there is one.
func (g *Group[V]) Forget(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(key)
}

// forget is Forget for a caller that holds g.mu.
func (g *Group[V]) forget(key string) {
	c := g.calls[key]
	if c == nil {
		return
	}
	delete(g.calls, key)
	if c.invites {
		g.inviting.Add(-1)
	}
}

// Close ends the contexts of all loads with the cause, and waits until they
// have ended.
func (g *Group[V]) Close(cause error) {
	for _, c := range g.shut(cause) {
		c.cancel(cause)
	}
	g.running.Wait()
}

// shut closes the group to newcomers, and returns the loads that have not ended.
func (g *Group[V]) shut(cause error) []*Call[V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = cause
	var all []*Call[V]
	for c := range g.all {
		c.close()
		all = append(all, c)
	}
	return all
}
