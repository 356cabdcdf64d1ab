//go:build linux

package main

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// A sendHook is a hook of a Redis client. It is called in place of sending a command or a pipeline,
// and calls send.
type sendHook func(cmds []redis.Cmder, send func() error) error

// DialHook changes nothing.
func (sendHook) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook calls the hook with one command.
func (h sendHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return h([]redis.Cmder{cmd}, func() error { return next(ctx, cmd) })
	}
}

// ProcessPipelineHook calls the hook with the commands of a pipeline.
func (h sendHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return h(cmds, func() error { return next(ctx, cmds) })
	}
}
