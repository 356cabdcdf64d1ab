package fetchonce

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// dropLease gives back, in the background, a lease that this run may hold. If again is
// not 0, it does so once more that much later.
func (r *run[V]) dropLease(again time.Duration) {
	names, owner, redis := r.k.names, r.owner, r.redis
	r.cleanup.Add(cleanup.Task{
		TakeBack: func(ctx context.Context) error {
			_, err := redis.Release(ctx, names, owner, protocol.AnyFence)
			return err
		},
		Lasts: r.opt.Lease,
		Again: again,
	})
}

// dropMark takes a write mark off, in the background, that an Update may have left. If
// again is not 0, it does so once more that much later.
func (l *Loader[V]) dropMark(k keyed, mark string, again time.Duration) {
	l.cleanup.Add(cleanup.Task{
		TakeBack: func(ctx context.Context) error { return l.redis.Unmark(ctx, k.names, mark) },
		Lasts:    l.opt.Lease,
		Again:    again,
	})
}

// mayArrive returns for how long a script that came to err may still arrive in Redis:
// 0 if Redis has answered, or was sent nothing.
func (l *Loader[V]) mayArrive(err error) time.Duration {
	if protocol.NotSent(err) || !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return 0
	}
	return l.opt.RedisTimeout
}
