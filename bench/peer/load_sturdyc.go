package peer

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/viccon/sturdyc"
)

// sturdy is sturdyc with Redis as its distributed storage, as in its README: 10,000
// entries in 10 shards. It stores in Redis in the background, and always as JSON.
//
// sturdyc cannot work without its near cache. Without cfg.Near an entry expires after a
// nanosecond. Evictions are off and the cache is large enough, which costs the least.
type sturdy struct {
	rdb *redis.Client
	c   *sturdyc.Client[Thing]
}

func openSturdyc(_ context.Context, cfg Config) (Adapter, error) {
	rdb := redis.NewClient(&redis.Options{Addr: cfg.Addr})
	storage := sturdyc.WithDistributedStorage(&sturdyStorage{rdb: rdb, ttl: cfg.TTL})
	const shards, evicted = 10, 10
	if cfg.Near {
		return &sturdy{rdb: rdb, c: sturdyc.New[Thing](copies, shards, copyLife(cfg), evicted, storage)}, nil
	}
	c := sturdyc.New[Thing](100*copies, shards, time.Nanosecond, evicted, storage,
		sturdyc.WithNoContinuousEvictions(), sturdyc.WithEvictionInterval(time.Hour)) // required for a nanosecond
	return &sturdy{rdb: rdb, c: c}, nil
}

func (a *sturdy) Get(ctx context.Context, key string, fetch Fetch) (Thing, error) {
	return a.c.GetOrFetch(ctx, key, func(ctx context.Context) (Thing, error) { return fetch(ctx, key) })
}

func (a *sturdy) GetMany(ctx context.Context, keys []string) (map[string]Thing, error) {
	return a.c.GetOrFetchBatch(ctx, keys, func(id string) string { return id }, noFetchMany)
}

func (a *sturdy) Close() error { return a.rdb.Close() }

// sturdyStorage is a sturdyc.DistributedStorage. It reports an error of Redis as a miss.
type sturdyStorage struct {
	rdb *redis.Client
	ttl time.Duration
}

func (s *sturdyStorage) Get(ctx context.Context, key string) ([]byte, bool) {
	b, err := s.rdb.Get(ctx, key).Bytes()
	return b, err == nil
}

func (s *sturdyStorage) Set(ctx context.Context, key string, value []byte) {
	_ = s.rdb.Set(ctx, key, value, s.ttl).Err()
}

func (s *sturdyStorage) GetBatch(ctx context.Context, keys []string) map[string][]byte {
	out := make(map[string][]byte, len(keys))
	got, err := s.rdb.MGet(ctx, keys...).Result()
	if err != nil {
		return out
	}
	for i, v := range got {
		if text, ok := v.(string); ok {
			out[keys[i]] = []byte(text)
		}
	}
	return out
}

func (s *sturdyStorage) SetBatch(ctx context.Context, records map[string][]byte) {
	_, _ = s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for key, value := range records {
			p.Set(ctx, key, value, s.ttl)
		}
		return nil
	})
}
