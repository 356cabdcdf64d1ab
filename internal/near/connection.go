package near

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/redis/go-redis/v9/push"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// setupTimeout limits the dial and each answer while a connection is set up.
const setupTimeout = time.Second

var errEnded = errors.New("tracking connection ended")

// A connection is one tracking connection.
type connection struct {
	tracker *tracker
	ctx     context.Context
	cancel  context.CancelCauseFunc

	values, changes []string
	heartbeats      string // the channel of heartbeats, and the prefix of their names
	dialed, trusted atomic.Bool
	refusal         error // why the server refuses tracking; set before the first message

	mu    sync.Mutex
	sent  map[string]int64 // heartbeats that have not arrived, and when they were sent
	until int64            // the connection ends if no heartbeat arrives before
}

// run receives changes until the connection ends, and returns why it ended. It receives
// without a time limit: when a limit passes in the middle of a push, go-redis loses its place
// in the stream. The heartbeats detect a silent connection.
func (c *connection) run() error {
	h := c.tracker.hub
	c.values, c.changes = h.names()
	if len(c.values) == 0 {
		<-c.ctx.Done() // until a cache is attached
		return context.Cause(c.ctx)
	}
	c.heartbeats = protocol.Heartbeats(c.changes[0], h.process) // of any namespace
	rdb := redis.NewClient(c.options())
	defer func() { _ = rdb.Close() }()
	if err := rdb.RegisterPushNotificationHandler("invalidate", c, false); err != nil {
		return err
	}
	conn := rdb.Subscribe(c.ctx)
	stop := context.AfterFunc(c.ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	if err := conn.Subscribe(c.ctx, c.heartbeats); err != nil {
		return err
	}
	if c.refusal != nil {
		h.report(true, c.refusal)
		if err := conn.Subscribe(c.ctx, c.changes...); err != nil {
			return err
		}
	}
	return c.receive(conn)
}

// receive handles messages. It starts the heartbeats once the subscriptions are confirmed.
func (c *connection) receive(conn *redis.PubSub) error {
	var heartbeats sync.WaitGroup
	defer heartbeats.Wait()
	defer c.cancel(nil)
	for wanted := 1 + len(c.changes); ; {
		got, err := conn.Receive(c.ctx)
		if err != nil {
			if c.ctx.Err() != nil {
				err = context.Cause(c.ctx)
			}
			return err
		}
		switch got := got.(type) {
		case *redis.Subscription:
			wanted--
			if got.Count == 1 && c.refusal == nil || wanted == 0 {
				heartbeats.Go(c.sendHeartbeats) // ends with c.ctx
			}
		case *redis.Message:
			c.changed(got.Payload)
		}
	}
}

// options returns the user's options, for a single RESP3 connection.
func (c *connection) options() *redis.Options {
	opt := *c.tracker.opt
	opt.Protocol = 3
	opt.PoolSize, opt.MinIdleConns, opt.MaxIdleConns, opt.MaxActiveConns = 1, 0, 0, 0
	opt.MaxRetries = -1
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout = setupTimeout, setupTimeout, setupTimeout
	opt.ContextTimeoutEnabled = true
	opt.PushNotificationProcessor = nil // that of the user would receive our pushes
	opt.ClientSideCache, opt.ClientSideCacheConfig = nil, nil
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	dial, connected := opt.Dialer, opt.OnConnect
	opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if c.dialed.Load() {
			return nil, errEnded // prevents go-redis from reconnecting: run does that
		}
		ctx, cancel := context.WithTimeout(ctx, setupTimeout)
		defer cancel()
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c.dialed.Store(true)
		context.AfterFunc(c.ctx, func() { _ = conn.Close() })
		return &watched{conn, c}, nil
	}
	opt.OnConnect = func(ctx context.Context, conn *redis.Conn) error {
		if connected != nil {
			if err := connected(ctx, conn); err != nil {
				return err
			}
		}
		return c.track(ctx, conn)
	}
	return &opt
}

// track sends CLIENT TRACKING. If the server refuses that, it sets refusal.
func (c *connection) track(ctx context.Context, conn *redis.Conn) error {
	// go-redis falls back to RESP2 by itself. There, Redis would accept CLIENT TRACKING and
	// send no invalidations.
	err := conn.Process(ctx, redis.NewCmd(ctx, "hello", "3"))
	if err == nil {
		args := []any{"client", "tracking", "on", "bcast", "prefix", c.heartbeats}
		for _, v := range c.values {
			args = append(args, "prefix", v)
		}
		err = conn.Process(ctx, redis.NewStatusCmd(ctx, args...))
	}
	if _, answered := errors.AsType[redis.Error](err); answered && !isPassing(err) {
		c.refusal, err = err, nil
	}
	return err
}

// isPassing reports whether an error says that a server is not ready yet.
func isPassing(err error) bool {
	for _, prefix := range []string{"LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "NOAUTH", "WRONGPASS"} {
		if redis.HasErrorPrefix(err, prefix) {
			return true
		}
	}
	return false
}

// watched is a network connection that ends the trust as soon as a read fails. go-redis
// would first try to reconnect, and return the error afterwards.
type watched struct {
	net.Conn
	connection *connection
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil {
		w.connection.tracker.lost(w.connection)
	}
	return n, err
}

// HandlePushNotification is called with ["invalidate", [names]], or with nil for the names
// after a FLUSHALL.
func (c *connection) HandlePushNotification(_ context.Context, _ push.NotificationHandlerContext, message []any) error {
	if len(message) < 2 || message[1] == nil {
		c.tracker.hub.flushed() // also for other nodes: most likely they are flushed, too
		return nil
	}
	names, _ := message[1].([]any)
	for _, name := range names {
		if name, ok := name.(string); ok {
			c.changed(name)
		}
	}
	return nil
}

// changed handles the change of a value, or a heartbeat.
func (c *connection) changed(name string) {
	if strings.HasPrefix(name, c.heartbeats) {
		c.heartbeatArrived(name)
		return
	}
	c.tracker.hub.Invalidate(name)
}
