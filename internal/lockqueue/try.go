package lockqueue

import (
	"context"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// startTry starts one request for a lock. It returns ErrBusy if callers of this process wait for
// the lock or hold all its slots.
func (q *Queue) startTry(ctx context.Context, name string) (*waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, ErrClosed
	}
	s := q.stateOf(name)
	if s.waiters.Len() > 0 || len(s.grants) >= q.Slots {
		return nil, ErrBusy
	}
	w := q.newWaiter(ctx, s)
	s.trying++
	q.start(w.sendTry) // ends within RedisTimeout
	return w, nil
}

// sendTry sends one request and ends the wait with its answer. If the caller has left, it removes
// the owner from the lock.
func (w *waiter) sendTry() {
	r := &requester{q: w.q, state: w.state, request: w.q.request(w.q.Mailbox.Owner())}
	r.request.Try = true
	answer, err := r.sendIn(w.ctx)
	if !w.endTry(r, answer, err) && (err != nil || answer.Held) {
		r.withdraw(err)
	}
}

// endTry ends the wait. It reports whether the waiter received a hold.
func (w *waiter) endTry(r *requester, answer protocol.LockAnswer, err error) (taken bool) {
	q := w.q
	q.mu.Lock()
	defer q.mu.Unlock()
	w.state.trying--
	defer q.drop(w.state)
	switch {
	case w.over:
	case q.closed:
		w.send(result{err: ErrClosed})
	case err != nil:
		w.send(result{err: err})
	case !answer.Held:
		w.send(result{err: ErrBusy})
	default:
		q.addGrant(w, r.grant(answer), q.holds()-1)
		return true
	}
	return false
}
