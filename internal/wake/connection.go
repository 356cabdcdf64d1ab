package wake

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/guard"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/sleep"
)

// The pause before the next connection. It doubles after each connection that received nothing.
const (
	firstPause   = 10 * time.Millisecond
	longestPause = time.Second
)

// ended is the context of every call of a connected PubSub. When the connection breaks, go-redis
// would dial another one at once under the PubSub's lock. Close and Subscribe would wait for that
// lock while Redis hangs. An ended context prevents the dial: run makes the next connection.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// run receives messages, over one connection after another.
func (m *Mailbox) run() {
	for pause := firstPause; m.ctx.Err() == nil; pause = min(2*pause, longestPause) {
		if m.serve() {
			pause = firstPause
		}
		sleep.For(m.ctx, pause/2+rand.N(pause))
	}
}

// serve receives messages over one connection until that ends. It reports whether it
// received any.
func (m *Mailbox) serve() (received bool) {
	_ = guard.Call(func() error {
		conn := m.pubSub()
		defer func() {
			m.unsubscribedAll()
			_ = conn.Close()
		}()
		received = m.connect(conn) && m.receive(conn)
		return nil
	}) // a panic of the client ends the connection
	return received
}

// connect makes the connection and reports whether that succeeded. Until then, no other goroutine
// uses conn.
func (m *Mailbox) connect(conn *redis.PubSub) bool {
	wanted := m.wanted()
	if conn.Subscribe(m.ctx, wanted...) != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return false
	}
	m.conn = conn
	for channel := range m.channels {
		if !slices.Contains(wanted, channel) {
			m.subscribe(conn, channel) // it was added during the dial
		}
	}
	return true
}

// receive handles the messages of a connection until that breaks or is closed. It reports
// whether there were any.
//
// It calls Receive without a time limit: when a limit passes in the middle of a message,
// go-redis loses its place in the stream. CheckConnection detects a connection that stays silent.
func (m *Mailbox) receive(conn *redis.PubSub) (received bool) {
	answered := m.awaitAnswer(conn)
	for {
		got, err := conn.Receive(ended)
		answered()
		if _, refused := errors.AsType[redis.Error](err); refused {
			continue // Redis refuses a channel to this user; the connection is good
		}
		if err != nil {
			return received
		}
		received = true
		m.handle(got)
	}
}

func (m *Mailbox) wanted() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	channels := make([]string, 0, len(m.channels))
	for channel := range m.channels {
		channels = append(channels, channel)
	}
	return channels
}

func (m *Mailbox) handle(got any) {
	switch got := got.(type) {
	case *redis.Subscription:
		if got.Kind == "unsubscribe" {
			m.unsubscribed(got.Channel)
		} else {
			m.confirmed(got.Channel)
		}
	case *redis.Message:
		if len(got.Payload) > protocol.LongestMessage {
			return
		}
		if message, err := protocol.ParseMessage(got.Payload); err == nil {
			m.deliver(message)
		}
	}
}

func (m *Mailbox) deliver(message protocol.Message) {
	if message.Kind == protocol.KindLost {
		m.mu.Lock()
		lost := m.onLost[message.Body]
		m.mu.Unlock()
		if lost != nil {
			lost() // not under the mutex: it ends a context, which calls user code
		}
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch message.Kind {
	case protocol.KindProbe:
		if m.echo != nil {
			close(m.echo)
			m.echo = nil
		}
	default:
		for _, s := range m.slots[message.Name] {
			s.put(message)
		}
	}
}
