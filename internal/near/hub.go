package near

import (
	"context"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A Notify is told what no caller is told: that the server refuses to tell of
// changes, so that only those are heard of which are made by our own scripts
// (refused); or else that no copy is used at present.
type Notify func(refused bool, why error)

// A Hub hears of changes for all the caches of one client. It connects to nothing
// until a cache is asked.
type Hub struct {
	client  redis.UniversalClient
	cluster cluster // nil if the client is of a single server
	process string
	beats   atomic.Uint64
	hand    atomic.Int64 // shows what time it was at the last tick

	ctx     context.Context // ends when the last user closes
	cancel  context.CancelFunc
	running sync.WaitGroup
	once    sync.Once // begins to listen

	links atomic.Pointer[map[string]*link] // by node; never changed, but replaced

	mu        sync.RWMutex
	users     int // guarded by hubsMu
	listeners map[any]*listener
	byValues  map[string][]*listener
}

// A listener is what a hub knows of a cache.
type listener struct {
	values, changes string
	forget          func(tag string)
	forgetAll       func()
	notify          Notify
}

// The kinds of clients of which we can find the nodes.
type (
	single  interface{ Options() *redis.Options }
	cluster interface {
		ForEachMaster(ctx context.Context, f func(ctx context.Context, client *redis.Client) error) error
		MasterForKey(ctx context.Context, key string) (*redis.Client, error)
	}
)

// Usable reports whether near caches can be had over a client: a [redis.Client],
// for a single server or with Sentinel, or a [redis.ClusterClient], or what has
// their methods. It must read from masters, and a hub must be able to tell it from
// other clients: caches of equal clients share the hub.
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

// The hubs that are open, by client.
var (
	hubsMu sync.Mutex
	hubs   = make(map[redis.UniversalClient]*Hub)
)

// Open returns the hub of a client. It must be closed. The process has the name
// that it has for its mailbox.
func Open(rdb redis.UniversalClient, process string) *Hub {
	hubsMu.Lock()
	defer hubsMu.Unlock()
	shared := reflect.ValueOf(rdb).Comparable()
	if shared && hubs[rdb] != nil {
		h := hubs[rdb]
		h.users++
		return h
	}
	h := &Hub{client: rdb, process: process, users: 1, listeners: make(map[any]*listener)}
	h.cluster, _ = rdb.(cluster)
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.links.Store(&map[string]*link{})
	if shared {
		hubs[rdb] = h
	}
	return h
}

// Close gives the hub back. The last one to do so ends its connections.
func (h *Hub) Close() {
	hubsMu.Lock()
	h.users--
	last := h.users == 0
	if last && reflect.ValueOf(h.client).Comparable() {
		delete(hubs, h.client)
	}
	hubsMu.Unlock()
	if last {
		h.once.Do(func() {}) // nobody begins any more
		h.cancel()
		h.running.Wait()
	}
}

func (h *Hub) attach(l *listener, key any) {
	h.mu.Lock()
	h.listeners[key] = l
	h.sort()
	h.mu.Unlock()
	h.restart() // with the new names
}

func (h *Hub) detach(key any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.listeners, key)
	h.sort()
}

// sort makes byValues anew. The caller holds h.mu.
func (h *Hub) sort() {
	h.byValues = make(map[string][]*listener)
	for _, l := range h.listeners {
		h.byValues[l.values] = append(h.byValues[l.values], l)
	}
}

// Changed drops all copies of a value. A process that has changed it says so
// before the change counts as done: it must not wait until it hears of it.
func (h *Hub) Changed(name string) {
	values, tag := protocol.SplitName(name)
	h.mu.RLock()
	listeners := h.byValues[values] // never changed, but replaced
	h.mu.RUnlock()
	for _, l := range listeners {
		l.forget(tag)
	}
}

func (h *Hub) forgetAll() {
	for _, l := range h.all() {
		l.forgetAll()
	}
}

func (h *Hub) all() []*listener {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Collect(maps.Values(h.listeners))
}

func (h *Hub) notify(refused bool, why error) {
	why = protocol.Discreet(why) // it goes into a log
	for _, l := range h.all() {
		l.notify(refused, why)
	}
}

// names returns what is to be listened to: how names of values begin, and the
// channels of changes.
func (h *Hub) names() (values, changes []string) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	seen := make(map[string]bool)
	for _, l := range h.listeners {
		if !seen[l.values] {
			values = append(values, l.values)
		}
		if !seen[l.changes] {
			changes = append(changes, l.changes)
		}
		seen[l.values], seen[l.changes] = true, true
	}
	return values, changes
}

// vouchFor returns what vouches for copies of a value that is read now, from that
// node if this is a cluster: nil if nothing does.
func (h *Hub) vouchFor(name string) (*vouch, *redis.Client) {
	h.once.Do(func() { h.running.Go(h.run) }) // ends with h.ctx
	links := *h.links.Load()
	if len(links) == 0 {
		return nil, nil
	}
	if h.cluster == nil {
		return links[""].vouch.Load(), nil
	}
	master, err := h.cluster.MasterForKey(h.ctx, name) // no round trip: the client has just listed the masters
	if err != nil {
		return nil, nil
	}
	if k := links[nodeOf(master)]; k != nil {
		return k.vouch.Load(), master
	}
	return nil, nil
}

func nodeOf(c *redis.Client) string { return c.Options().Addr }

// relist is how often a cluster is asked for its masters. It bounds how long there
// are no copies of what a node has that has just joined.
const relist = 2 * time.Second

// run keeps a link to each master.
func (h *Hub) run() {
	defer h.update(nil)
	h.hand.Store(now())
	h.running.Go(h.tick) // ends with h.ctx
	if h.cluster == nil {
		opt := h.client.(single).Options()
		h.update(map[string]*redis.Options{"": opt})
		<-h.ctx.Done()
		return
	}
	for {
		if masters, err := h.masters(); err == nil {
			h.update(masters)
		} else if h.ctx.Err() == nil {
			h.notify(false, err)
		}
		if !sleep(h.ctx, relist*3/4+rand.N(relist/2)) {
			return
		}
	}
}

func (h *Hub) tick() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			h.hand.Store(now())
		case <-h.ctx.Done():
			return
		}
	}
}

func (h *Hub) masters() (map[string]*redis.Options, error) {
	ctx, cancel := context.WithTimeout(h.ctx, lasts)
	defer cancel()
	var mu sync.Mutex
	masters := make(map[string]*redis.Options)
	err := client.Call(func() error {
		return h.cluster.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			masters[nodeOf(c)] = c.Options()
			return nil
		})
	})
	return masters, err
}

// update makes the links be those to the masters. If they change, slots may have
// gone from one to another, so all copies are given up.
func (h *Hub) update(masters map[string]*redis.Options) {
	old := *h.links.Load()
	links := make(map[string]*link, len(masters))
	changed := false
	for node, opt := range masters {
		links[node] = old[node]
		if links[node] == nil {
			links[node] = newLink(h, node, opt)
			changed = true
		}
	}
	for node, k := range old {
		if links[node] == nil {
			k.cancel()
			k.end()
			changed = true
		}
	}
	if !changed {
		return
	}
	h.links.Store(&links)
	h.giveUp()
	for node, k := range links {
		if old[node] == nil {
			h.running.Go(k.run) // ends with its own context, a child of h.ctx
		}
	}
}

// giveUp ends all vouches, and lets the links begin new ones.
func (h *Hub) giveUp() {
	for _, k := range *h.links.Load() {
		k.renew()
	}
	h.forgetAll()
}

// restart has all links connect again.
func (h *Hub) restart() {
	for _, k := range *h.links.Load() {
		k.again()
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
