// Package near keeps copies of values in this process, and lets none of them
// be used that may have changed at its source.
//
// A [Cache] is a bounded map of copies. A [Hub] hears of every change of their
// values in Redis: by any client, in any language, by expiry, by eviction, by
// FLUSHALL. For that it has a connection to each master on which the server
// itself tells it what changes (CLIENT TRACKING in broadcast mode). Where that is
// refused, the scripts of internal/protocol tell it what they change, and nobody
// tells of the rest.
//
// # What makes a copy usable
//
// A connection may be silent because nothing changes, or because nobody is
// there any more: go-redis notices neither a server that hangs nor a master that
// was replaced while it stayed up. So once a second the hub changes a key of its
// own, a beat, over the user's client, and must hear of that change like of any
// other. That it does proves that it has heard of all that was changed before the
// beat was sent. Copies may be used until three seconds after that, and not a
// moment longer:
//
//	connect ──► tracked ──► beat heard ──► copies are used, for 3 s after
//	   ▲                        ▲  │         the beat was sent
//	   │                        └──┘ each second
//	   └── connection lost, or no beat heard for 3 s: no copy is used any more
//
// Every copy has a [vouch], which is that promise. When the connection is lost
// its vouch ends, and with it, in one step, all the copies that were made under
// it. The next connection has a new one.
//
// # What makes a copy right
//
// A value that is on its way while it changes must not become a copy
// afterwards. So who reads a value takes a [Ticket] before it asks, and a copy is
// made only if since then no change of that key was heard of, nor the vouch
// ended. What a process has changed itself it forgets before the change counts as
// done, see [Hub.Changed].
//
// In a cluster, the value is read from the node whose vouch that is, and from no
// other. A client that follows redirections would read it on a node of which
// nobody may hear, while it does not know yet that the slot is there. That a key
// leaves a node is a change there, and is told.
//
// The room knows nothing of values, and reads none. It is used by the loader.
package near

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A Cache is the copies of the values of one namespace. Its keys are handles; see
// [protocol.Handle].
type Cache[T any] struct {
	hub     *Hub
	values  string // how the names of its values begin
	copies  *otter.Cache[string, *made[T]]
	dropped Dropped // or nil

	seed    maphash.Seed
	stripes [256]stripe
}

// made is a copy.
type made[T any] struct {
	vouch *vouch
	until int64 // it is of no use from then on
	short bool  // its life is to be measured exactly
	copy  T
}

// A stripe orders the changes of some keys and the making of their copies.
type stripe struct {
	mu      sync.Mutex
	changes uint64 // heard of so far
}

// A vouch is the promise that all changes are heard of, of those who have
// copies.
type vouch struct {
	until atomic.Int64 // it holds so long; 0 when it has ended for good
}

// began is where this room's time begins: it is monotonic, and is read in one
// step.
var began = time.Now()

func now() int64 { return int64(time.Since(began)) }

// To read the clock costs as much as to find a copy. So hits go by a hand that
// the hub moves on every tick, and everything that ends ends a tick earlier: a
// process that does not get around to move it does not hear of changes either.
// For copies whose life is not much longer than a tick, the clock is read.
const (
	tick      = 100 * time.Millisecond
	shortLife = time.Second
)

// A Dropped is told of copies that are not used any more: of one whose value has
// changed, or, with reset, of all there were. It is called under no lock.
type Dropped func(copies int, reset bool)

// New returns a cache of at most so many copies over the values whose names begin
// so. It must be closed. changes is the channel on which changes are told where
// the server does not tell them. dropped may be nil.
func New[T any](hub *Hub, values, changes string, entries int, notify Notify, dropped Dropped) *Cache[T] {
	c := &Cache[T]{
		hub: hub, values: values, seed: maphash.MakeSeed(), dropped: dropped,
		copies: otter.Must(&otter.Options[string, *made[T]]{MaximumSize: entries}),
	}
	hub.attach(&listener{values: values, changes: changes, forget: c.forget, forgetAll: c.forgetAll, notify: notify}, c)
	return c
}

// Close ends the cache.
func (c *Cache[T]) Close() {
	c.hub.detach(c)
	c.copies.InvalidateAll()
}

// Get returns the copy of a value, if there is one that can be vouched for.
func (c *Cache[T]) Get(handle string) (*T, bool) {
	m, ok := c.copies.GetIfPresent(handle)
	if !ok {
		return nil, false
	}
	t := c.hub.hand.Load()
	if m.short {
		t = now()
	}
	if t >= m.until || t >= m.vouch.until.Load() {
		return nil, false
	}
	return &m.copy, true
}

// A Ticket is the right to make a copy of a value that is read now. Its zero
// value is none.
type Ticket struct {
	vouch   *vouch
	node    *redis.Client
	changes uint64
}

// Node returns the node of a cluster that the value must be read from, directly:
// it is the one whose changes are heard of. If that does not have the key, and
// only says who has, the ticket is of no use. It is nil for what is no cluster.
func (t Ticket) Node() *redis.Client { return t.node }

// Ask returns a ticket for the value of that name. It is to be called before the
// value is asked for.
func (c *Cache[T]) Ask(handle, name string) Ticket {
	v, node := c.hub.vouchFor(name)
	if v == nil || now() >= v.until.Load() {
		return Ticket{}
	}
	s := c.stripe(handle)
	s.mu.Lock()
	defer s.mu.Unlock()
	return Ticket{v, node, s.changes}
}

// Keep makes a copy, which is used for as long as life, and reports whether it
// did: not if the value may have changed since the ticket was taken.
func (c *Cache[T]) Keep(t Ticket, handle string, value T, life time.Duration) bool {
	if t.vouch == nil || life <= 0 {
		return false
	}
	m := &made[T]{vouch: t.vouch, until: now() + int64(life), short: life < shortLife, copy: value}
	if !m.short {
		m.until -= int64(tick)
	}
	s := c.stripe(handle)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes != t.changes || now() >= t.vouch.until.Load() {
		return false
	}
	c.copies.Set(handle, m)
	return true
}

// forget notes that the value of a tag has changed.
func (c *Cache[T]) forget(tag string) {
	handle := protocol.HandleOf(tag)
	s := c.stripe(handle)
	s.mu.Lock()
	s.changes++
	_, had := c.copies.Invalidate(handle)
	s.mu.Unlock()
	if had && c.dropped != nil {
		c.dropped(1, false)
	}
}

// forgetAll drops what no vouch is there for any more. What is there already for
// the next one is none the worse for being made again.
func (c *Cache[T]) forgetAll() {
	copies := c.copies.EstimatedSize()
	c.copies.InvalidateAll()
	if copies > 0 && c.dropped != nil {
		c.dropped(copies, true)
	}
}

func (c *Cache[T]) stripe(handle string) *stripe {
	return &c.stripes[maphash.String(c.seed, handle)%uint64(len(c.stripes))]
}
