package protocol

import (
	"context"
	"time"
)

// While a slot of a cluster moves, some of a key's names are on one node and some on the other.
// Both nodes answer TRYAGAIN to a command that has several of them in KEYS, until the move ends;
// a move that is stuck lasts until an operator ends it. A command with one key is served. So
// after some TRYAGAIN a script that has a perKey function is replaced by scripts with one key
// each.

// A perKey does a script's work with scripts that have one key each. args are the arguments of
// the script's EVALSHA.
type perKey func(ctx context.Context, c *Client, args []any, within time.Duration) (any, error)

// isTryAgain reports whether an error says that the keys of a command are on two nodes.
func isTryAgain(err error) bool { return hasCode(err, "TRYAGAIN") }

// movingFor returns for how long a script is sent again before its perKey function takes over.
// A slot of few keys moves within some milliseconds.
func (c *Client) movingFor(s *script) time.Duration {
	if s.perKeyDoesLess {
		return c.timeout / 2
	}
	return min(10*time.Millisecond, c.timeout/4)
}

// lockKeyOnly returns a function that sends a lock's script with the key of the lock alone. The
// queue is then out of reach: a waiter polls, a release hands the lock to no waiter, and the
// first request takes a free lock. The key of the lock has all holders, so there are never more
// than its slots.
func lockKeyOnly(s *script) perKey {
	return func(ctx context.Context, c *Client, args []any, within time.Duration) (any, error) {
		return c.once(ctx, s, nil, withKeys(args, args[3]), within)
	}
}

// metaOnly ends a lease and notifies the waiters of the value, as FILL does, and stores nothing.
func metaOnly(ctx context.Context, c *Client, args []any, within time.Duration) (any, error) {
	return c.once(ctx, fillMeta, nil, withKeys(args, args[4]), within)
}

// invalidatePerKey invalidates a key and sets or removes a write mark, one Redis key after
// another.
//
// The meta comes first: it ends the lease, so no value that was fetched before is stored once
// the value is deleted. It comes again after the value: a lease that was taken in between may
// have read the old value as its stale one. A mark is set before these steps and removed after
// them. If a step fails, all are sent again: a mark does not prove that the value was deleted.
func invalidatePerKey(ctx context.Context, c *Client, args []any, within time.Duration) (any, error) {
	value, meta := args[3], args[4]
	type step struct {
		s   *script
		key any
	}
	steps := []step{{invalidateMeta, meta}, {invalidateValue, value}, {invalidateMeta, meta}}
	if args[2] == 3 {
		marks := step{invalidateMarks, args[5]}
		if args[len(args)-1] == int64(0) {
			steps = append(steps, marks)
		} else {
			steps = append([]step{marks}, steps...)
		}
	}
	started := time.Now()
	for _, step := range steps {
		if _, err := c.once(ctx, step.s, nil, withKeys(args, step.key), within-time.Since(started)); err != nil {
			return nil, err
		}
	}
	return int64(0), nil
}

// withKeys returns the arguments of an EVALSHA with other keys.
func withKeys(args []any, keys ...any) []any {
	argv := args[3+args[2].(int):]
	return append(append([]any{args[0], args[1], len(keys)}, keys...), argv...)
}
