package peer

import (
	"context"
	"time"

	"github.com/dtm-labs/rockscache"
	"github.com/redis/go-redis/v9"
)

// rocks is rockscache with its default options, except the interval at which it polls a
// key that another process fetches. 100 ms is the default, and 10 ms a short one.
//
// rockscache subtracts Delay from the TTL of each value, in whole seconds. So Delay is one
// second, the minimum, and rocks adds it to the TTL.
type rocks struct {
	rdb  *redis.Client
	c    *rockscache.Client
	life time.Duration
}

const rocksDelay = time.Second

func openRockscache(sleep time.Duration) func(context.Context, Config) (Adapter, error) {
	return func(_ context.Context, cfg Config) (Adapter, error) {
		rdb := redis.NewClient(&redis.Options{Addr: cfg.Addr})
		opt := rockscache.NewDefaultOptions()
		opt.Delay = rocksDelay
		opt.LockSleep = sleep
		opt.RandomExpireAdjustment = 0
		if cfg.Lease > 0 {
			opt.LockExpire = max(cfg.Lease, time.Second)
		}
		return &rocks{rdb: rdb, c: rockscache.NewClient(rdb, opt), life: cfg.TTL + rocksDelay}, nil
	}
}

func (a *rocks) Get(ctx context.Context, key string, fetch Fetch) (Thing, error) {
	s, err := a.c.Fetch2(ctx, key, a.life, func() (string, error) {
		t, err := fetch(ctx, key)
		if err != nil {
			return "", err
		}
		b, err := encode(t)
		return string(b), err
	})
	if err != nil {
		return Thing{}, err
	}
	return decode([]byte(s))
}

func (a *rocks) GetMany(ctx context.Context, keys []string) (map[string]Thing, error) {
	got, err := a.c.FetchBatch2(ctx, keys, a.life, func([]int) (map[int]string, error) { return nil, errNotCached })
	if err != nil {
		return nil, err
	}
	out := make(map[string]Thing, len(keys))
	for i, s := range got {
		if out[keys[i]], err = decode([]byte(s)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *rocks) Close() error { return a.rdb.Close() }
