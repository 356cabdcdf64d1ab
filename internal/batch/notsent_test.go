package batch_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func wantNotSent(t *testing.T, caller string, err error, want bool) {
	t.Helper()
	if err == nil || batch.NotSent(err) != want {
		t.Errorf("%s: NotSent(%v) = %v, want %v", caller, err, !want, want)
	}
}

func TestQueuedCommandWasNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b := batch.NewEager(r.Client())
		r.Pause()
		ctx, cancel := context.WithCancel(t.Context())
		sent := busy(t, b, ctx, time.Second)
		left := do(ctx, b, within, get("k"))
		late := do(t.Context(), b, 100*time.Millisecond, get("k"))
		shut := do(t.Context(), b, within, get("k"))
		time.Sleep(100 * time.Millisecond)
		cancel()
		synctest.Wait()
		go b.Close(io.EOF)
		synctest.Wait()
		for _, ended := range sent {
			wantNotSent(t, "in flight", (<-ended).err, false)
		}
		wantNotSent(t, "cancelled in the queue", (<-left).err, true)
		wantNotSent(t, "timed out in the queue", (<-late).err, true)
		wantNotSent(t, "in the queue at Close", (<-shut).err, true)
		wantNotSent(t, "after Close", b.Do(t.Context(), within, get("k")), true)
	})
}

func TestCommandWithoutTimeWasNotSent(t *testing.T) {
	afterAPromptReply(t, func(t *testing.T, r redistest.Redis, _ *redis.Client, s *senders, b *batch.Batcher) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		wantNotSent(t, "with a context that had ended", b.Do(ended, within, get("k")), true)
		wantNotSent(t, "without time", b.Do(t.Context(), 0, get("k")), true)
		wantSenders(t, s)
		r.Pause()
		wantNotSent(t, "sent inline", b.Do(t.Context(), 100*time.Millisecond, get("k")), false)
	})
}

func TestCommandWithoutAConnectionWasNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		once := batch.New(r.Client(), func() {})
		retries := batch.New(r.Client(func(o *redis.Options) { o.MaxRetries = 1 }), func() {})
		for _, b := range []*batch.Batcher{once, retries} {
			if err := b.Do(t.Context(), within, set("k", "v")); err != nil {
				t.Fatal(err)
			}
		}
		r.Wire().LoseReplies(1)
		wantNotSent(t, "its reply was lost", once.Do(t.Context(), within, get("k")), false)
		r.Kill()
		wantNotSent(t, "refused", once.Do(t.Context(), within, get("k")), true)
		wantNotSent(t, "a pipeline, refused", once.Do(t.Context(), within, get("k"), get("k")), true)
		wantNotSent(t, "refused in the second attempt", retries.Do(t.Context(), within, get("k")), false)
	})
}

func TestCommandWithoutAPooledConnectionWasNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client(func(o *redis.Options) { o.PoolSize, o.PoolTimeout = 1, time.Second })
		conn := rdb.Conn()
		if err := conn.Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		wantNotSent(t, "no free connection", batch.New(rdb, func() {}).Do(t.Context(), within, get("k")), true)
	})
}

// A context may be another lease's, or a user's, and do anything in its methods.
func TestNoContextMethodIsCalledUnderTheMutex(t *testing.T) {
	afterAPromptReply(t, func(t *testing.T, _ redistest.Redis, _ *redis.Client, s *senders, b *batch.Batcher) {
		ctx := &nested{Context: t.Context(), use: func() {
			if err := b.Do(t.Context(), within, get("k")); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}}
		if err := b.Do(ctx, within, get("k")); err != nil {
			t.Error(err)
		}
		if ctx.uses == 0 || len(s.taken()) != ctx.uses+1 {
			t.Error("the test has no force")
		}
	})
}

// nested is a context whose methods use the batcher.
type nested struct {
	context.Context
	use  func()
	uses int
}

func (n *nested) Err() error {
	n.uses++
	n.use()
	return n.Context.Err()
}

func (n *nested) Deadline() (time.Time, bool) {
	n.uses++
	n.use()
	return n.Context.Deadline()
}
