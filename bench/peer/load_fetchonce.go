package peer

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
)

// fetchonceLoader is fetchonce with its default options and without jitter. The client has
// the option that New recommends.
type fetchonceLoader struct {
	rdb *redis.Client
	l   *fetchonce.Loader[Thing]
}

func openFetchonce(_ context.Context, cfg Config) (Adapter, error) {
	opt := fetchonce.Options[Thing]{Prefix: "bench", TTL: cfg.TTL, Jitter: fetchonce.Off, Lease: cfg.Lease}
	if cfg.Near {
		opt.Near = fetchonce.Near{Entries: copies, TTL: copyLife(cfg)}
	}
	rdb := redis.NewClient(&redis.Options{Addr: cfg.Addr, ContextTimeoutEnabled: true}) // as New recommends
	l, err := fetchonce.New(rdb, opt)
	if err != nil {
		return nil, errors.Join(err, rdb.Close())
	}
	return &fetchonceLoader{rdb: rdb, l: l}, nil
}

func (a *fetchonceLoader) Get(ctx context.Context, key string, fetch Fetch) (Thing, error) {
	return a.l.Get(ctx, key, fetch)
}

func (a *fetchonceLoader) GetMany(ctx context.Context, keys []string) (map[string]Thing, error) {
	return a.l.GetMany(ctx, keys, noFetchMany)
}

func (a *fetchonceLoader) Delete(ctx context.Context, key string) error { return a.l.Delete(ctx, key) }

func (a *fetchonceLoader) Close() error { return errors.Join(a.l.Close(), a.rdb.Close()) }

var errNotCached = errors.New("a key of a GetMany is not in the cache")

func noFetchMany(context.Context, []string) (map[string]Thing, error) { return nil, errNotCached }
