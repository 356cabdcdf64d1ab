package protocol

import (
	"context"
	"time"
)

// While a slot of a cluster moves, some of a key's names are on one node and some
// on the other. Both answer a command that names several of them with TRYAGAIN,
// for as long as the move takes: until an operator ends it, if it is stuck. A
// command that names one key is served. So where a script's work can be done by
// commands of one key each, it is done so after a moment of TRYAGAIN.

// An apart does a script's work with commands that name one key each. It is given
// the arguments of the command EVALSHA.
type apart func(ctx context.Context, c *Client, args []any, within time.Duration) (any, error)

// isApart reports whether an error says that the keys of a command are on two nodes.
func isApart(err error) bool { return hasCode(err, "TRYAGAIN") }

// patience returns for how long a script waits for its slot to have moved: a slot of
// few keys moves within some milliseconds.
func (c *Client) patience(s *script) time.Duration {
	if s.patient {
		return c.timeout / 2
	}
	return min(10*time.Millisecond, c.timeout/4)
}

// firstKeyAlone sends a lock's script with the name of the lock alone. The queue is
// out of reach then: a waiter polls, a release hands the lock to nobody, and a free
// lock goes to the first that asks. Who holds it is in the lock alone, so it has no
// more holders than ever.
func firstKeyAlone(s *script) apart {
	return func(ctx context.Context, c *Client, args []any, within time.Duration) (any, error) {
		return c.once(ctx, s, nil, withKeys(args, args[3]), within)
	}
}

// metaAlone ends a lease and notifies the waiters of the value, as FILL does, and
// stores nothing.
func metaAlone(ctx context.Context, c *Client, args []any, within time.Duration) (any, error) {
	return c.once(ctx, fillMeta, nil, withKeys(args, args[4]), within)
}

// inSteps invalidates a key, and marks it or takes the mark off, name by name.
//
// The meta comes first: a lease from before has ended when the value is deleted, so
// nothing from before is stored after that. It comes again after the value, since a
// lease that was taken between may go with the value from before as its old value.
// A mark is set before all that, and taken off after it. If a step fails, all are
// sent again: a mark that is there does not say that the value is gone.
func inSteps(ctx context.Context, c *Client, args []any, within time.Duration) (any, error) {
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
