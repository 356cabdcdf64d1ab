//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A point is a step at which a worker can be told to stop or to die.
type point string

const (
	atAcquired point = "acquired" // ACQUIRE was answered
	atFetch    point = "fetch"    // the source was read
	atFill     point = "fill"     // FILL is about to be sent
	atFilled   point = "filled"   // FILL was answered
	atMark     point = "mark"     // the key is marked, nothing written
	atWritten  point = "written"  // an Update's write is committed
	atLocked   point = "locked"   // a lock is held
	atUnlock   point = "unlock"   // it is about to be given back
)

var allPoints = []point{atAcquired, atFetch, atFill, atFilled, atMark, atWritten, atLocked, atUnlock}

// points is where a worker stops or dies, as a hook of its Redis client too.
type points struct {
	armed atomic.Pointer[string] // what to do where: "stop fill"
}

func (p *points) arm(order string) { p.armed.Store(&order) }

// disarm takes an order back. It reports whether it had not been carried out.
func (p *points) disarm() bool { return p.armed.Swap(nil) != nil }

// pass does what was ordered for this point, once.
func (p *points) pass(at point) {
	order := p.armed.Load()
	if order == nil || !strings.HasSuffix(*order, " "+string(at)) || !p.armed.CompareAndSwap(order, nil) {
		return
	}
	fmt.Println("at", at)
	signal := syscall.SIGSTOP
	if strings.HasPrefix(*order, "kill") {
		signal = syscall.SIGKILL
	}
	_ = syscall.Kill(os.Getpid(), signal)
	if signal == syscall.SIGKILL {
		select {} // it takes a moment
	}
}

// around passes the points before and after commands are sent.
func (p *points) around(cmds []redis.Cmder, send func() error) error {
	if p.armed.Load() == nil {
		return send()
	}
	names := make(map[string]bool)
	for _, cmd := range cmds {
		names[protocol.ScriptName(cmd)] = true
	}
	if names["fill"] {
		p.pass(atFill)
	}
	err := send()
	if names["acquire"] {
		p.pass(atAcquired)
	}
	if names["fill"] {
		p.pass(atFilled)
	}
	return err
}

// DialHook makes points a [redis.Hook], as do the methods below.
func (p *points) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook passes the points around a command.
func (p *points) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return p.around([]redis.Cmder{cmd}, func() error { return next(ctx, cmd) })
	}
}

// ProcessPipelineHook passes the points around a pipeline.
func (p *points) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return p.around(cmds, func() error { return next(ctx, cmds) })
	}
}
