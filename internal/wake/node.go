package wake

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// A clusterClient is a client of a Redis Cluster.
type clusterClient interface {
	MasterForKey(ctx context.Context, key string) (*redis.Client, error)
}

// pubSub returns a PubSub that has no channel and no connection yet.
//
// go-redis would always subscribe at the node that has the channel's slot, also when that
// node hangs or is dead. But each node of a cluster forwards every message to all others. So
// the mailbox subscribes at a random master, and at another one after that fails.
func (m *Mailbox) pubSub() *redis.PubSub {
	cluster, ok := m.client.(clusterClient)
	if !ok {
		return m.client.Subscribe(m.ctx)
	}
	last := m.node
	for range 20 { // there may be no other node
		node, err := cluster.MasterForKey(m.ctx, rand.Text())
		if err != nil {
			break
		}
		m.node = node.Options().Addr
		if m.node != last {
			return node.Subscribe(m.ctx)
		}
	}
	return m.client.Subscribe(m.ctx)
}

// awaitAnswer closes a connection to a node of a cluster if the node does not answer the
// SUBSCRIBE in time. The mailbox then tries another node.
func (m *Mailbox) awaitAnswer(conn *redis.PubSub) (stop func() bool) {
	if m.node == "" {
		return func() bool { return true }
	}
	return time.AfterFunc(probeTime, func() { _ = conn.Close() }).Stop
}

// isSilent reports whether an error of PUBLISH means that a node of a cluster did not
// answer. The mailbox may be subscribed at that node. An answer such as NOPERM does not
// concern the subscription. With a single server, there is no other node to subscribe at.
func (m *Mailbox) isSilent(err error) bool {
	if _, cluster := m.client.(clusterClient); !cluster || err == nil || m.ctx.Err() != nil {
		return false
	}
	_, answered := errors.AsType[redis.Error](err)
	return !answered
}
