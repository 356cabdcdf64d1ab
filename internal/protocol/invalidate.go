package protocol

import (
	"context"
	"time"
)

// Invalidate deletes the value and the lease of a key, and notifies the holder and the waiters.
func (c *Client) Invalidate(ctx context.Context, k Key) error {
	_, err := c.script(ctx, invalidate, nil, []string{k.Value, k.meta()},
		c.ns.channels, messageHead(KindRetry, AnyFence, k.Value), messageHead(KindLost, 0, k.Value), c.ns.changes)
	return err
}

// Mark invalidates a key and sets a write mark on it. A value that is fetched under a lease that was
// taken during the mark is not stored. The mark ends with Unmark, or after lasts. A key may have
// several marks, each with its own end.
func (c *Client) Mark(ctx context.Context, k Key, mark string, lasts time.Duration) error {
	_, err := c.script(ctx, invalidate, nil, []string{k.Value, k.meta(), k.marks()},
		c.ns.channels, messageHead(KindRetry, AnyFence, k.Value), messageHead(KindLost, 0, k.Value), c.ns.changes, mark, lasts.Milliseconds())
	return err
}

// Remark renews a write mark: it lasts from now. It takes at most a third of lasts.
func (c *Client) Remark(ctx context.Context, k Key, mark string, lasts time.Duration) error {
	return c.renewing(lasts).Mark(ctx, k, mark, lasts)
}

// Unmark invalidates the key and removes the write mark.
func (c *Client) Unmark(ctx context.Context, k Key, mark string) error {
	return c.Mark(ctx, k, mark, 0)
}
