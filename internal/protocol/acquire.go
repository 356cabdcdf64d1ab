package protocol

import (
	"context"
	"time"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

// A State is the result of an Acquire.
type State byte

// The results of an Acquire, with the fields that each one sets.
const (
	Stored State = iota + 1 // there is a value: Value
	Large                   // there is a value, too large for the answer: read it with Get
	Leased                  // the owner has the lease: Fence, Now
	Wait                    // another owner has the lease: Fence, Left, Now
	Failed                  // the last fetch failed, and the failure is shared: Failure, Left
)

// An Acquired is the answer to an Acquire.
type Acquired struct {
	State   State
	Value   []byte
	Fence   int64
	Now     time.Time     // by the server's clock; zero if the answer has no time
	Left    time.Duration // how long the lease or the failure lasts, if it is not renewed or ended
	Failure Failure
}

// A PassOver is a stored value that an Acquire passes over: it takes the lease although there is
// that value. Any other value is returned.
type PassOver struct {
	Head   []byte // the first bytes of the value, which identify it; empty if it is no string
	Stale  bool   // the value is usable, and is refreshed
	Ended  int64  // when this schema's segment ended by the caller's clock, in ms since 1970, or 0. The server's clock decides
	Others bool   // the value may have segments of other schemas, which FILL keeps
}

// Acquire returns the value if one is stored. Otherwise it takes the lease of the key for the owner.
// If another owner has the lease, this process is registered as a waiter. A nil over passes over no
// value.
func (c *Client) Acquire(ctx context.Context, k Key, owner string, lease time.Duration, over *PassOver) (Acquired, error) {
	mode, head, share := "miss", []byte(nil), c.ErrorTTL
	if over != nil {
		mode, head = "force", over.Head[:min(len(over.Head), envelope.Size)]
		if over.Stale {
			mode, share = "stale", max(share, c.Backoff)
		}
	}
	argv := []any{owner, lease.Milliseconds(), c.process, mode, mostWaiters + 2, stageAbove, head, share.Milliseconds()}
	switch { // optional arguments are sent only if they say something
	case over != nil && over.Others:
		argv = append(argv, over.Ended, 1)
	case over != nil && over.Ended != 0:
		argv = append(argv, over.Ended)
	}
	reply, err := c.script(ctx, acquire, nil, []string{k.Value, k.meta(), k.marks()}, argv...)
	if err != nil {
		return Acquired{}, err
	}
	return parseAcquired(reply)
}

func parseAcquired(reply any) (Acquired, error) {
	r := answer{reply: reply}
	var a Acquired
	switch r.text(0) {
	case "value":
		a = Acquired{State: Stored, Value: []byte(r.text(1)), Now: r.optionalTime(2)}
	case "large":
		a = Acquired{State: Large, Now: r.optionalTime(1)}
	case "leased":
		a = Acquired{State: Leased, Fence: r.number(1)}
		if now := r.number(2); now > 0 {
			a.Now = time.UnixMicro(now)
		}
	case "wait":
		a = Acquired{State: Wait, Fence: r.number(1), Left: r.millis(2), Now: time.UnixMicro(r.number(3))}
	case "failed":
		a = Acquired{State: Failed, Failure: ParseFailure(r.text(1)), Left: r.millis(2)}
	default:
		r.bad = true
	}
	return a, r.err()
}
