package peer

import (
	"context"
	"slices"

	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
)

// redsyncLock is go-redsync/redsync on one Redis. It does not renew a held lock; users
// call Extend for that.
type redsyncLock struct {
	sync *redsync.Redsync
	rdb  *redis.Client
	opts []redsync.Option
}

func redsyncWith(opts ...redsync.Option) func(context.Context, Config) (Lock, error) {
	return func(ctx context.Context, cfg Config) (Lock, error) {
		rdb, err := dial(ctx, cfg.Addr)
		opts := append(slices.Clone(opts), redsync.WithExpiry(cfg.Lease))
		return &redsyncLock{sync: redsync.New(goredis.NewPool(rdb)), rdb: rdb, opts: opts}, err
	}
}

func (l *redsyncLock) Do(ctx context.Context, name string, fn func(ctx context.Context) error) error {
	m := l.sync.NewMutex(name, l.opts...)
	if err := m.LockContext(ctx); err != nil {
		return err
	}
	defer func() { _, _ = m.UnlockContext(context.WithoutCancel(ctx)) }()
	return fn(ctx)
}

func (l *redsyncLock) Close() error { return l.rdb.Close() }
