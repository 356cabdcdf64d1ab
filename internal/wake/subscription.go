package wake

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/guard"
)

// maxSubscribeWait limits how long Subscribe waits for the server's confirmation.
const maxSubscribeWait = 100 * time.Millisecond

// A subscription is the state of a channel that the mailbox should be subscribed to.
type subscription struct {
	subscribed bool          // guarded by the mailbox's mu
	tried      chan struct{} // closed at the first confirmation, or after maxSubscribeWait
	once       sync.Once     // closes tried
}

func (s *subscription) setTried() { s.once.Do(func() { close(s.tried) }) }

// Use registers a user of a channel. When all users have called stop, the mailbox
// unsubscribes from the channel, unless it is the only one: a mailbox that has connected once stays
// subscribed to at least one channel.
func (m *Mailbox) Use(channel string) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uses[channel]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.uses[channel]--; m.uses[channel] == 0 {
			delete(m.uses, channel)
		}
		for channel := range m.channels {
			if m.uses[channel] == 0 && len(m.channels) > 1 {
				m.unsubscribe(channel)
			}
		}
	}
}

// Subscribe subscribes the mailbox to a channel. The first call waits until the server
// confirms the subscription, so that no notification is lost for a waiter that registers
// next. It waits until ctx ends or for maxSubscribeWait at most. If the confirmation comes
// later, the mailbox then makes all waiters retry.
func (m *Mailbox) Subscribe(ctx context.Context, channel string) {
	select {
	case <-m.add(channel).tried:
	case <-ctx.Done():
	case <-m.ctx.Done():
	}
}

// add returns the subscription of a channel. It starts it if it is new.
func (m *Mailbox) add(channel string) *subscription {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.channels[channel]; s != nil {
		return s
	}
	s := &subscription{tried: make(chan struct{})}
	if m.ctx.Err() != nil {
		s.setTried()
		return s
	}
	m.channels[channel] = s
	if len(m.channels) == 1 {
		m.running.Go(m.run) // ends with m.ctx
	} else if m.conn != nil {
		m.subscribe(m.conn, channel)
	}
	time.AfterFunc(maxSubscribeWait, s.setTried)
	return s
}

// Subscribed reports whether the mailbox is subscribed to a channel. It may be wrong until
// the mailbox finds that its connection is lost.
func (m *Mailbox) Subscribed(channel string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.channels[channel]
	return s != nil && s.subscribed
}

// subscribe sends SUBSCRIBE for one more channel. The caller holds m.mu.
func (m *Mailbox) subscribe(conn *redis.PubSub, channel string) {
	m.running.Go(func() {
		_ = guard.Call(func() error { return conn.Subscribe(ended, channel) }) // after a failure, receive returns
	})
}

// unsubscribe removes a channel and sends UNSUBSCRIBE. The caller holds m.mu.
func (m *Mailbox) unsubscribe(channel string) {
	delete(m.channels, channel)
	if conn := m.conn; conn != nil && m.ctx.Err() == nil {
		m.running.Go(func() {
			_ = guard.Call(func() error { return conn.Unsubscribe(ended, channel) }) // after a failure, receive returns
		})
	}
}

// confirmed handles the server's confirmation of SUBSCRIBE. Earlier notifications may be
// lost, so all waiters retry.
func (m *Mailbox) confirmed(channel string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.channels[channel]; s != nil {
		s.subscribed = true
		s.setTried()
	}
	for _, slots := range m.slots {
		for _, s := range slots {
			s.putRetry()
		}
	}
}

// unsubscribed handles the server's confirmation of UNSUBSCRIBE. If the channel was added
// again meanwhile, its SUBSCRIBE may have arrived first: the mailbox sends another one.
func (m *Mailbox) unsubscribed(channel string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.channels[channel]; s != nil && m.conn != nil && m.ctx.Err() == nil {
		s.subscribed = false
		m.subscribe(m.conn, channel)
	}
}

// unsubscribedAll notes that the connection is lost.
func (m *Mailbox) unsubscribedAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conn = nil
	for _, s := range m.channels {
		s.subscribed = false
	}
}
