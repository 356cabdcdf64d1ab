package fetchonce_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A blackHole is a hook that drops scripts: they are neither sent nor answered.
type blackHole struct{ scripts atomic.Int32 } // how many it still drops

func (b *blackHole) DialHook(next redis.DialHook) redis.DialHook { return next }

func (b *blackHole) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" && b.scripts.Add(-1) >= 0 {
			<-ctx.Done()
			return ctx.Err()
		}
		return next(ctx, cmd)
	}
}

func (b *blackHole) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// One renewal without a reply loses no lease, whatever RedisTimeout is.
func TestOneLostRenewalCostsNoLease(t *testing.T) {
	const lease = 3 * time.Second
	for name, timeout := range map[string]time.Duration{"a third": lease / 3, "as long": lease, "longer": 10 * lease} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rdb := redistest.Bubble(t).Client()
				hole := &blackHole{}
				rdb.AddHook(hole)
				work := func(ctx context.Context) error {
					hole.scripts.Store(1)
					select {
					case <-ctx.Done():
						return context.Cause(ctx)
					case <-time.After(3 * lease):
						return nil
					}
				}
				lk, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{
					Prefix: "test", Lease: lease, RedisTimeout: timeout, Logger: slog.New(slog.DiscardHandler),
				})
				if err != nil {
					t.Fatal(err)
				}
				defer lk.Close()
				if err := lk.Do(t.Context(), "n", work); err != nil {
					t.Errorf("Do = %v, want nil", err)
				}
				l := testkit.LoaderOf(t, rdb, func(opt *options) { opt.Lease, opt.RedisTimeout = lease, timeout })
				fetches := 0
				_, err = l.Get(t.Context(), "k", func(ctx context.Context, _ string) (string, error) {
					fetches++
					return "v", work(ctx)
				})
				if err != nil || fetches != 1 {
					t.Errorf("Get = %v after %d fetches, want nil after 1", err, fetches)
				}
			})
		})
	}
}
