package protocol

import (
	"context"
	"time"
)

// A Lease is one lease of a key, as its owner knows it.
type Lease struct {
	Key   Key
	Owner string
	Fence int64 // AnyFence if the answer to ACQUIRE is unknown
}

// A Sharing says which later callers receive a failure instead of the lease.
type Sharing struct {
	Lasts     time.Duration // 0: no caller does
	StaleOnly bool          // only callers that have a stale value do: a backoff
}

// Release ends the lease without a value and notifies the waiters, which send ACQUIRE
// again. It reports whether the owner still had the lease.
func (c *Client) Release(ctx context.Context, l Lease) (bool, error) {
	return c.release(ctx, l, messageHead(KindRetry, l.Fence, l.Key.Value), "", Sharing{})
}

// ReleaseFailed ends the lease with a failure. The waiters receive it in a notification,
// and later callers as sharing says. It reports whether the owner still had the lease.
func (c *Client) ReleaseFailed(ctx context.Context, l Lease, f Failure, sharing Sharing) (bool, error) {
	failure := f.encode()
	return c.release(ctx, l, append(messageHead(KindFailure, l.Fence, l.Key.Value), failure...), failure, sharing)
}

func (c *Client) release(ctx context.Context, l Lease, message []byte, failure string, sharing Sharing) (bool, error) {
	reply, err := c.script(ctx, release, nil, []string{l.Key.meta()},
		l.Owner, c.ns.channels, message, failure, sharing.Lasts.Milliseconds(), sharing.StaleOnly)
	return reply == int64(1), err
}

// Renew extends the lease: it lasts from now. It reports whether the owner still has the
// lease. It takes at most a third of lasts.
func (c *Client) Renew(ctx context.Context, l Lease, lasts time.Duration) (bool, error) {
	reply, err := c.renewing(lasts).script(ctx, renew, nil, []string{l.Key.meta()}, l.Owner, lasts.Milliseconds())
	return reply == int64(1), err
}
