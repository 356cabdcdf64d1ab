package batch_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// slow is a hook that delays each round trip.
type slow time.Duration

func (slow) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s slow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		time.Sleep(time.Duration(s))
		return next(ctx, cmd)
	}
}

func (s slow) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		time.Sleep(time.Duration(s))
		return next(ctx, cmds)
	}
}

// flood sends a command for each of n callers, with a time limit of half a second.
func flood(t *testing.T, b *batch.Batcher, n int) []<-chan outcome {
	t.Helper()
	all := make([]<-chan outcome, n)
	for i := range all {
		all[i] = do(t.Context(), b, 500*time.Millisecond, set(fmt.Sprint("k", i), "v"))
	}
	synctest.Wait()
	return all
}

// Redis answers each of 34 pipelines after 100 ms, four at a time. So the queue takes
// longer than the time limit of each command.
func TestQueueTimeIsNoTimeoutWhileRedisReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		rdb.AddHook(slow(100 * time.Millisecond))
		last := time.Duration(0)
		for i, ended := range flood(t, batch.New(rdb, func() {}), 10_000) {
			got := <-ended
			if got.err != nil {
				t.Fatalf("the command of caller %d: %v after %v", i, got.err, got.took)
			}
			last = max(last, got.took)
		}
		if last <= 500*time.Millisecond {
			t.Errorf("all took %v; the test has no force", last)
		}
	})
}

// When Redis hangs, a queue times out as soon as a single command would.
func TestQueueEndsWhenRedisHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		rdb.AddHook(slow(100 * time.Millisecond))
		b := batch.New(rdb, func() {})
		all := flood(t, b, 10_000)
		time.Sleep(350 * time.Millisecond) // the last replies came after 300 ms
		r.Pause()
		answered := 0
		for _, ended := range all {
			switch got := <-ended; {
			case got.err == nil:
				answered++
			case got.took > 850*time.Millisecond:
				t.Fatalf("a caller waited %v; Redis answered last after 300 ms", got.took)
			}
		}
		if answered == 0 || answered == len(all) {
			t.Errorf("%d of %d were answered; the test has no force", answered, len(all))
		}
	})
}
