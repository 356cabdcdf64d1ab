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

// All as a number means all of them, until [Wire.Heal].
const All = -1

// A Wire is what lies between a client and its Redis: all the connections it
// has, and those it will have. It notes what the client sends, and can be made
// to fail in the ways networks and servers do.
//
// Each client has a Wire of its own, which [WireOf] finds; so one process can
// lose its Redis while the others keep it. Above these is one Wire of all the
// clients of a Redis, its Wire method: what it is told befalls them all.
type Wire struct {
	hub   *hub
	above *Wire // of all clients; nil if this is it

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

// A hub has what the Wires of one Redis share.
type hub struct {
	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, when a Wire is paused or resumed
	conns   map[*conn]struct{}
}

// A rule says how many of the next things a fault befalls.
type rule struct {
	left int
	only func(name string) bool // of these names; nil for whatever is counted
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

// wires has the Wire of each client.
var wires sync.Map // redis.UniversalClient -> *Wire

// WireOf returns the Wire of a client that this package made.
func WireOf(rdb redis.UniversalClient) *Wire {
	w, ok := wires.Load(rdb)
	if !ok {
		panic("redistest: WireOf: not a client of this package, or of a test that is over")
	}
	return w.(*Wire)
}

// Commands returns the names of the commands that were sent since the last
// Reset, in upper case and in order. It leaves out what a client sends of its
// own accord: connection set-up (HELLO, AUTH, SELECT, CLIENT, READONLY,
// ASKING), PING, a cluster's COMMAND and CLUSTER; and subscriptions.
func (w *Wire) Commands() []string {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	return slices.Clone(w.commands)
}

// RoundTrips returns how often, since the last Reset, these commands were sent
// to an answered connection: a pipeline is one round trip.
func (w *Wire) RoundTrips() int {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	return w.trips
}

// Reset forgets the commands and round trips.
func (w *Wire) Reset() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.commands, w.trips = nil, 0
}

// Pause passes nothing on, in either direction. Connections stay open and new ones are accepted, as with
// a hung server or a network that loses every packet.
//
// What was sent meanwhile arrives when Resume is called, even if the client has closed the connection.
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

// Cut cuts all connections, once.
func (w *Wire) Cut() {
	for _, c := range w.conns() {
		c.cut()
	}
}

// Delay delays everything that is received by d, which lengthens a round trip by d.
func (w *Wire) Delay(d time.Duration) { w.set(func() { w.delay = d }) }

// Fail makes the next n commands fail with an error, such as "LOADING Redis is loading the dataset in
// memory". It counts commands of the given names or, without names, all that Commands counts. The
// server does not receive them.
func (w *Wire) Fail(n int, text string, names ...string) {
	w.set(func() { w.fail, w.failure = rule{n, among(upper(names))}, text })
}

// LoseReplies loses the replies of the next n commands, of the given names or
// else of those that Commands counts: the server executes the command, and then
// the connection is cut.
func (w *Wire) LoseReplies(n int, names ...string) {
	w.set(func() { w.lose = rule{n, among(upper(names))} })
}

// DropMessages drops the next n messages on subscribed connections: of the
// given channels or patterns, or else all. An invalidation of a tracked key is
// a message on "__redis__:invalidate".
func (w *Wire) DropMessages(n int, channels ...string) {
	w.set(func() { w.drop = rule{n, among(channels)} })
}

// DropMessagesWhere is like [Wire.DropMessages], of the channels or patterns for
// which where holds.
func (w *Wire) DropMessagesWhere(n int, where func(channel string) bool) {
	w.set(func() { w.drop = rule{n, where} })
}

// Heal ends all faults. Connections that were cut stay closed.
func (w *Wire) Heal() {
	w.set(func() {
		w.down, w.delay, w.failure = false, 0, ""
		w.fail, w.lose, w.drop = rule{}, rule{}, rule{}
	})
	w.Resume()
}

// end ends all connections for good.
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

// set changes w and tells all who wait for a change.
func (w *Wire) set(change func()) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	change()
	close(w.hub.changed)
	w.hub.changed = make(chan struct{})
}

// all returns w and what is above it. Its callers hold the hub's mutex.
func (w *Wire) all() iter.Seq[*Wire] {
	return func(yield func(*Wire) bool) {
		for ; w != nil && yield(w); w = w.above {
		}
	}
}

// conns returns the connections of w and of what is below it.
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

// isPaused reports whether nothing comes through, and returns a channel that
// is closed when it is worth asking again.
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

// connect adds c, unless the Wire is down.
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

// send notes a command and says what is to become of it.
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

// drops reports whether a message on the channel, or on a channel and its
// pattern, is dropped.
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

// bySelf has the commands that a client sends of its own accord, and the
// subscriptions.
var bySelf = map[string]bool{
	"HELLO": true, "AUTH": true, "SELECT": true, "CLIENT": true, "READONLY": true, "ASKING": true,
	"PING": true, "COMMAND": true, "CLUSTER": true,
	"SUBSCRIBE": true, "PSUBSCRIBE": true, "SSUBSCRIBE": true,
	"UNSUBSCRIBE": true, "PUNSUBSCRIBE": true, "SUNSUBSCRIBE": true,
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// dialer returns a dial whose connections are of this Wire.
func (w *Wire) dialer(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if err := ctx.Err(); err != nil {
			return nil, err // a dial in memory would not notice
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
