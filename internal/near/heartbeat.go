package near

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/fetchonce/fetchonce/internal/guard"
)

const (
	heartbeatEvery = time.Second
	trustLasts     = 3 * time.Second // from when the last heartbeat that arrived was sent
)

var errSilent = errors.New("tracking connection silent: heartbeats do not arrive")

// sendHeartbeats sends a heartbeat each second until the connection ends, and ends it if they do not arrive.
func (c *connection) sendHeartbeats() {
	c.until = now() + int64(trustLasts)
	ticker := time.NewTicker(heartbeatEvery)
	defer ticker.Stop()
	for {
		if err := guard.Call(c.sendHeartbeat); err != nil && c.ctx.Err() == nil {
			c.tracker.hub.report(false, fmt.Errorf("heartbeat: %w", err))
		}
		select {
		case <-ticker.C:
		case <-c.ctx.Done():
			return
		}
		c.mu.Lock()
		silent := now() >= c.until
		c.mu.Unlock()
		if silent {
			c.cancel(errSilent)
			return
		}
	}
}

// sendHeartbeat sends a heartbeat over the user's client: that way it takes the route of the changes.
func (c *connection) sendHeartbeat() error {
	h := c.tracker.hub
	ctx, cancel := context.WithTimeout(c.ctx, trustLasts)
	defer cancel()
	name := c.heartbeats + strconv.FormatUint(h.heartbeats.Add(1), 36)
	if h.cluster != nil && c.refusal == nil {
		var err error
		if name, err = c.onNode(ctx, name); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.sent[name] = now()
	c.mu.Unlock()
	if c.refusal != nil {
		return h.client.Publish(ctx, c.heartbeats, name).Err()
	}
	return h.client.Set(ctx, name, "", 2*trustLasts).Err()
}

// heartbeatArrived extends the trust. The expiry of a heartbeat's key arrives, too: it does not
// count.
func (c *connection) heartbeatArrived(name string) {
	c.mu.Lock()
	sent, ok := c.sent[name]
	delete(c.sent, name)
	if ok {
		c.until = sent + int64(trustLasts)
	}
	c.mu.Unlock()
	if ok {
		c.tracker.extendTrust(c, sent+int64(trustLasts-tick))
	}
}

// onNode adds a hash tag to a name, so that its slot is on the tracker's node.
func (c *connection) onNode(ctx context.Context, name string) (string, error) {
	for i := range 100_000 {
		tagged := name + "{" + strconv.Itoa(i) + "}"
		master, err := c.tracker.hub.cluster.MasterForKey(ctx, tagged)
		if err != nil {
			return "", err
		}
		if nodeOf(master) == c.tracker.node {
			return tagged, nil
		}
	}
	return "", errors.New("the node has no slots")
}
