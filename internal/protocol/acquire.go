package protocol

import (
	"context"
	"time"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

// A State says what an Acquire found.
type State byte

// What an Acquire finds.
const (
	Stored State = iota + 1 // there is a value: Value holds it
	Large                   // there is a value, too long for this answer: Get it
	Leased                  // we hold the lease: Fence, Now
	Wait                    // another holds it: Fence, Left, Now
	Failed                  // a failure is shared: Failure, Left
)

// An Acquired is the answer to an Acquire.
type Acquired struct {
	State   State
	Value   []byte
	Fence   int64
	Now     time.Time     // of the server; zero if the request was sent twice, or the answer has none
	Left    time.Duration // how long the lease or the failure lasts, if nobody touches it
	Failure Failure
}

// A PassOver is a value that an Acquire is to pass over, and no other: it is
// known by how it begins, and Head is empty if it is no string. Stale says that it
// could be used, and is to be refreshed. Ended is when this schema's segment should have ended,
// in ms since 1970, if it has by the caller's clock: the value is passed over if the server's
// clock says so, too.
type PassOver struct {
	Head   []byte
	Stale  bool
	Ended  int64
	Others bool // the value may have segments of other schemas, which FILL keeps
}

// Acquire looks for the value once more and, if there is none, tries to become
// the one who fetches it. If another process was faster, this one is now
// registered for its message.
func (c *Client) Acquire(ctx context.Context, k Key, owner string, lease time.Duration, over *PassOver) (Acquired, error) {
	mode, head, share := "miss", []byte(nil), c.ErrorTTL
	if over != nil {
		mode, head = "force", over.Head[:min(len(over.Head), envelope.Size)]
		if over.Stale {
			mode, share = "stale", max(share, c.Backoff)
		}
	}
	argv := []any{owner, lease.Milliseconds(), c.process, mode, mostWaiters + 2, stageAbove, head, share.Milliseconds()}
	switch { // what is not needed is not sent
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
