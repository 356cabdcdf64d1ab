package peer

import (
	"context"
	"time"

	cache "github.com/mgtv-tech/jetcache-go"
	"github.com/mgtv-tech/jetcache-go/encoding"
	"github.com/mgtv-tech/jetcache-go/local"
	"github.com/mgtv-tech/jetcache-go/remote"
	"github.com/redis/go-redis/v9"
	"github.com/vmihailenco/msgpack/v5"
)

// jetcache is jetcache-go through Once, and through MGet for many keys. Statistics are
// off. The codec is plain msgpack; jetcache-go's msgpack also compresses. The local cache
// is TinyLFU, as in the first example of its documentation; it is faster than its
// FreeCache. jetcache-go notifies other processes of a change only if the user adds that.
type jetcache struct {
	rdb *redis.Client
	c   cache.Cache
	t   *cache.T[string, Thing]
	ttl time.Duration
}

// tinyLFUCost is the cost of an entry in jetcache-go's TinyLFU, whose size is a sum of
// costs: jetcache-go passes 1, and ristretto adds 56.
const tinyLFUCost = 57

func openJetcache(_ context.Context, cfg Config) (Adapter, error) {
	rdb := redis.NewClient(&redis.Options{Addr: cfg.Addr})
	opts := []cache.Option{
		cache.WithName("bench"),
		cache.WithRemote(remote.NewGoRedisV9Adapter(rdb)),
		cache.WithRemoteExpiry(cfg.TTL),
		cache.WithCodec(plainMsgpack{}.Name()),
		cache.WithStatsDisabled(true),
		cache.WithSeparatorDisabled(true), // no separator in MGet's keys
	}
	if cfg.Near {
		opts = append(opts, cache.WithLocal(local.NewTinyLFU(copies*tinyLFUCost, copyLife(cfg))))
	}
	c := cache.New(opts...)
	return &jetcache{rdb: rdb, c: c, t: cache.NewT[string, Thing](c), ttl: cfg.TTL}, nil
}

func (a *jetcache) Get(ctx context.Context, key string, fetch Fetch) (t Thing, err error) {
	err = a.c.Once(ctx, key, cache.Value(&t), cache.TTL(a.ttl), cache.Do(func(ctx context.Context) (any, error) {
		t, err := fetch(ctx, key)
		return &t, err
	}))
	return t, err
}

func (a *jetcache) GetMany(ctx context.Context, keys []string) (map[string]Thing, error) {
	return a.t.MGetWithErr(ctx, "", keys, noFetchMany)
}

func (a *jetcache) Close() error {
	a.c.Close()
	return a.rdb.Close()
}

// plainMsgpack is a codec for jetcache-go: msgpack without compression.
type plainMsgpack struct{}

func init() { encoding.RegisterCodec(plainMsgpack{}) }

func (plainMsgpack) Name() string                       { return "msgpack-plain" }
func (plainMsgpack) Marshal(v any) ([]byte, error)      { return msgpack.Marshal(v) }
func (plainMsgpack) Unmarshal(data []byte, v any) error { return msgpack.Unmarshal(data, v) }
