package lockqueue

import (
	"container/list"
	"context"
	"slices"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A lockState is the state of one lock in this process. It exists while a caller holds the lock or
// waits for it. The queue's mu guards its fields.
type lockState struct {
	name    string
	lock    protocol.Lock
	emptied chan struct{} // receives a signal when the last waiter leaves

	waiters    list.List // of *waiter, in order of arrival
	grants     []*grant
	requesting bool // a requester exists
	trying     int  // TryAcquires without an answer
}

// A waiter is a caller that waits for a lock.
type waiter struct {
	q     *Queue
	state *lockState
	ctx   context.Context // the caller's, without its end
	ready chan result     // has room for one

	// Guarded by q.mu.
	place *list.Element // in the local queue; nil outside it
	over  bool          // the waiter has left, or a result was sent
}

// A result ends the wait of a waiter.
type result struct {
	hold *Hold
	err  error
}

// join appends a waiter to the local queue of a lock, and starts a requester if one is needed.
func (q *Queue) join(ctx context.Context, name string) (*waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, ErrClosed
	}
	w := q.newWaiter(ctx, q.stateOf(name))
	w.place = w.state.waiters.PushBack(w)
	q.startRequester(w.state)
	return w, nil
}

func (q *Queue) newWaiter(ctx context.Context, s *lockState) *waiter {
	return &waiter{q: q, state: s, ctx: context.WithoutCancel(ctx), ready: make(chan result, 1)}
}

// await waits for the result, at most until limit is closed. If the context has ended, it returns
// ErrEnded. A hold that arrived at the same moment is released in the background.
func (w *waiter) await(ctx context.Context, limit <-chan struct{}) (*Hold, error) {
	var r result
	select {
	case r = <-w.ready:
	case <-ctx.Done():
		if w.leave() {
			return nil, ErrEnded
		}
		r = <-w.ready
	case <-limit:
		if w.leave() {
			return nil, ErrBusy
		}
		r = <-w.ready
	}
	if ctx.Err() == nil {
		return r.hold, r.err
	}
	if r.hold != nil {
		w.q.mu.Lock()
		w.q.start(func() { _ = r.hold.Release(true) })
		w.q.mu.Unlock()
	}
	return nil, ErrEnded
}

// leave ends the wait. It reports whether no result was sent.
func (w *waiter) leave() bool {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	if w.over {
		return false
	}
	w.over = true
	if w.place == nil {
		return true
	}
	w.state.waiters.Remove(w.place)
	w.place = nil
	if w.state.waiters.Len() == 0 {
		select {
		case w.state.emptied <- struct{}{}:
		default:
		}
		w.q.drop(w.state)
	}
	return true
}

// send ends the wait with a result. The caller holds q.mu.
func (w *waiter) send(r result) {
	if w.place != nil {
		w.state.waiters.Remove(w.place)
		w.place = nil
	}
	w.over = true
	w.ready <- r // has room
}

// stateOf returns the state of a lock. The caller holds q.mu, as for each function below.
func (q *Queue) stateOf(name string) *lockState {
	s := q.states[name]
	if s == nil {
		s = &lockState{name: name, lock: q.Names.Lock(name), emptied: make(chan struct{}, 1)}
		q.states[name] = s
	}
	return s
}

// drop deletes the state of a lock if no caller holds the lock or waits for it.
func (q *Queue) drop(s *lockState) {
	if s.waiters.Len() == 0 && len(s.grants) == 0 && !s.requesting && s.trying == 0 && q.states[s.name] == s {
		delete(q.states, s.name)
	}
}

// first returns the waiter that has waited longest, or nil.
func (s *lockState) first() *waiter {
	if s.waiters.Len() == 0 {
		return nil
	}
	return s.waiters.Front().Value.(*waiter)
}

// fail ends the wait of all waiters with an error.
func (s *lockState) fail(err error) {
	for w := s.first(); w != nil; w = s.first() {
		w.send(result{err: err})
	}
}

// addGrant gives a grant to a waiter. After its hold, at most handOffs local hand-offs follow.
func (q *Queue) addGrant(w *waiter, g *grant, handOffs int) {
	g.handOffs = handOffs
	w.state.grants = append(w.state.grants, g)
	q.pending++
	w.send(result{hold: &Hold{q: q, state: w.state, grant: g, fence: g.fence}})
}

// removeGrant removes a grant from its lock, if it is still there.
func (q *Queue) removeGrant(s *lockState, g *grant) {
	i := slices.Index(s.grants, g)
	if i < 0 {
		return
	}
	s.grants = slices.Delete(s.grants, i, i+1)
	q.pending--
	q.checkIdle()
}
