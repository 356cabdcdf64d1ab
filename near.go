package fetchonce

import (
	"context"
	"errors"
	"time"

	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A Near configures the copies of values that a process keeps, so that a Get of
// such a value costs no round trip, no decoding and no allocation.
//
// A copy is dropped when its value changes in Redis, whoever changes it: another
// process, a program in another language, DEL in redis-cli, the end of its TTL,
// eviction, FLUSHALL. A [Loader.Set], [Loader.Delete] or [Loader.Update] that has
// returned is seen at once by every Get of the same process, over the same Redis
// client, and by other processes as soon as they hear of it: about one way of the
// network after it, on machines that have time for it.
//
// For that a process has one more connection to Redis, to each master of a
// cluster, on which the server itself tells what changes (CLIENT TRACKING). When
// that connection is lost no copy is used; when it hangs, or belongs to a master
// that was replaced, no copy is used 3 seconds later at the latest. There are no
// copies of what is on a master that has just joined a cluster until it is heard,
// some seconds later.
//
// A server that knows no CLIENT TRACKING, or does not allow it, is said so once
// in the log. Then a process hears of the changes that are made by Loaders, and
// of no others; those it sees when the copy's TTL ends.
type Near struct {
	// Entries is the most copies that are kept. The default is none.
	Entries int

	// TTL is the longest that a copy is used. It is never used for longer than
	// its value is fresh. The default is a minute.
	TTL time.Duration
}

var errNearClient = errors.New("Options.Near needs a *redis.Client or a *redis.ClusterClient, or a wrapper with their methods that is comparable")

// A nearby is a copy.
type nearby[V any] struct {
	value  V
	absent bool // a remembered ErrNotFound
	plain  bool // to be handed out as it is, with nothing to do or to tell besides
	header envelope.Header
	over   *protocol.PassOver // for an early refresh
}

func (l *Loader[V]) openNear() {
	if l.opt.Near == (Near{}) {
		return
	}
	l.near = near.New[nearby[V]](l.hub, l.names.Values(), l.names.Changes(), l.opt.Near.Entries, func(refused bool, why error) {
		if refused {
			l.notices.once(noticeUntracked, why)
		} else {
			l.notices.warn(noticeNoNear, why)
		}
	}, l.trace.nearDropped())
}

// nearCopy returns this process's copy of a value, if there is one, and whether
// it is the caller's to have it refreshed early. If there is something else to be
// said to the caller first, there is none.
func (l *Loader[V]) nearCopy(ctx context.Context, key string) (c *nearby[V], early bool) {
	if l.near == nil || ctx == nil || l.closed.Load() || ctx.Err() != nil {
		return nil, false
	}
	c, ok := l.near.Get(protocol.Handle(key))
	if !ok {
		return nil, false
	}
	return c, l.opt.EarlyRefresh > 0 && !c.absent && l.isEarly(c.header, l.age(c.header))
}

// handOut gives a copy to a caller of Get.
func (l *Loader[V]) handOut(c *nearby[V]) (v V, err error) {
	switch {
	case c.absent:
		return v, ErrNotFound
	case l.opt.Clone != nil:
		return l.opt.Clone(c.value), nil
	}
	return c.value, nil
}

// lookNear looks at a copy, if there is one, and else where values are kept.
func (l *Loader[V]) lookNear(ctx context.Context, k keyed, c *nearby[V], early bool) (look[V], error) {
	if c == nil {
		return l.look(ctx, k)
	}
	v, err := l.handOut(c)
	seen := look[V]{found: true, refresh: early, result: Result[V]{Source: SourceNear}}
	if err == nil {
		seen.result.Value, seen.result.Age = v, l.age(c.header)
	}
	if early {
		seen.over = c.over
	}
	return seen, err
}

// ask returns the right to keep a copy of what is read now.
func (l *Loader[V]) ask(k keyed) near.Ticket {
	if l.near == nil {
		return near.Ticket{}
	}
	return l.near.Ask(protocol.Handle(k.user), k.names.Value)
}

// keepNear keeps a copy of what was read, if it is fresh.
func (l *Loader[V]) keepNear(t near.Ticket, k keyed, h envelope.Header, seen *look[V], b []byte) {
	if t == (near.Ticket{}) || !seen.found || seen.refresh {
		return
	}
	c := nearby[V]{value: seen.result.Value, absent: h.Kind == envelope.NotFound, header: h}
	c.plain = !c.absent && l.opt.Clone == nil && l.opt.EarlyRefresh <= 0 && l.trace.Got == nil
	if l.opt.EarlyRefresh > 0 {
		c.over = passOver(b)
		c.over.Stale = true
	}
	life := min(l.opt.Near.TTL, h.Fresh-l.age(h))
	if l.opt.Clone != nil && !c.absent {
		seen.result.Value = l.opt.Clone(c.value) // first: a value that Clone panics on is not kept
	}
	l.near.Keep(t, protocol.Handle(k.user), c, life)
}
