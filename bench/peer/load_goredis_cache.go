package peer

import (
	"context"
	"time"

	"github.com/go-redis/cache/v9"
	"github.com/redis/go-redis/v9"
	"github.com/vmihailenco/msgpack/v5"
)

// goRedisCache is go-redis/cache through Once, which its documentation recommends. The
// codec is plain msgpack; the default codec also compresses values above 64 bytes.
type goRedisCache struct {
	rdb *redis.Client
	c   *cache.Cache
	ttl time.Duration
}

func openGoRedisCache(_ context.Context, cfg Config) (Adapter, error) {
	rdb := redis.NewClient(&redis.Options{Addr: cfg.Addr})
	opt := &cache.Options{Redis: rdb, Marshal: msgpack.Marshal, Unmarshal: msgpack.Unmarshal}
	if cfg.Near {
		opt.LocalCache = cache.NewTinyLFU(copies, copyLife(cfg))
	}
	return &goRedisCache{rdb: rdb, c: cache.New(opt), ttl: cfg.TTL}, nil
}

func (a *goRedisCache) Get(ctx context.Context, key string, fetch Fetch) (t Thing, err error) {
	err = a.c.Once(&cache.Item{
		Ctx: ctx, Key: key, Value: &t, TTL: a.ttl,
		Do: func(item *cache.Item) (any, error) {
			t, err := fetch(item.Ctx, item.Key)
			return &t, err
		},
	})
	return t, err
}

func (a *goRedisCache) Close() error { return a.rdb.Close() }
