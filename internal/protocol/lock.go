package protocol

import (
	"cmp"
	"context"
	"strconv"
	"time"
)

// LockFences is how many fences come with a lease of a lock. The scripts count
// by it, and give a free lock an end after linger.
const (
	LockFences = 16
	linger     = time.Second
)

// A LockAnswer is the answer to an AcquireLock.
type LockAnswer struct {
	Held     bool
	Fence    int64 // if held: the first of the fences
	Handed   bool  // if held: it was before we asked
	Returned bool  // the lease to give back was there

	Ticket string        // if not held: the place in the queue, to be sent the next time
	Left   time.Duration // if not held: when the next lease ends, if it is not renewed
}

// A LockWish is what an AcquireLock asks for. All requests about a lock have
// the first group: any of them may find that another's turn has come.
type LockWish struct {
	Owner string
	Lease time.Duration
	Slots int // how many may hold the lock at once

	Try    bool   // do not join the queue
	Ticket string // from the last answer, if there was one

	Return string // the owner of a lease to give back first, if any
}

// AcquireLock asks for a lease of a lock. Without one the owner waits in the
// queue: it will be told by a message under its name when a lease was handed to
// it, and then has a moment to confirm that by asking again.
func (c *Client) AcquireLock(ctx context.Context, l Lock, w LockWish) (LockAnswer, error) {
	var reply any
	var err error
	switch { // what is not needed is not sent
	case w.Return != "":
		reply, err = c.lockScript(ctx, lockAcquire, l.keys[:], w, w.mode(), cmp.Or(w.Ticket, "0"), w.Return)
	case w.Ticket != "" || w.Try:
		reply, err = c.lockScript(ctx, lockAcquire, l.keys[:], w, w.mode(), cmp.Or(w.Ticket, "0"))
	default:
		reply, err = c.lockScript(ctx, lockAcquire, l.keys[:], w)
	}
	if err != nil {
		return LockAnswer{}, err
	}
	return parseLockAnswer(reply)
}

func (w *LockWish) mode() string {
	if w.Try {
		return "try"
	}
	return "wait"
}

func parseLockAnswer(reply any) (LockAnswer, error) {
	if text, ok := reply.(string); ok {
		return parseFreeLock(text)
	}
	r := answer{reply: reply}
	a := LockAnswer{Returned: r.at(1) == int64(1)}
	switch r.text(0) {
	case "leased":
		a.Held, a.Fence, a.Handed = true, r.number(2), r.at(3) == int64(1)
	case "wait":
		a.Ticket, a.Left = strconv.FormatInt(r.number(2), 10), r.millis(3)
	default:
		r.bad = true
	}
	return a, r.err()
}

// parseFreeLock reads the answer of a lock that was free.
func parseFreeLock(text string) (LockAnswer, error) {
	fence, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return LockAnswer{}, errShape(text)
	}
	return LockAnswer{Held: true, Fence: fence}, nil
}

// ReleaseLock gives the owner's lease back, or takes the owner out of the queue.
// It reports whether there was a lease. When the answer to a release is lost, the
// release is sent again and reports that there was none.
func (c *Client) ReleaseLock(ctx context.Context, l Lock, w LockWish) (bool, error) {
	reply, err := c.lockScript(ctx, lockRelease, l.keys[:], w)
	return reply == int64(1), err
}

// RenewLock makes the owner's lease last from now. It reports whether there
// still is such a lease. It takes at most a third of w.Lease.
func (c *Client) RenewLock(ctx context.Context, l Lock, w LockWish) (bool, error) {
	reply, err := c.renewing(w.Lease).lockScript(ctx, lockRenew, l.keys[:1], w)
	return reply == int64(1), err
}

func (c *Client) lockScript(ctx context.Context, s *script, keys []any, w LockWish, argv ...any) (any, error) {
	args := make([]any, 0, 13)
	args = append(args, "evalsha", s.hash, len(keys))
	args = append(args, keys...)
	args = append(args, w.Owner, (w.Lease + linger).Milliseconds(), w.Slots)
	return c.evalsha(ctx, s, nil, append(args, argv...))
}
