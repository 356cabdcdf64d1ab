package redistest

import (
	"context"
	"iter"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// All is the count that means every command or message until [Wire.Heal].
const All = -1

// A Wire represents all present and future connections between a client and its
// Redis. It records the commands that the client sends, and it can inject the faults
// of networks and servers.
//
// Each client has its own Wire, which [WireOf] returns; so one process can lose its
// Redis while the others keep it. The Wire method of a Redis returns the Wire above
// these. A fault on it applies to all clients of that Redis.
type Wire struct {
	hub   *hub
	above *Wire // the Wire of all clients; nil if this is that Wire

	// Guarded by the hub's mutex.
	commands []string
	trips    int
	paused   bool
	down     bool
	refused  bool // a connection was refused
	delay    time.Duration
	fail     rule // by names of commands
	failure  string
	lose     rule // by names of commands
	drop     rule // by names of channels
}

// A hub is the state that the Wires of one Redis share.
type hub struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change of a Wire
	conns   map[*conn]struct{}
}

// A rule selects the next commands or messages to which a fault applies.
type rule struct {
	left int
	only func(name string) bool // selects by name; nil selects what is counted
}

func (r *rule) befalls(counted bool, names ...string) bool {
	if r.only != nil {
		counted = slices.ContainsFunc(names, r.only)
	}
	if r.left == 0 || !counted {
		return false
	}
	if r.left > 0 {
		r.left--
	}
	return true
}

func newWire() *Wire {
	return &Wire{hub: &hub{changed: make(chan struct{}), conns: map[*conn]struct{}{}}}
}

func (w *Wire) below() *Wire { return &Wire{hub: w.hub, above: w} }

// wires maps each client to its Wire.
var wires sync.Map // redis.UniversalClient -> *Wire

// WireOf returns the Wire of a client that this package made.
func WireOf(rdb redis.UniversalClient) *Wire {
	w, ok := wires.Load(rdb)
	if !ok {
		panic("redistest: WireOf: not a client of this package, or of a test that is over")
	}
	return w.(*Wire)
}

// Commands returns the names of the commands that were sent since the last Reset, in
// upper case and in order. It omits subscriptions and what a client library sends
// itself: connection set-up (HELLO, AUTH, SELECT, CLIENT, READONLY, ASKING), PING,
// and a cluster's COMMAND and CLUSTER.
func (w *Wire) Commands() []string {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	return slices.Clone(w.commands)
}

// RoundTrips returns the number of round trips of these commands since the last
// Reset. A command starts a round trip if data has arrived on its connection since
// the last such command; so a pipeline is one round trip.
func (w *Wire) RoundTrips() int {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	return w.trips
}

// Reset clears the commands and round trips.
func (w *Wire) Reset() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.commands, w.trips = nil, 0
}

// Pause stops the traffic in both directions. Connections stay open and new ones are
// accepted, as with a hung server or a network that loses every packet.
//
// Resume delivers what was sent meanwhile, even if the client has closed the
// connection.
func (w *Wire) Pause() { w.set(func() { w.paused = true }) }

// Resume ends a Pause.
func (w *Wire) Resume() {
	w.set(func() { w.paused = false })
	for _, c := range w.conns() {
		c.flush()
	}
}

// Down cuts all connections, and refuses new ones until Up is called.
func (w *Wire) Down() {
	w.set(func() { w.down = true })
	w.Cut()
}

// Up ends a Down.
func (w *Wire) Up() { w.set(func() { w.down = false }) }

// Cut cuts all present connections. It refuses no new ones.
func (w *Wire) Cut() {
	for _, c := range w.conns() {
		c.cut()
	}
}

// Delay delays all received data by d, which lengthens a round trip by d.
func (w *Wire) Delay(d time.Duration) { w.set(func() { w.delay = d }) }

// Fail makes the next n commands fail with the error text, such as "LOADING Redis is
// loading the dataset in memory". It counts commands of the given names or, without
// names, all that Commands counts. The server does not receive them.
func (w *Wire) Fail(n int, text string, names ...string) {
	w.set(func() { w.fail, w.failure = rule{n, among(upper(names))}, text })
}

// LoseReplies loses the replies of the next n commands: the server executes the
// command, and then the connection is cut. It counts commands of the given names or,
// without names, all that Commands counts.
func (w *Wire) LoseReplies(n int, names ...string) {
	w.set(func() { w.lose = rule{n, among(upper(names))} })
}

// DropMessages drops the next n messages on subscribed connections. It counts
// messages of the given channels or patterns or, without channels, all messages. An
// invalidation of a tracked key is a message on "__redis__:invalidate".
func (w *Wire) DropMessages(n int, channels ...string) {
	w.set(func() { w.drop = rule{n, among(channels)} })
}

// DropMessagesWhere is like [Wire.DropMessages], for the channels or patterns for
// which where returns true.
func (w *Wire) DropMessagesWhere(n int, where func(channel string) bool) {
	w.set(func() { w.drop = rule{n, where} })
}

// Heal ends all faults. Connections that were cut remain closed.
func (w *Wire) Heal() {
	w.set(func() {
		w.down, w.delay, w.failure = false, 0, ""
		w.fail, w.lose, w.drop = rule{}, rule{}, rule{}
	})
	w.Resume()
}

// end closes all connections and refuses new ones.
func (w *Wire) end() { w.Down() }

func among(names []string) func(name string) bool {
	if len(names) == 0 {
		return nil
	}
	return func(name string) bool { return slices.Contains(names, name) }
}

func upper(names []string) []string {
	names = slices.Clone(names)
	for i, name := range names {
		names[i] = strings.ToUpper(name)
	}
	return names
}

// set changes w and wakes the goroutines that wait for a change.
func (w *Wire) set(change func()) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	change()
	close(w.hub.changed)
	w.hub.changed = make(chan struct{})
}

// all returns w and the Wire above it, if any. Its callers hold the hub's mutex.
func (w *Wire) all() iter.Seq[*Wire] {
	return func(yield func(*Wire) bool) {
		for ; w != nil && yield(w); w = w.above {
		}
	}
}

// conns returns the connections of w and of the Wires below it.
func (w *Wire) conns() []*conn {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	var conns []*conn
	for c := range w.hub.conns {
		for x := range c.wire.all() {
			if x == w {
				conns = append(conns, c)
			}
		}
	}
	return conns
}

// isPaused reports whether w or the Wire above it is paused. If so, it also returns a
// channel that is closed at the next change.
func (w *Wire) isPaused() (bool, <-chan struct{}) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for x := range w.all() {
		if x.paused {
			return true, w.hub.changed
		}
	}
	return false, nil
}

// roundTrip returns the sum of the delays.
func (w *Wire) roundTrip() time.Duration {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	var d time.Duration
	for x := range w.all() {
		d += x.delay
	}
	return d
}

// connect adds c and returns true, unless w or the Wire above it is down.
func (w *Wire) connect(c *conn) bool {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for x := range w.all() {
		if x.down {
			w.refused = true
			return false
		}
	}
	w.hub.conns[c] = struct{}{}
	return true
}

func (w *Wire) disconnect(c *conn) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	delete(w.hub.conns, c)
}

// send records a command and returns its faults: the error to fail it with, or
// whether its reply is lost.
func (w *Wire) send(name string, newTrip bool) (fail string, lose bool) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	counted := !bySelf[name]
	for x := range w.all() {
		if counted {
			x.commands = append(x.commands, name)
		}
		if newTrip {
			x.trips++
		}
		if fail == "" && x.fail.befalls(counted, name) {
			fail = x.failure
		}
		if fail == "" && !lose {
			lose = x.lose.befalls(counted, name)
		}
	}
	return fail, lose
}

// drops reports whether to drop a message. Its arguments are the message's channel,
// or its pattern and channel.
func (w *Wire) drops(channels ...string) bool {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for x := range w.all() {
		if x.drop.befalls(true, channels...) {
			return true
		}
	}
	return false
}

// bySelf contains the commands that a client library sends itself, and the
// subscriptions.
var bySelf = map[string]bool{
	"HELLO": true, "AUTH": true, "SELECT": true, "CLIENT": true, "READONLY": true, "ASKING": true,
	"PING": true, "COMMAND": true, "CLUSTER": true,
	"SUBSCRIBE": true, "PSUBSCRIBE": true, "SSUBSCRIBE": true,
	"UNSUBSCRIBE": true, "PUNSUBSCRIBE": true, "SUNSUBSCRIBE": true,
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// dialer wraps dial so that its connections belong to w.
func (w *Wire) dialer(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if err := ctx.Err(); err != nil {
			return nil, err // an in-memory dial ignores ctx
		}
		real, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := newConn(w, real)
		if !w.connect(c) {
			_ = real.Close()
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		return c, nil
	}
}
