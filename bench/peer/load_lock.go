package peer

import (
	"context"
	"errors"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	redsyncpool "github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/singleflight"
)

// cacheAndLock is a lock library and a plain cache: a lookup, and after a miss lock, lookup,
// fetch, store, unlock. One caller of a process acquires the lock and the others wait for
// that caller (singleflight). Otherwise callers of a popular key would wait for seconds.
type cacheAndLock struct {
	goRedis
	alone singleflight.Group
	lock  func(ctx context.Context, name string) (unlock func() error, err error)
}

func (a *cacheAndLock) Get(ctx context.Context, key string, fetch Fetch) (Thing, error) {
	t, err := a.lookup(ctx, key)
	if !errors.Is(err, redis.Nil) {
		return t, err
	}
	v, err, _ := a.alone.Do(key, func() (any, error) { return a.load(ctx, key, fetch) })
	if err != nil {
		return Thing{}, err
	}
	return v.(Thing), nil
}

func (a *cacheAndLock) load(ctx context.Context, key string, fetch Fetch) (t Thing, err error) {
	unlock, err := a.lock(ctx, "lock:"+key)
	if err != nil {
		return Thing{}, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return a.goRedis.Get(ctx, key, fetch)
}

const lockLife = 8 * time.Second // redsync's default

func lockLifeOf(cfg Config) time.Duration {
	if cfg.Lease > 0 {
		return cfg.Lease
	}
	return lockLife
}

// openCacheAndRedislock makes bsm/redislock poll at a fixed interval, for at most a minute.
// 100 ms is the interval of the backoff example in its documentation, and 10 ms a short one.
func openCacheAndRedislock(backoff time.Duration) func(context.Context, Config) (Adapter, error) {
	return func(_ context.Context, cfg Config) (Adapter, error) {
		rdb := redis.NewClient(&redis.Options{Addr: cfg.Addr})
		locks, life := redislock.New(rdb), lockLifeOf(cfg)
		opt := &redislock.Options{RetryStrategy: redislock.LinearBackoff(backoff)}
		a := &cacheAndLock{goRedis: goRedis{rdb: rdb, ttl: cfg.TTL}}
		a.lock = func(ctx context.Context, name string) (func() error, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Minute) // otherwise Obtain fails after life
			defer cancel()
			l, err := locks.Obtain(ctx, name, life, opt)
			if err != nil {
				return nil, err
			}
			return func() error { return l.Release(context.WithoutCancel(ctx)) }, nil
		}
		return a, nil
	}
}

// openCacheAndRedsync uses redsync with its defaults: it polls every 50 to 250 ms, 32 times.
func openCacheAndRedsync(_ context.Context, cfg Config) (Adapter, error) {
	rdb := redis.NewClient(&redis.Options{Addr: cfg.Addr})
	locks, life := redsync.New(redsyncpool.NewPool(rdb)), lockLifeOf(cfg)
	a := &cacheAndLock{goRedis: goRedis{rdb: rdb, ttl: cfg.TTL}}
	a.lock = func(ctx context.Context, name string) (func() error, error) {
		m := locks.NewMutex(name, redsync.WithExpiry(life))
		if err := m.LockContext(ctx); err != nil {
			return nil, err
		}
		return func() error {
			_, err := m.UnlockContext(context.WithoutCancel(ctx))
			return err
		}, nil
	}
	return a, nil
}
