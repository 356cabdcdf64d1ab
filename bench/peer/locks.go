package peer

import (
	"context"
	"math"
	"time"

	"github.com/go-redsync/redsync/v4"
	"github.com/redis/go-redis/v9"
)

// Lockers are the libraries of locks. The waits of those that poll are in their
// names, but for redsync's own, which is 50 to 250 ms.
var Lockers = []Locker{
	{Name: "fetchonce", Open: openFetchonceLock},
	{Name: "redislock-10ms", Open: redislockEvery(10 * time.Millisecond)},
	{Name: "redislock-100ms", Open: redislockEvery(100 * time.Millisecond)},
	{Name: "redsync", Open: redsyncWith()},
	{Name: "redsync-5ms", Open: redsyncWith(redsync.WithRetryDelay(5*time.Millisecond), redsync.WithTries(math.MaxInt32))},
}

// NoLock runs without a lock: the bound of all of them.
var NoLock = Locker{Name: "floor-no-lock", Open: func(context.Context, Config) (Lock, error) { return noLock{}, nil }}

type noLock struct{}

func (noLock) Do(ctx context.Context, _ string, fn func(ctx context.Context) error) error {
	return fn(ctx)
}

func (noLock) Close() error { return nil }

// dial returns a client with go-redis' own defaults, as users have them. It has
// been used, for whoever first sends something connects.
func dial(ctx context.Context, addr string) (*redis.Client, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	return rdb, rdb.Ping(ctx).Err()
}
