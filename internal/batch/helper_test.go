package batch_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// within is a time limit that no test reaches while Redis answers.
const within = 10 * time.Second

// A counter is a hook that counts the commands and pipelines of a client.
type counter struct {
	mu        sync.Mutex
	alone     int
	pipelines []int // their lengths
}

func (c *counter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() != "hello" {
			c.mu.Lock()
			c.alone++
			c.mu.Unlock()
		}
		return next(ctx, cmd)
	}
}

func (c *counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.mu.Lock()
		c.pipelines = append(c.pipelines, len(cmds))
		c.mu.Unlock()
		return next(ctx, cmds)
	}
}

// An outcome is how a Do ended, and after how long.
type outcome struct {
	err  error
	took time.Duration
}

// do calls Do on a goroutine of its own.
func do(ctx context.Context, b *batch.Batcher, within time.Duration, cmds ...redis.Cmder) <-chan outcome {
	ended := make(chan outcome, 1)
	go func() {
		start := time.Now()
		err := b.Do(ctx, within, cmds...)
		ended <- outcome{err, time.Since(start)}
	}()
	return ended
}

// newCounted returns a Batcher that does not linger, and a counter of what its client sends.
func newCounted(rdb redis.UniversalClient) (*batch.Batcher, *counter) {
	c := new(counter)
	rdb.AddHook(c)
	return batch.NewEager(rdb), c
}

// newPaused returns a Batcher that does not linger, over a Redis that is paused.
func newPaused(t *testing.T) (redistest.Redis, *batch.Batcher) {
	t.Helper()
	r := redistest.Bubble(t)
	r.Pause()
	return r, batch.NewEager(r.Client())
}

func wantEnded(t *testing.T, caller string, ended <-chan outcome, after time.Duration, want error) {
	t.Helper()
	select {
	case got := <-ended:
		if !errors.Is(got.err, want) || got.took != after {
			t.Errorf("%s: %v after %v; want %v after %v", caller, got.err, got.took, want, after)
		}
	default:
		t.Errorf("%s still waits", caller)
	}
}

// wantAllEnded checks the outcome of each caller.
func wantAllEnded(t *testing.T, callers []<-chan outcome, after time.Duration, want error) {
	t.Helper()
	synctest.Wait()
	for i, ended := range callers {
		wantEnded(t, fmt.Sprint("caller ", i), ended, after, want)
	}
}

func wantWaiting(t *testing.T, caller string, ended <-chan outcome) {
	t.Helper()
	select {
	case got := <-ended:
		t.Errorf("%s does not wait any more: %v", caller, got.err)
	default:
	}
}

func get(key string) *redis.StringCmd { return redis.NewStringCmd(context.Background(), "get", key) }

func set(key, value string) *redis.StatusCmd {
	return redis.NewStatusCmd(context.Background(), "set", key, value)
}

// busy sends maxInFlight pipelines of one command each to a Redis that is paused.
func busy(t *testing.T, b *batch.Batcher, ctx context.Context, within time.Duration) []<-chan outcome { //nolint:revive // a test helper
	t.Helper()
	var ended []<-chan outcome
	for i := range 4 {
		ended = append(ended, do(ctx, b, within, set(fmt.Sprint("busy", i), "v")))
		synctest.Wait()
	}
	return ended
}

// deadlines is a hook that records the time limit of the last command.
type deadlines struct{ left time.Duration }

func (*deadlines) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d *deadlines) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		end, _ := ctx.Deadline()
		d.left = time.Until(end)
		return err
	}
}

func (*deadlines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// failing is a connection on which every command fails.
type failing struct{ err error }

func (f failing) Process(_ context.Context, cmd redis.Cmder) error {
	cmd.SetErr(f.err)
	return f.err
}

// A gate is a hook that holds back pipelines until it is open.
type gate struct{ open chan struct{} }

func newGated(rdb redis.UniversalClient) (*batch.Batcher, gate) {
	g := gate{open: make(chan struct{})}
	rdb.AddHook(g)
	return batch.NewEager(rdb), g
}

func (g gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		<-g.open
		return next(ctx, cmds)
	}
}

// A tarpit is a hook that takes commands in the place of Redis. It answers a command at once, or, if
// it is on, when it is drained.
type tarpit struct {
	on    atomic.Bool
	taken atomic.Int32 // commands and pipelines
	drain chan struct{}
}

// newTarpit returns a tarpit that is on, and a Batcher over it.
func newTarpit(t *testing.T) (*tarpit, *batch.Batcher) {
	t.Helper()
	p := &tarpit{drain: make(chan struct{})}
	p.on.Store(true)
	rdb := redistest.Bubble(t).Client()
	rdb.AddHook(p)
	return p, batch.NewEager(rdb)
}

func (p *tarpit) take() {
	p.taken.Add(1)
	if p.on.Load() {
		<-p.drain
	}
}

func (*tarpit) DialHook(next redis.DialHook) redis.DialHook { return next }

func (p *tarpit) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { p.take(); return nil }
}

func (p *tarpit) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { p.take(); return nil }
}
