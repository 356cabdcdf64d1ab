package testkit

import (
	"context"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// A Before is a hook that calls a function before each command is sent, alone or in a pipeline.
type Before func(cmd redis.Cmder)

// DialHook changes nothing.
func (Before) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook calls the function before a command.
func (b Before) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		b(cmd)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook calls the function before the commands of a pipeline.
func (b Before) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			b(cmd)
		}
		return next(ctx, cmds)
	}
}

// HoldFirst holds back a client's first command of a name until the test closes free. stopped is
// closed when it is held back.
func HoldFirst(rdb redis.UniversalClient, name string) (stopped <-chan struct{}, free chan<- struct{}) {
	var first atomic.Bool
	held, release := make(chan struct{}), make(chan struct{})
	AddHook(rdb, Before(func(cmd redis.Cmder) {
		if cmd.Name() == name && first.CompareAndSwap(false, true) {
			close(held)
			<-release
		}
	}))
	return held, release
}
