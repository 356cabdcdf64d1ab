package batch

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/guard"
)

// A topology has the nodes of a cluster. It is replaced, never changed.
//
// go-redis knows which node has a key, without a round trip, once it has loaded the slots. It
// loads them from one node after another, and waits ReadTimeout (5 s by default) for a node that
// hangs. So a goroutine loads the topology, and never a caller. If it takes longer than hedge,
// another goroutine starts.
type topology struct {
	nodes    map[string]*redis.Client // by address
	batchers map[*redis.Client]*Batcher
}

// A loading is the state of the goroutines that load a topology. The router's mu
// guards it.
type loading struct {
	running int
	began   time.Duration // when the last one began, since epoch; or never
	ended   chan struct{} // closed when the next one ends
	err     error         // of the last one that ended
}

func (l *loading) end() {
	close(l.ended)
	l.ended = make(chan struct{})
}

const (
	hedge       = 100 * time.Millisecond // a load that takes longer may wait for a node that hangs
	mostLoads   = 8                      // goroutines that load at the same time
	loadTime    = 5 * time.Second        // limit of one load, if the client is deadline-aware
	reloadMoved = 100 * time.Millisecond // least time between two loads after MOVED
	reloadIll   = time.Second            // the same while a node does not answer
)

// reload starts to load the topology in the background, unless the last load began less than least
// ago.
func (r *Router) reload(least time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &r.loading
	if l.running > 0 {
		least = max(least, hedge)
	}
	if r.closed != nil || l.running == mostLoads || now()-l.began < least {
		return
	}
	l.running++
	l.began = now()
	go r.load() // ends when the client has tried each node, within its timeouts
}

func (r *Router) load() {
	ctx, cancel := context.WithTimeout(context.Background(), loadTime)
	defer cancel()
	var mu sync.Mutex // guards nodes: the function is called for all nodes at once
	nodes := make(map[string]*redis.Client)
	err := guard.Call(func() error {
		return r.cluster.ForEachShard(ctx, func(_ context.Context, node *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			nodes[node.Options().Addr] = node
			return nil
		})
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loading.running--
	r.loading.err = err
	if err == nil && r.closed == nil {
		r.keep(nodes)
	}
	r.loading.end()
}

// keep stores a new topology. It removes the Batchers of nodes that are gone; each one ends after
// its last command. The caller holds r.mu.
func (r *Router) keep(nodes map[string]*redis.Client) {
	known := make(map[*redis.Client]bool, len(nodes))
	for _, node := range nodes {
		known[node] = true
	}
	maps.DeleteFunc(r.batchers, func(node *redis.Client, b *Batcher) bool {
		if !known[node] {
			b.breaker.Stop()
		}
		return !known[node]
	})
	r.topology.Store(&topology{nodes: nodes, batchers: maps.Clone(r.batchers)})
}

// await waits until the topology is loaded.
func (r *Router) await(ctx context.Context, within time.Duration) error {
	limit, again := time.NewTimer(within), time.NewTicker(hedge)
	defer limit.Stop()
	defer again.Stop()
	for {
		r.mu.Lock()
		ended, closed := r.loading.ended, r.closed
		r.mu.Unlock()
		switch {
		case closed != nil:
			return unsent{closed}
		case r.topology.Load() != nil:
			return nil
		}
		r.reload(0)
		select {
		case <-ended:
			if err := r.failed(); err != nil {
				return unsent{err}
			}
		case <-again.C:
		case <-limit.C:
			return unsent{ErrTimeout}
		case <-ctx.Done():
			return unsent{ctx.Err()}
		}
	}
}

// failed returns the error of the last load, or nil if the topology is loaded.
func (r *Router) failed() error {
	if r.topology.Load() != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loading.err
}

// find returns the node at the address of a redirection. It also starts to load the topology, which
// has changed. If the node is unknown, find waits for that; it returns nil if the node stays
// unknown.
func (r *Router) find(ctx context.Context, within time.Duration, addr string) *redis.Client {
	limit, again := time.NewTimer(within), time.NewTicker(hedge)
	defer limit.Stop()
	defer again.Stop()
	for range 3 {
		r.mu.Lock()
		ended := r.loading.ended
		r.mu.Unlock()
		r.reload(reloadMoved)
		if t := r.topology.Load(); t != nil && t.nodes[addr] != nil {
			return t.nodes[addr]
		}
		select {
		case <-ended:
		case <-again.C:
		case <-limit.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}
