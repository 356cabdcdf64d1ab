package wake

import (
	"context"
	"time"

	"github.com/fetchonce/fetchonce/internal/guard"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// probeTime limits how long a probe waits for its echo.
const probeTime = time.Second

// CheckConnection publishes a probe to a channel. A caller calls it when a notification on this
// channel should have arrived and did not. If the probe does not arrive, the mailbox makes a new
// connection: after a failover, the old one may stay open for ever without a message.
func (m *Mailbox) CheckConnection(channel string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.probing || m.ctx.Err() != nil || m.channels[channel] == nil || !m.channels[channel].subscribed {
		return
	}
	m.probing = true
	conn, echo := m.conn, make(chan struct{})
	m.echo = echo
	m.running.Go(func() {
		if !m.probe(channel, echo) {
			_ = conn.Close() // receive returns, and run makes another connection
		}
		m.mu.Lock()
		m.probing = false
		m.mu.Unlock()
	})
}

// probe reports whether the connection is good, as far as it can find out.
func (m *Mailbox) probe(channel string, echo chan struct{}) bool {
	ctx, cancel := context.WithTimeout(m.ctx, probeTime)
	defer cancel()
	err := guard.Call(func() error { return m.client.Publish(ctx, channel, protocol.Probe()).Err() })
	if err != nil {
		return !m.isSilent(err)
	}
	select {
	case <-echo:
		return true
	case <-ctx.Done():
		return m.ctx.Err() != nil
	}
}
