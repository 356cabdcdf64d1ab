package peer

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidisaside"
)

// bareRueidis is the cache of goRedis with rueidis, which pipelines commands itself.
type bareRueidis struct {
	rdb rueidis.Client
	ttl time.Duration
}

func openRueidis(_ context.Context, cfg Config) (Adapter, error) {
	rdb, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{cfg.Addr}, DisableCache: true})
	if err != nil {
		return nil, err
	}
	return &bareRueidis{rdb: rdb, ttl: cfg.TTL}, nil
}

func (a *bareRueidis) Get(ctx context.Context, key string, fetch Fetch) (Thing, error) {
	b, err := a.rdb.Do(ctx, a.rdb.B().Get().Key(key).Build()).AsBytes()
	if err == nil {
		return decode(b)
	}
	if !rueidis.IsRedisNil(err) {
		return Thing{}, err
	}
	t, err := fetch(ctx, key)
	if err != nil {
		return Thing{}, err
	}
	if b, err = encode(t); err != nil {
		return Thing{}, err
	}
	return t, a.rdb.Do(ctx, a.rdb.B().Set().Key(key).Value(rueidis.BinaryString(b)).Px(a.ttl).Build()).Error()
}

func (a *bareRueidis) GetMany(ctx context.Context, keys []string) (map[string]Thing, error) {
	got, err := a.rdb.Do(ctx, a.rdb.B().Mget().Key(keys...).Build()).ToArray()
	if err != nil {
		return nil, err
	}
	out := make(map[string]Thing, len(keys))
	for i := range got {
		b, err := got[i].AsBytes()
		if err != nil {
			return nil, fmt.Errorf("%w: %q: %w", errNotCached, keys[i], err)
		}
		if out[keys[i]], err = decode(b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *bareRueidis) Close() error {
	a.rdb.Close()
	return nil
}

// aside is rueidisaside as in its README, with its typed client. It always reads through
// rueidis' client-side cache. Without cfg.Near the cache is too small for an entry, so
// that a workload measures reads of keys that are not in it.
//
// rueidisaside has no option for the TTL of a near entry: an entry has the TTL of its
// value.
type aside struct {
	client rueidisaside.CacheAsideClient
	typed  rueidisaside.TypedCacheAsideClient[Thing]
	ttl    time.Duration
}

func openRueidisAside(_ context.Context, cfg Config) (Adapter, error) {
	opt := rueidisaside.ClientOption{
		ClientOption: rueidis.ClientOption{InitAddress: []string{cfg.Addr}},
		ClientTTL:    cfg.Lease, // zero means its default, 10s
	}
	if !cfg.Near {
		opt.ClientOption.CacheSizeEachConn = 1
	}
	client, err := rueidisaside.NewClient(opt)
	if err != nil {
		return nil, err
	}
	return &aside{client: client, typed: rueidisaside.NewTypedCacheAsideClient(client, toText, fromText), ttl: cfg.TTL}, nil
}

func toText(t *Thing) (string, error) {
	b, err := encode(*t)
	return rueidis.BinaryString(b), err
}

func fromText(s string) (*Thing, error) {
	t, err := decode([]byte(s))
	return &t, err
}

func (a *aside) Get(ctx context.Context, key string, fetch Fetch) (Thing, error) {
	t, err := a.typed.Get(ctx, a.ttl, key, func(ctx context.Context, key string) (*Thing, error) {
		t, err := fetch(ctx, key)
		return &t, err
	})
	if err != nil {
		return Thing{}, err
	}
	return *t, nil
}

func (a *aside) Delete(ctx context.Context, key string) error { return a.typed.Del(ctx, key) }

func (a *aside) Close() error {
	a.client.Close()
	return nil
}
