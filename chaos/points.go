//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A point is a step at which a worker can be ordered to stop or to die.
type point string

const (
	atAcquired point = "acquired" // ACQUIRE has its reply
	atFetch    point = "fetch"    // the source was read
	atFill     point = "fill"     // FILL is about to be sent
	atFilled   point = "filled"   // FILL has its reply
	atMark     point = "mark"     // the key is marked, and nothing is written
	atWritten  point = "written"  // an Update's write is committed
	atLocked   point = "locked"   // a lock is held
	atUnlock   point = "unlock"   // a lock is about to be released
)

var allPoints = []point{atAcquired, atFetch, atFill, atFilled, atMark, atWritten, atLocked, atUnlock}

// points makes a worker stop or die at a point. Its method around is a hook of the Redis client.
type points struct {
	armed atomic.Pointer[string] // the order, such as "stop fill"
}

func (p *points) arm(order string) { p.armed.Store(&order) }

// disarm withdraws the order. It reports whether the order was still pending.
func (p *points) disarm() bool { return p.armed.Swap(nil) != nil }

// pass executes the order for this point, once.
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
		select {} // until the signal arrives
	}
}

// around is a [sendHook] that passes the points before and after commands are sent.
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
