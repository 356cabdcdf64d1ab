package near

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A Report receives what cannot be returned to a caller. If refused is true, the server
// refuses tracking, and only changes by the scripts of internal/protocol are received. Else
// no entry is trusted at present; or, if why is nil, entries of a node are trusted now.
type Report func(refused bool, why error)

// A Hub receives changes for all caches of one client. It connects at the first ticket.
type Hub struct {
	client     redis.UniversalClient
	cluster    cluster // nil if the client is of a single server
	process    string
	heartbeats atomic.Uint64
	ticked     atomic.Int64 // the time of the last tick

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup
	once    sync.Once // starts run

	trackers atomic.Pointer[map[string]*tracker] // by node; the map is replaced, never changed

	mu       sync.RWMutex
	caches   map[any]*attached
	byValues map[string][]*attached
}

// An attached has the functions of a cache that its hub calls.
type attached struct {
	values, changes string
	invalidate      func(tag string)
	invalidateAll   func() // all values have changed
	distrust        func() // changes may not have been received
	report          Report
}

// The kinds of clients whose nodes the hub can find.
type (
	single  interface{ Options() *redis.Options }
	cluster interface {
		ForEachMaster(ctx context.Context, f func(ctx context.Context, client *redis.Client) error) error
		MasterForKey(ctx context.Context, key string) (*redis.Client, error)
	}
)

// Usable reports whether a client can have near caches: a [redis.Client], for a single
// server or with Sentinel, or a [redis.ClusterClient], or a type with their methods. It must
// read from masters, and be comparable: the caches of equal clients share a hub.
func Usable(rdb redis.UniversalClient) bool {
	if !reflect.ValueOf(rdb).Comparable() {
		return false
	}
	if c, ok := rdb.(interface{ Options() *redis.ClusterOptions }); ok {
		_, ok := rdb.(cluster)
		opt := c.Options()
		return ok && !opt.ReadOnly && !opt.RouteByLatency && !opt.RouteRandomly
	}
	_, ok := rdb.(single)
	return ok
}

// NewHub returns a hub of a client. The caller must close it. process is the name of the
// client's mailbox.
func NewHub(rdb redis.UniversalClient, process string) *Hub {
	h := &Hub{client: rdb, process: process, caches: make(map[any]*attached)}
	h.cluster, _ = rdb.(cluster)
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.trackers.Store(&map[string]*tracker{})
	return h
}

// Close ends the connections.
func (h *Hub) Close() {
	h.once.Do(func() {}) // run cannot start any more
	h.cancel()
	h.running.Wait()
}

func (h *Hub) attach(a *attached, key any) {
	h.mu.Lock()
	h.caches[key] = a
	h.sort()
	h.mu.Unlock()
	h.reconnect() // with the prefix of the new cache
}

func (h *Hub) detach(key any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.caches, key)
	h.sort()
}

// sort replaces byValues. The caller holds h.mu.
func (h *Hub) sort() {
	h.byValues = make(map[string][]*attached)
	for _, a := range h.caches {
		h.byValues[a.values] = append(h.byValues[a.values], a)
	}
}

// Invalidate drops the entries of a value in all caches. A process that changes a value
// calls it before the change counts as done, and does not wait for the server's invalidation.
func (h *Hub) Invalidate(name string) {
	values, tag := protocol.SplitName(name)
	h.mu.RLock()
	caches := h.byValues[values] // the slice is replaced, never changed
	h.mu.RUnlock()
	for _, a := range caches {
		a.invalidate(tag)
	}
}

func (h *Hub) all() []*attached {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Collect(maps.Values(h.caches))
}

func (h *Hub) report(refused bool, why error) {
	if why != nil {
		why = protocol.Discreet(why) // it goes into a log
	}
	for _, a := range h.all() {
		a.report(refused, why)
	}
}

// names returns the prefixes of the names of values, and the channels of changes.
func (h *Hub) names() (values, changes []string) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	seen := make(map[string]bool)
	for _, a := range h.caches {
		if !seen[a.values] {
			values = append(values, a.values)
		}
		if !seen[a.changes] {
			changes = append(changes, a.changes)
		}
		seen[a.values], seen[a.changes] = true, true
	}
	return values, changes
}
