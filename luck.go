package fetchonce

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A luck foresees whether there is a value in Redis, by what was found of late.
// While nearly nothing is found, a Get asks for the lease at once, instead of
// looking first: an ACQUIRE returns the value, too, if there is one.
//
// A miss makes it worse by 1 and a hit better by 8, so it turns bad where less
// than one lookup in nine or so hits. It is an atomic and not exact: to lose a count
// does no harm. While it is as good, or as bad, as can be, it is only read.
type luck struct{ misses atomic.Int32 }

const (
	badLuck   = 24 // from here on it is not looked
	worstLuck = 32
	hitCounts = 8
)

func (l *luck) bad() bool { return l.misses.Load() >= badLuck }

func (l *luck) miss() {
	if n := l.misses.Load(); n < worstLuck {
		l.misses.Store(n + 1)
	}
}

func (l *luck) hit() {
	if n := l.misses.Load(); n > 0 {
		l.misses.Store(max(n-hitCounts, 0))
	}
}

// reset has the next Gets look first: nothing is known.
func (l *luck) reset() {
	if l.misses.Load() > 0 {
		l.misses.Store(0)
	}
}

// invitation is for how long those who come after it was seen that there is
// nothing need not look themselves: it is what a crowd that comes at once needs.
// Much longer it may not be, as they wait for the load, and a value that is stored
// meanwhile by somebody else may not be told.
const invitation = 10 * time.Millisecond

// lookLucky is lookNear for one who will load what is not there. Where to look is
// most likely no use, it does not.
func (l *Loader[V]) lookLucky(ctx context.Context, k keyed, c *nearby[V], early bool) (look[V], error) {
	if c == nil && l.opt.TTL > 0 && (l.skipsLook() || l.flights.Invites(k.user)) {
		return look[V]{skipped: true}, nil
	}
	seen, err := l.lookNear(ctx, k, c, early)
	if c == nil {
		l.learn(&seen)
	}
	return seen, err
}

// skipsLook reports whether a Get is to ask for the lease at once. With MaxFetches
// that is to be no matter of the turn, and in a cluster a near copy is made only of
// what is read from the node that vouches for it.
func (l *Loader[V]) skipsLook() bool {
	return l.luck.bad() && l.permits == nil && (l.near == nil || !l.cluster)
}

// learn learns from what a Get has seen. That it was nothing is learned by the
// load, once for all its callers.
func (l *Loader[V]) learn(seen *look[V]) {
	switch {
	case seen.down != nil:
		l.luck.reset()
	case !seen.nothing():
		l.luck.hit()
	}
}

// joinUnseen joins the load of a key for a caller that has not looked, or starts
// one. It returns what it came to, if that is good for the caller, or else what the
// caller sees now.
func (l *Loader[V]) joinUnseen(ctx context.Context, k keyed, came flight.Arrival, fetch func(ctx context.Context, f *Fetch[V]) (V, error), m *miss) (seen look[V], r Result[V], loaded bool, err error) {
	var load func(context.Context, *flight.Call[Result[V]]) (Result[V], error)
	if l.skipsLook() {
		load = l.loading(k, look[V]{skipped: true}, fetch, nil)
	}
	ticket, joined := l.flights.JoinInvited(ctx, k.user, came, load)
	if !joined {
		seen, err = l.look(ctx, k)
		l.learn(&seen)
		if seen.found {
			m.old()
		}
		return seen, seen.result, false, err
	}
	m.joined(ticket.Started)
	r, late, err := l.waitYielding(ctx, ticket)
	if saw, ok := errors.AsType[*sawError[V]](err); ok {
		seen = l.own(saw, m)
		return seen, seen.result, false, saw.err
	}
	if !late && (ticket.Started || err == nil || errors.Is(err, ErrNotFound) || ctx.Err() != nil) {
		return look[V]{}, r, true, err
	}
	// It is too old for us; or a failure, which is for those for whom there is
	// nothing, and we have not seen that yet.
	failure := err
	seen, err = l.look(ctx, k)
	switch {
	case failure == nil:
	case err != nil && !seen.found, !seen.found && !seen.spare:
		return look[V]{}, r, true, failure
	case seen.spare && isFailure(failure):
		seen.found, seen.refresh = true, false
	}
	return seen, seen.result, false, err
}

// waitYielding waits for a load. A fetch that calls it yields its permit meanwhile.
func (l *Loader[V]) waitYielding(ctx context.Context, t flight.Ticket[Result[V]]) (Result[V], bool, error) {
	defer l.yieldPermit(ctx)()
	return t.Wait(ctx)
}

// A sawError ends a load that was begun without a look, and is not needed: its
// ACQUIRE has seen something.
type sawError[V any] struct {
	seen look[V]
	err  error // what a look returns beside it
}

func (*sawError[V]) Error() string { return "there is a value" }

// own returns what was seen for one of several callers, and notes that.
func (l *Loader[V]) own(saw *sawError[V], m *miss) look[V] {
	seen := saw.seen
	if l.opt.Clone != nil && saw.err == nil {
		seen.result.Value = l.opt.Clone(seen.result.Value)
	}
	m.saw(seen.found)
	return seen
}

// nothingHere says, before the ACQUIRE and when it is answered, that there is
// nothing as far as is known: others need not look for a moment.
func (r *run[V]) nothingHere() {
	if r.opt.TTL > 0 {
		r.call.Invite(invitation)
	}
}

// foresee learns from the answer to an ACQUIRE.
func (r *run[V]) foresee(found protocol.State) {
	switch {
	case found == protocol.Stored || found == protocol.Large:
		if r.unseen {
			r.luck.hit()
		}
		return
	case r.over != nil:
		return
	case !r.learned && r.part == nil:
		r.luck.miss()
		r.learned = true
	}
	r.unseen, r.ticket = false, near.Ticket{}
	r.nothingHere()
}
