package peer

import (
	"slices"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// Loaders lists the libraries that can load a value. Their versions are in go.mod.
//
// Some settings are equal for all, to compare the libraries and not their defaults.
// Values are msgpack without compression if the library has that option (sturdyc has
// not). TTLs have no jitter, so that all libraries expire values at the same time. A
// library that takes a go-redis client receives one with go-redis' defaults, except
// fetchonce; see fetchonceLoader.
var Loaders = []Loader{
	{Name: "fetchonce", Kind: Kind{Once: true, Near: true, Subscribes: true, Many: true}, Open: openFetchonce},

	{Name: "floor-goredis", Kind: Kind{Floor: true, Many: true}, Open: openGoRedis},
	{Name: "floor-goredis-ap", Kind: Kind{Floor: true, Many: true}, Open: openGoRedisPipelined},
	{Name: "floor-rueidis", Kind: Kind{Floor: true, Many: true}, Open: openRueidis},
	{Name: "floor-otter", Kind: Kind{Floor: true, Near: true, Local: true}, Open: openOtter},

	{Name: "goredis-cache", Kind: Kind{Near: true}, Open: openGoRedisCache},
	{Name: "goredis-csc", Kind: Kind{Near: true, Subscribes: true, Late: true, Always: true}, Open: openGoRedisCSC},
	{Name: "jetcache", Kind: Kind{Near: true, Many: true}, Open: openJetcache},
	{Name: "sturdyc", Kind: Kind{Near: true, Late: true, Always: true, Many: true}, Open: openSturdyc},

	{Name: "rueidisaside", Kind: Kind{Once: true, Near: true, Subscribes: true, Always: true}, Open: openRueidisAside},
	{Name: "rockscache-10ms", Kind: Kind{Once: true, Many: true}, Open: openRockscache(10 * time.Millisecond)},
	{Name: "rockscache-100ms", Kind: Kind{Once: true, Many: true}, Open: openRockscache(100 * time.Millisecond)},
	{Name: "redislock-sf-10ms", Kind: Kind{Once: true, Locks: true}, Open: openCacheAndRedislock(10 * time.Millisecond)},
	{Name: "redislock-sf-100ms", Kind: Kind{Once: true, Locks: true}, Open: openCacheAndRedislock(100 * time.Millisecond)},
	{Name: "redsync-sf", Kind: Kind{Once: true, Locks: true}, Open: openCacheAndRedsync},
}

// LoaderOf returns the Loader called name.
func LoaderOf(name string) (Loader, bool) {
	i := slices.IndexFunc(Loaders, func(l Loader) bool { return l.Name == name })
	if i < 0 {
		return Loader{}, false
	}
	return Loaders[i], true
}

const copies = 10_000 // entries of a near cache

// copyLife returns the TTL of a near entry.
func copyLife(cfg Config) time.Duration { return min(cfg.TTL, time.Minute) }

func encode(t Thing) ([]byte, error) { return msgpack.Marshal(&t) }

func decode(b []byte) (t Thing, err error) {
	err = msgpack.Unmarshal(b, &t)
	return t, err
}
