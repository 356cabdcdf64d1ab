package near

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/guard"
	"github.com/fetchonce/fetchonce/internal/sleep"
)

// relist is the mean time between two lists of the masters of a cluster. It limits for how long the
// values of a new node have no entries.
const relist = 2 * time.Second

// trustOf returns the present trust for a value, nil if there is none, and in a cluster the
// node that the value must be read from.
func (h *Hub) trustOf(name string) (*trust, *redis.Client) {
	h.once.Do(func() { h.running.Go(h.run) }) // ends with h.ctx
	trackers := *h.trackers.Load()
	if len(trackers) == 0 {
		return nil, nil
	}
	if h.cluster == nil {
		return trackers[""].trust.Load(), nil
	}
	master, err := h.cluster.MasterForKey(h.ctx, name) // no round trip: run has listed the masters
	if err != nil {
		return nil, nil
	}
	if t := trackers[nodeOf(master)]; t != nil {
		return t.trust.Load(), master
	}
	return nil, nil
}

func nodeOf(c *redis.Client) string { return c.Options().Addr }

// run keeps a tracker for each master.
func (h *Hub) run() {
	defer h.update(nil)
	h.ticked.Store(now())
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
			h.report(false, err)
		}
		if !sleep.For(h.ctx, relist*3/4+rand.N(relist/2)) {
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
			h.ticked.Store(now())
		case <-h.ctx.Done():
			return
		}
	}
}

func (h *Hub) masters() (map[string]*redis.Options, error) {
	ctx, cancel := context.WithTimeout(h.ctx, trustLasts)
	defer cancel()
	var mu sync.Mutex
	masters := make(map[string]*redis.Options)
	err := guard.Call(func() error {
		return h.cluster.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			masters[nodeOf(c)] = c.Options()
			return nil
		})
	})
	return masters, err
}

// update makes the trackers match the masters. If that changes them, slots may have moved
// between nodes, so all trust ends.
func (h *Hub) update(masters map[string]*redis.Options) {
	old := *h.trackers.Load()
	trackers := make(map[string]*tracker, len(masters))
	changed := false
	for node, opt := range masters {
		trackers[node] = old[node]
		if trackers[node] == nil {
			trackers[node] = newTracker(h, node, opt)
			changed = true
		}
	}
	for node, t := range old {
		if trackers[node] == nil {
			t.cancel()
			t.endTrust()
			changed = true
		}
	}
	if !changed {
		return
	}
	h.trackers.Store(&trackers)
	h.renewTrust()
	for node, t := range trackers {
		if old[node] == nil {
			h.running.Go(t.run) // ends with its own context, a child of h.ctx
		}
	}
}

// flushed ends all trust and drops all entries: a node has deleted all its values.
func (h *Hub) flushed() {
	h.renewTrust()
	for _, a := range h.all() {
		a.invalidateAll()
	}
}

// renewTrust ends all trust, after which no entry is returned as good. Each tracker starts a
// new one.
func (h *Hub) renewTrust() {
	for _, t := range *h.trackers.Load() {
		t.renewTrust()
	}
	for _, a := range h.all() {
		a.distrust()
	}
}

// reconnect makes all trackers connect again.
func (h *Hub) reconnect() {
	for _, t := range *h.trackers.Load() {
		t.reconnect()
	}
}
