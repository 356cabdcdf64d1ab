package peer

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
)

type fetchonceLock struct {
	*fetchonce.Locker
	rdb *redis.Client
}

func openFetchonceLock(ctx context.Context, cfg Config) (Lock, error) {
	rdb, err := dial(ctx, cfg.Addr)
	if err != nil {
		return nil, err
	}
	lk, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "bench", Lease: cfg.Lease})
	return &fetchonceLock{Locker: lk, rdb: rdb}, err
}

func (l *fetchonceLock) Close() error { return errors.Join(l.Locker.Close(), l.rdb.Close()) }
