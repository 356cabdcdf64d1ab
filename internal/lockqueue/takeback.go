package lockqueue

import (
	"context"
	"time"

	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// forget takes the request's owner out of the lock in the background, whether it waits or
// holds. err is what the last send returned. If the answer is not known, the request may
// still arrive, so forget does it once more, RedisTimeout later. It does nothing if
// nothing was sent, or Redis refused the request for good.
func (r *request) forget(err error) {
	var again time.Duration
	if err != nil {
		if !r.answered && (protocol.NotSent(err) || protocol.IsFinal(err)) {
			return
		}
		again = r.q.RedisTimeout
	}
	r.q.takeBack(r.n.lock, r.wish.Owner, again)
}

// takeBack takes an owner out of a lock in the background. If again is not 0, it does so
// once more that much later.
func (q *Queue) takeBack(l protocol.Lock, owner string, again time.Duration) {
	q.leftovers.Add(cleanup.Task{
		Lasts: q.Lease,
		Again: again,
		Undo: func(ctx context.Context) error {
			_, err := q.Redis.ReleaseLock(ctx, l, q.wish(owner))
			return err
		},
	})
}
