package testkit

import (
	"sync"

	"github.com/redis/go-redis/v9"
)

// A Gate stops scripts of a client on their way to Redis while it is shut.
type Gate struct {
	mu      sync.Mutex
	closed  chan struct{} // nil while it is open; closed when it opens
	Stopped chan struct{} // receives when a script is stopped
}

// NewGate adds an open gate to a client that has not been used.
func NewGate(rdb redis.UniversalClient) *Gate {
	g := &Gate{Stopped: make(chan struct{}, 1000)}
	AddHook(rdb, Before(g.pass))
	return g
}

// AddHook adds a hook to a client that has not been used. In a cluster it adds it to the clients
// of the nodes, by which the library sends.
func AddHook(rdb redis.UniversalClient, hook redis.Hook) {
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(hook) })
		return
	}
	rdb.AddHook(hook)
}

// Shut stops the scripts that come from now on.
func (g *Gate) Shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = make(chan struct{})
}

// Open sends the scripts that were stopped, and all others.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.closed)
	g.closed = nil
}

func (g *Gate) pass(cmd redis.Cmder) {
	g.mu.Lock()
	closed := g.closed
	g.mu.Unlock()
	if closed != nil && cmd.Name() == "evalsha" {
		g.Stopped <- struct{}{}
		<-closed
	}
}

// Free opens the gate for other scripts. Those that were stopped are sent when the test calls
// arrive.
func (g *Gate) Free() (arrive func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	closed := g.closed
	g.closed = nil
	return func() { close(closed) }
}
