package peer

import (
	"context"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
)

// redislockLock is bsm/redislock. It does not renew a held lock; users call Refresh for
// that.
type redislockLock struct {
	locks *redislock.Client
	rdb   *redis.Client
	lease time.Duration
	every time.Duration
}

func redislockEvery(every time.Duration) func(context.Context, Config) (Lock, error) {
	return func(ctx context.Context, cfg Config) (Lock, error) {
		rdb, err := dial(ctx, cfg.Addr)
		return &redislockLock{locks: redislock.New(rdb), rdb: rdb, lease: cfg.Lease, every: every}, err
	}
}

func (l *redislockLock) Do(ctx context.Context, name string, fn func(ctx context.Context) error) error {
	lock, err := l.locks.Obtain(ctx, name, l.lease, &redislock.Options{RetryStrategy: redislock.LinearBackoff(l.every)})
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release(context.WithoutCancel(ctx)) }() // as in its README
	return fn(ctx)
}

func (l *redislockLock) Close() error { return l.rdb.Close() }
