package lockqueue

import (
	"context"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// try starts one request for a lock. It returns ErrBusy if callers of this process wait for the
// lock or hold all its slots.
func (q *Queue) try(ctx context.Context, text string) (*waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, ErrClosed
	}
	n := q.named(text)
	if n.waiters.Len() > 0 || len(n.grants) >= q.Slots {
		return nil, ErrBusy
	}
	w := q.newWaiter(ctx, n)
	n.trying++
	q.start(w.try) // ends within RedisTimeout
	return w, nil
}

// try sends one request and ends the wait with its answer. If the caller has left, it removes the
// owner from the lock.
func (w *waiter) try() {
	r := &requester{q: w.q, n: w.n, request: w.q.request(w.q.Mailbox.Owner())}
	r.request.Try = true
	answer, err := r.sendIn(w.ctx)
	if !w.tried(r, answer, err) && (err != nil || answer.Held) {
		r.withdraw(err)
	}
}

// tried ends the wait. It reports whether the waiter received a hold.
func (w *waiter) tried(r *requester, answer protocol.LockAnswer, err error) (taken bool) {
	q := w.q
	q.mu.Lock()
	defer q.mu.Unlock()
	w.n.trying--
	defer q.drop(w.n)
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
