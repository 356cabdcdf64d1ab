package protocol

import (
	"context"
	"time"
)

// Invalidate deletes the value and the lease of a key, and tells the holder
// and the waiters.
func (c *Client) Invalidate(ctx context.Context, k Key) error {
	_, err := c.script(ctx, invalidate, nil, []string{k.Value, k.meta()},
		c.ns.channels, messageHead(KindRetry, AnyFence, k.Value), messageHead(KindLost, 0, k.Value), c.ns.changes)
	return err
}

// Mark marks a key as being written at its source: until the mark is taken off,
// or for as long as lasts, no value that is fetched is stored. What was there is
// invalidated first. Each mark of a key has an end of its own.
func (c *Client) Mark(ctx context.Context, k Key, mark string, lasts time.Duration) error {
	_, err := c.script(ctx, invalidate, nil, []string{k.Value, k.meta(), k.marks()},
		c.ns.channels, messageHead(KindRetry, AnyFence, k.Value), messageHead(KindLost, 0, k.Value), c.ns.changes, mark, lasts.Milliseconds())
	return err
}

// Remark renews a mark. It takes at most a third of lasts.
func (c *Client) Remark(ctx context.Context, k Key, mark string, lasts time.Duration) error {
	return c.renewing(lasts).Mark(ctx, k, mark, lasts)
}

// Unmark invalidates the key and takes the mark off.
func (c *Client) Unmark(ctx context.Context, k Key, mark string) error {
	return c.Mark(ctx, k, mark, 0)
}
