// Package flight lets callers of the same key share one load in this process: a flight.
// A caller joins the flight of its key, or starts it, and waits for its result.
//
// Each flight has a cutoff. Callers that came after it are late, and receive no result: what
// the load read may be older than their call. A load moves the cutoff with [Flight.Advance].
//
// The package knows nothing of Redis or of what is loaded. The loader uses it.
//
// golang.org/x/sync/singleflight does not fit, for four reasons:
//   - Its callers cannot leave. Here each caller waits on its own context. When the last one
//     leaves, the load's context ends, unless the flight is kept.
//   - Its callers join any running call, also one that is cancelled, or that began before a
//     Delete. A flight can be closed to joiners or forgotten, and has a cutoff.
//   - A Goexit in its function blocks the callers of DoChan for ever (golang/go#67087). Here
//     a Goexit is an error like any other.
//   - Its Do calls the function on the goroutine of the first caller, which then cannot leave.
package flight

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
)

var (
	// ErrAbandoned is the cause of a load's context once all callers have left.
	ErrAbandoned = errors.New("all callers have left")

	// ErrClosed is returned by Join on a closed group.
	ErrClosed = errors.New("closed")
)

// A Group has at most one flight for each key. Its zero value is ready.
type Group[V any] struct {
	running sync.WaitGroup
	cutoffs atomic.Uint64 // counts calls of Advance, by all flights

	mu      sync.Mutex
	flights map[string]*Flight[V]   // that callers can join
	all     map[*Flight[V]]struct{} // that have not ended
	closed  error
}

// A Flight is one load of one key.
type Flight[V any] struct {
	group  *Group[V]
	key    string
	cancel context.CancelCauseFunc

	done chan struct{} // closed when v and err are set
	v    V             // written once, before done is closed
	err  error

	// Guarded by the group's mu.
	newest  Arrival // of the callers that have joined
	callers int     // that have joined and not left
	cutoff  Arrival // a caller with a greater Arrival is late
	kept    bool    // it continues without callers
}

// An Arrival says after which cutoff a call began. Cutoffs are numbered over all flights. A call is
// late for a flight if its Arrival is above the flight's cutoff. A late caller joins the next flight
// with the same Arrival: a flight that starts after the call is not too old for it.
type Arrival uint64

// Arrive returns the Arrival of a call that begins now. It reads one atomic and takes no
// lock, so a caller can call it before it knows whether it needs a load.
func (g *Group[V]) Arrive() Arrival { return Arrival(g.cutoffs.Load() + 1) }

// A Ticket is one caller's place in a flight. A caller that does not call Wait never
// leaves: the flight continues until the load returns or the group is closed.
type Ticket[V any] struct {
	Started bool // by this caller

	flight *Flight[V]
	came   Arrival
}

// Join joins the flight of a key. If there is none, it starts one: it calls load on a new
// goroutine. The context of load has the values of ctx. It ends with a cause:
// [ErrAbandoned], or that given to Close. Join returns ErrClosed if the group is closed.
func (g *Group[V]) Join(ctx context.Context, key string, came Arrival, load func(ctx context.Context, f *Flight[V]) (V, error)) (Ticket[V], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		return Ticket[V]{}, ErrClosed
	}
	if f := g.flights[key]; f != nil {
		return f.join(came, false), nil
	}
	return g.start(ctx, key, load).join(came, true), nil
}

// Start starts a flight for a key that has none. It reports false if the key has one or the group
// is closed. A caller that has made no lookup calls it instead of Join: a running flight does not
// replace its lookup.
func (g *Group[V]) Start(ctx context.Context, key string, came Arrival, load func(ctx context.Context, f *Flight[V]) (V, error)) (Ticket[V], bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil || g.flights[key] != nil {
		return Ticket[V]{}, false
	}
	return g.start(ctx, key, load).join(came, true), true
}

// join adds a caller. The caller of join holds the group's mu.
func (f *Flight[V]) join(came Arrival, started bool) Ticket[V] {
	f.newest = max(f.newest, came)
	f.callers++
	return Ticket[V]{Started: started, flight: f, came: came}
}

// An Answer is what [Ticket.Wait] returns.
type Answer[V any] struct {
	Value V
	Late  bool // the caller came after the cutoff: it has no result, and should make a lookup
}

// Wait waits for the flight's result or for the end of ctx. The error is that of the load, or
// ctx.Err(). It is nil for a late caller.
func (t Ticket[V]) Wait(ctx context.Context) (Answer[V], error) {
	f := t.flight
	select {
	case <-f.done:
	case <-ctx.Done():
		if !f.leave() {
			return Answer[V]{}, ctx.Err()
		}
		// The flight ended at the same moment: return its result.
	}
	if t.came > f.cutoff { // constant once done is closed
		return Answer[V]{Late: true}, nil
	}
	return Answer[V]{Value: f.v}, f.err
}

// Callers returns how many callers wait for the flight of a key.
func (g *Group[V]) Callers(key string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.flights[key]; f != nil {
		return f.callers
	}
	return 0
}

// start starts a flight. The caller holds g.mu.
func (g *Group[V]) start(ctx context.Context, key string, load func(ctx context.Context, f *Flight[V]) (V, error)) *Flight[V] {
	// The load belongs to all callers, so its context does not end with the first caller's.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &Flight[V]{group: g, key: key, cancel: cancel, done: make(chan struct{})}
	if g.flights == nil {
		g.flights = make(map[string]*Flight[V])
		g.all = make(map[*Flight[V]]struct{})
	}
	g.flights[key] = f
	g.all[f] = struct{}{}
	g.running.Go(func() {
		Protect(func() (V, error) { return load(ctx, f) }, f.end)
	})
	return f
}

func (f *Flight[V]) end(v V, err error) {
	f.cancel(nil)
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	f.close()
	delete(f.group.all, f)
	if IsCrash(err) {
		f.cutoff = math.MaxUint64 // late callers receive it, too: they should not repeat it
	}
	f.v, f.err = v, err
	close(f.done)
}

// leave removes a caller. It reports whether the flight had ended before.
func (f *Flight[V]) leave() (ended bool) {
	ended, last := f.remove()
	if last {
		f.cancel(ErrAbandoned)
	}
	return ended
}

// remove is leave without the cancellation: if last is true, its caller cancels the load.
func (f *Flight[V]) remove() (ended, last bool) {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	select {
	case <-f.done:
		return true, false
	default:
	}
	if f.callers--; f.callers > 0 || f.kept {
		return false, false
	}
	f.close() // before the cancellation: no caller may join a cancelled flight
	return false, true
}

// Keep makes the flight continue when all its callers leave. New callers can still join it.
// Keep returns false if all callers have left already: then the load's context has ended or
// is about to end.
func (f *Flight[V]) Keep() bool {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	f.kept = f.kept || f.callers > 0
	return f.kept
}

// Kept reports whether Keep has returned true.
func (f *Flight[V]) Kept() bool {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	return f.kept
}

// Advance moves the cutoff to now: all callers that have come so far receive the result. A load
// calls it right before it reads from Redis or the origin, because what is read after a call began
// is new enough for it. A load also calls it when its result is new enough for every caller: after
// FILL has stored the value, or for a failure.
func (f *Flight[V]) Advance() {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	f.cutoff = Arrival(f.group.cutoffs.Add(1))
}

// HasLate reports whether a late caller has joined: one that came after the cutoff. It may have left.
func (f *Flight[V]) HasLate() bool {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	return f.newest > f.cutoff
}

// CloseToJoiners closes the flight to joiners: the next caller of the key starts another flight.
func (f *Flight[V]) CloseToJoiners() {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	f.close()
}

func (f *Flight[V]) close() {
	if f.group.flights[f.key] == f {
		delete(f.group.flights, f.key)
	}
}

// Forget closes the flight of a key to joiners, if there is one.
func (g *Group[V]) Forget(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.flights, key)
}

// Close ends the contexts of all loads with the cause, and waits until the loads return.
func (g *Group[V]) Close(cause error) {
	for _, f := range g.shut(cause) {
		f.cancel(cause)
	}
	g.running.Wait()
}

// shut closes the group to joiners, and returns the flights that have not ended.
func (g *Group[V]) shut(cause error) []*Flight[V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = cause
	var all []*Flight[V]
	for f := range g.all {
		f.close()
		all = append(all, f)
	}
	return all
}
