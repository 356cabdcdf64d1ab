package protocol

import (
	"cmp"
	"context"
	"strconv"
	"time"
)

// Constants of the lock scripts; see lock_state.lua.
const (
	LockFences = 16          // fences that come with a lease of a lock: one for each hold inside a process
	remembered = time.Second // the key of a lock lasts for so long after its last lease
)

// A LockAnswer is the answer to an AcquireLock.
type LockAnswer struct {
	Held     bool
	Fence    int64 // if held: the first of the fences
	Handed   bool  // if held: the owner had the lease before this request, by a hand-off
	Released bool  // the lease of LockRequest.Release was still there

	Ticket string        // if not held: the place in the queue, for the next request
	Left   time.Duration // if not held: until the next lease ends, if it is not renewed
}

// A LockRequest says what a request about a lock does. Lease and Slots are part of every request:
// each may grant a free slot to a waiter.
type LockRequest struct {
	Owner string
	Lease time.Duration
	Slots int // how many owners may have the lock at once

	// For AcquireLock only.
	Try     bool   // do not join the queue
	Ticket  string // from the last answer, if there was one
	Release string // the owner of a lease to release in the same step, or ""
}

// AcquireLock takes a lease of a lock, or joins its queue. When a release hands a lease to an owner
// in the queue, the owner's process receives a notification. The owner then confirms the lease by
// sending the request again within 250 ms.
func (c *Client) AcquireLock(ctx context.Context, l Lock, r LockRequest) (LockAnswer, error) {
	var reply any
	var err error
	switch { // each argument costs as much as a quarter of a command, so optional ones are left out
	case r.Release != "":
		reply, err = c.lockScript(ctx, lockAcquire, l.keys[:], r, r.mode(), cmp.Or(r.Ticket, "0"), r.Release)
	case r.Ticket != "" || r.Try:
		reply, err = c.lockScript(ctx, lockAcquire, l.keys[:], r, r.mode(), cmp.Or(r.Ticket, "0"))
	default:
		reply, err = c.lockScript(ctx, lockAcquire, l.keys[:], r)
	}
	if err != nil {
		return LockAnswer{}, err
	}
	return parseLockAnswer(reply)
}

func (r *LockRequest) mode() string {
	if r.Try {
		return "try"
	}
	return "wait"
}

func parseLockAnswer(reply any) (LockAnswer, error) {
	if text, ok := reply.(string); ok {
		return parseFreeLock(text)
	}
	r := answer{reply: reply}
	a := LockAnswer{Released: r.at(1) == int64(1)}
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

// parseFreeLock parses the answer of the fast path, lock_free.lua.
func parseFreeLock(text string) (LockAnswer, error) {
	fence, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return LockAnswer{}, errShape(text)
	}
	return LockAnswer{Held: true, Fence: fence}, nil
}

// ReleaseLock releases the owner's lease, or removes the owner from the queue. It reports whether
// there was a lease. If the answer is lost, the release is sent again and reports false.
func (c *Client) ReleaseLock(ctx context.Context, l Lock, r LockRequest) (bool, error) {
	reply, err := c.lockScript(ctx, lockRelease, l.keys[:], r)
	return reply == int64(1), err
}

// RenewLock extends the owner's lease: it lasts from now. It reports whether the owner still has
// it. It takes at most a third of r.Lease.
func (c *Client) RenewLock(ctx context.Context, l Lock, r LockRequest) (bool, error) {
	reply, err := c.renewing(r.Lease).lockScript(ctx, lockRenew, l.keys[:1], r)
	return reply == int64(1), err
}

func (c *Client) lockScript(ctx context.Context, s *script, keys []any, r LockRequest, argv ...any) (any, error) {
	args := make([]any, 0, 13)
	args = append(args, "evalsha", s.hash, len(keys))
	args = append(args, keys...)
	args = append(args, r.Owner, (r.Lease + remembered).Milliseconds(), r.Slots)
	return c.evalsha(ctx, s, nil, append(args, argv...))
}
