package peer

import (
	"context"
	"math"
	"time"

	"github.com/go-redsync/redsync/v4"
	"github.com/redis/go-redis/v9"
)

// Lockers lists the lock libraries. The name of a library that polls contains the
// interval, except for redsync's default of 50 to 250 ms.
var Lockers = []Locker{
	{Name: "fetchonce", Open: openFetchonceLock},
	{Name: "redislock-10ms", Open: redislockEvery(10 * time.Millisecond)},
	{Name: "redislock-100ms", Open: redislockEvery(100 * time.Millisecond)},
	{Name: "redsync", Open: redsyncWith()},
	{Name: "redsync-5ms", Open: redsyncWith(redsync.WithRetryDelay(5*time.Millisecond), redsync.WithTries(math.MaxInt32))},
}

// NoLock runs fn without a lock. It is the lower bound for all Lockers.
var NoLock = Locker{Name: "floor-no-lock", Open: func(context.Context, Config) (Lock, error) { return noLock{}, nil }}

type noLock struct{}

func (noLock) Do(ctx context.Context, _ string, fn func(ctx context.Context) error) error {
	return fn(ctx)
}

func (noLock) Close() error { return nil }

// dial returns a client with go-redis' own defaults. It sends a PING, because go-redis
// connects at the first command.
func dial(ctx context.Context, addr string) (*redis.Client, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	return rdb, rdb.Ping(ctx).Err()
}
