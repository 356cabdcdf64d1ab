package near

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/guard"
	"github.com/fetchonce/fetchonce/internal/sleep"
)

// The pause before the next connection. It doubles while no connection becomes trusted.
const (
	firstPause   = 10 * time.Millisecond
	longestPause = time.Second
)

// errReconnect ends a tracking connection that another one follows at once.
var errReconnect = errors.New("the namespaces have changed")

// A tracker receives the changes on one node, over one tracking connection after another.
type tracker struct {
	hub    *Hub
	node   string
	opt    *redis.Options
	ctx    context.Context
	cancel context.CancelFunc

	trust atomic.Pointer[trust] // nil while untrusted

	mu   sync.Mutex // orders changes of trust
	conn *connection
}

func newTracker(h *Hub, node string, opt *redis.Options) *tracker {
	t := &tracker{hub: h, node: node, opt: opt}
	t.ctx, t.cancel = context.WithCancel(h.ctx)
	return t
}

// run keeps a tracking connection until the tracker's context ends.
func (t *tracker) run() {
	for pause := firstPause; t.ctx.Err() == nil; {
		c := &connection{tracker: t, sent: make(map[string]int64)}
		c.ctx, c.cancel = context.WithCancelCause(t.ctx)
		t.mu.Lock()
		t.conn = c
		t.mu.Unlock()
		err := guard.Call(c.run)
		c.cancel(nil)
		t.endTrust()
		if c.trusted.Load() {
			pause = firstPause
		}
		if errors.Is(err, errReconnect) {
			continue
		}
		if t.ctx.Err() == nil {
			t.hub.report(false, err)
		}
		sleep.For(t.ctx, pause/2+rand.N(pause))
		pause = min(2*pause, longestPause)
	}
}

// reconnect ends the connection, and another one follows. The trust ends before reconnect
// returns: it does not cover the namespaces of the next connection.
func (t *tracker) reconnect() {
	t.mu.Lock()
	c := t.conn
	t.mu.Unlock()
	if c != nil {
		t.endTrust()
		c.cancel(errReconnect)
	}
}

// endTrust ends the trust. An entry may be of a slot that has moved to another node, so all
// entries are dropped.
func (t *tracker) endTrust() {
	t.mu.Lock()
	v := t.trust.Swap(nil)
	if v != nil {
		v.stop()
	}
	t.conn = nil
	t.mu.Unlock()
	if v != nil {
		t.hub.renewTrust()
	}
}

// renewTrust ends the trust and starts a new one, which lasts until the same time. The hub
// calls it after a FLUSHALL.
func (t *tracker) renewTrust() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.trust.Load(); v != nil {
		t.trust.Store(newTrust(v.stop()))
	}
}

func newTrust(until int64) *trust {
	v := &trust{}
	v.until.Store(until)
	return v
}

// extendTrust makes the trust last until then, if the connection is the tracker's.
func (t *tracker) extendTrust(c *connection, until int64) {
	if t.extend(c, until) {
		t.hub.report(false, nil)
	}
}

// extend is extendTrust. It reports whether the trust is new.
func (t *tracker) extend(c *connection, until int64) (isNew bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch v := t.trust.Load(); {
	case t.conn != c:
	case v == nil:
		c.trusted.Store(true)
		t.trust.Store(newTrust(until))
		return true
	default:
		v.until.Store(max(v.until.Load(), until))
	}
	return false
}

// lost ends the trust if the lost connection is the tracker's.
func (t *tracker) lost(c *connection) {
	t.mu.Lock()
	current := t.conn == c
	t.mu.Unlock()
	if current {
		t.endTrust()
	}
}
