package protocol

import (
	"cmp"
	"context"
	"encoding/binary"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

// A Filled is the answer to a Fill.
type Filled struct {
	Stored  bool  // the owner had the lease: the waiters are notified and, unless Refused, the value is stored
	Refused error // why Redis did not store it; for example, it is full
}

// Fill stores a value, ends the lease and notifies the waiters, if the owner still has the
// lease. Without a ttl it stores nothing, and only notifies them.
func (c *Client) Fill(ctx context.Context, l Lease, sealed []byte, ttl time.Duration) (Filled, error) {
	ttl = max(ttl, 0)
	k := l.Key
	p := k.payload(ctx, l.Owner, sealed, ttl)
	argv := []any{
		l.Owner, bigEndian(l.Fence), p.inline, ttl.Milliseconds(), c.ns.channels,
		messageHead(KindValue, l.Fence, k.Value), messageHead(KindRetry, l.Fence, k.Value), c.largestNotified, mostNotified, c.ns.changes,
	}
	if len(p.inline) == 0 {
		argv = append(argv, bigEndian(int64(k.digest)))
	}
	reply, err := c.script(ctx, fill, p.stage, append([]string{k.Value, k.meta()}, p.staged...), argv...)
	if err != nil && reply == nil {
		return Filled{}, err
	}
	f, shape := parseFilled(reply)
	f.Refused = cmp.Or(err, f.Refused) // err is that of the SET which stages the value
	return f, shape
}

func parseFilled(reply any) (Filled, error) {
	r := answer{reply: reply}
	var f Filled
	switch r.text(0) {
	case "stored":
		f.Stored = true
	case "refused":
		f.Stored, f.Refused = true, answeredError(r.text(2))
	case "lost":
	default:
		r.bad = true
	}
	return f, r.err()
}

// Set stores a value and ends a lease on the key. The server stamps the value with its time
// and a fence. The owner names the value while it is staged.
func (c *Client) Set(ctx context.Context, k Key, owner string, sealed []byte, ttl time.Duration) error {
	p := k.payload(ctx, owner, sealed, ttl)
	var head, tail []byte
	if len(p.inline) > 0 {
		head, tail = p.inline[:envelope.StampStart], p.inline[envelope.StampEnd:]
	}
	_, err := c.script(ctx, set, p.stage, append([]string{k.Value, k.meta(), k.marks()}, p.staged...),
		head, tail, ttl.Milliseconds(), c.ns.channels, messageHead(KindValue, 0, k.Value)[9:],
		messageHead(KindRetry, AnyFence, k.Value), messageHead(KindLost, 0, k.Value), c.largestNotified, mostNotified, c.ns.changes)
	return err
}

// A payload is how a value reaches the script that stores it: as an argument, or staged in
// a key of its own, which the script renames.
type payload struct {
	inline []byte      // the argument
	staged []string    // the name of the key, if there is one
	stage  redis.Cmder // the SET of that key, sent right before the script
}

// payload returns the way of a value into a script. A value that is too large for an
// argument, and is not stored, is not sent.
func (k Key) payload(ctx context.Context, owner string, sealed []byte, ttl time.Duration) payload {
	switch {
	case len(sealed) <= stageAbove:
		return payload{inline: sealed}
	case ttl <= 0:
		return payload{}
	}
	staged := k.staged(owner)
	set := redis.NewStatusCmd(ctx, "set", staged, sealed, "px", stagedFor.Milliseconds())
	return payload{staged: []string{staged}, stage: set}
}

func bigEndian(n int64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(n))
}
