package lockqueue

import (
	"context"
	"time"

	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// withdraw removes the requester's owner from the lock in the background, whether it waits or
// holds. err is the error of the last send. After an error the request may still arrive in Redis, so
// withdraw removes the owner again after RedisTimeout. It removes nothing if Redis never had the
// owner: no request was answered, and the last one was not sent or was refused for good.
func (r *requester) withdraw(err error) {
	var again time.Duration
	if err != nil {
		if !r.answered && (protocol.NotSent(err) || protocol.IsFinal(err)) {
			return
		}
		again = r.q.RedisTimeout
	}
	r.q.removeOwner(r.state.lock, r.request.Owner, again)
}

// removeOwner removes an owner from a lock in the background. If again is not 0, it does so once
// more after that time.
func (q *Queue) removeOwner(l protocol.Lock, owner string, again time.Duration) {
	q.leftovers.Add(cleanup.Task{
		Lasts: q.Lease,
		Again: again,
		Undo: func(ctx context.Context) error {
			_, err := q.Redis.ReleaseLock(ctx, l, q.request(owner))
			return err
		},
	})
}
