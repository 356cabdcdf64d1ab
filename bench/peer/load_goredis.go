package peer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// goRedis is the simplest cache: GET and decode; after a miss, fetch and SET. Concurrent
// callers all fetch.
type goRedis struct {
	rdb redis.UniversalClient
	ttl time.Duration
}

func openGoRedis(_ context.Context, cfg Config) (Adapter, error) {
	rdb := redis.NewClient(&redis.Options{Addr: cfg.Addr})
	return &goRedis{rdb: rdb, ttl: cfg.TTL}, nil
}

// openGoRedisPipelined sends the same commands through go-redis' automatic pipelining
// (experimental in v9.23), with its defaults for blocking callers.
func openGoRedisPipelined(_ context.Context, cfg Config) (Adapter, error) {
	rdb := redis.NewClient(&redis.Options{Addr: cfg.Addr})
	ap, err := rdb.AutoPipeline()
	if err != nil {
		return nil, errors.Join(err, rdb.Close())
	}
	return &pipelined{goRedis: goRedis{rdb: ap, ttl: cfg.TTL}, client: rdb}, nil
}

type pipelined struct {
	goRedis
	client *redis.Client
}

func (a *pipelined) Close() error { return errors.Join(a.goRedis.Close(), a.client.Close()) }

// openGoRedisCSC uses go-redis' client-side cache (experimental in v9.23), as in
// go-redis' README. The cache holds encoded replies.
//
// The cache cannot be switched off. Without cfg.Near it holds one entry, so that a
// workload measures reads of keys that are not in it.
func openGoRedisCSC(_ context.Context, cfg Config) (Adapter, error) {
	entries := 1
	if cfg.Near {
		entries = copies
	}
	rdb := redis.NewClient(&redis.Options{
		Addr:                  cfg.Addr,
		Protocol:              3,
		ClientSideCacheConfig: &redis.ClientSideCacheConfig{MaxEntries: entries},
	})
	return &goRedis{rdb: rdb, ttl: cfg.TTL}, nil
}

func (a *goRedis) Get(ctx context.Context, key string, fetch Fetch) (Thing, error) {
	t, err := a.lookup(ctx, key)
	if !errors.Is(err, redis.Nil) {
		return t, err
	}
	if t, err = fetch(ctx, key); err != nil {
		return Thing{}, err
	}
	return t, a.store(ctx, key, t)
}

// lookup returns redis.Nil if the key has no value.
func (a *goRedis) lookup(ctx context.Context, key string) (Thing, error) {
	b, err := a.rdb.Get(ctx, key).Bytes()
	if err != nil {
		return Thing{}, err
	}
	return decode(b)
}

func (a *goRedis) store(ctx context.Context, key string, t Thing) error {
	b, err := encode(t)
	if err != nil {
		return err
	}
	return a.rdb.Set(ctx, key, b, a.ttl).Err()
}

func (a *goRedis) GetMany(ctx context.Context, keys []string) (map[string]Thing, error) {
	got, err := a.rdb.MGet(ctx, keys...).Result()
	if err != nil {
		return nil, err
	}
	out := make(map[string]Thing, len(keys))
	for i, v := range got {
		s, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("%w: %q", errNotCached, keys[i])
		}
		if out[keys[i]], err = decode([]byte(s)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *goRedis) Delete(ctx context.Context, key string) error { return a.rdb.Del(ctx, key).Err() }

func (a *goRedis) Close() error { return a.rdb.Close() }
