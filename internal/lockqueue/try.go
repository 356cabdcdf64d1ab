package lockqueue

import (
	"context"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// try starts a request for a lock that is free at this moment, unless this process knows
// that it is not.
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

// try sends one request, and ends the wait with its answer. What it is granted after the
// caller left, it takes back.
func (w *waiter) try() {
	r := &request{q: w.q, n: w.n, wish: w.q.wish(w.q.Mailbox.Owner())}
	r.wish.Try = true
	answer, err := r.sendIn(w.ctx)
	if !w.tried(r, answer, err) && (err != nil || answer.Held) {
		r.forget(err)
	}
}

// tried ends the wait. It reports whether the waiter has what was granted.
func (w *waiter) tried(r *request, answer protocol.LockAnswer, err error) (taken bool) {
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
		q.take(w, r.grant(answer), q.holds()-1)
		return true
	}
	return false
}
