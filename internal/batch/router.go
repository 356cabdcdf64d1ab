package batch

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/breaker"
)

// A Router sends each command to the master that has its key. Each master has a
// [Batcher] of its own, so a node that hangs delays only the commands sent to it.
// Over a client of a single server it is one Batcher.
//
// It sends to the nodes' clients, and not through the ClusterClient: a pipeline of
// that returns when the slowest of its nodes does. So it follows MOVED and ASK
// itself; see topology.go for how it learns which nodes there are.
type Router struct {
	cluster *redis.ClusterClient // nil for a single server
	single  *Batcher             // nil for a cluster

	topology atomic.Pointer[topology] // nil until it was loaded
	start    *breaker.Breaker         // until then; its probe loads the topology

	backMu sync.Mutex
	onBack map[*func()]bool // see OnBack

	mu       sync.Mutex
	closed   error
	batchers map[*redis.Client]*Batcher
	loading  loading
}

// NewRouter returns a Router over a client. It must be closed. It connects to
// nothing until it is used.
//
// What wraps a ClusterClient is taken for a single server: its methods may do more
// than the nodes' clients do.
func NewRouter(rdb redis.UniversalClient) *Router {
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		r := &Router{cluster: cluster, batchers: make(map[*redis.Client]*Batcher), loading: loading{began: never, ended: make(chan struct{})}}
		r.start = breaker.New(func(ctx context.Context, _ string) error { return r.await(ctx, loadTime) }, r.back)
		return r
	}
	r := &Router{}
	r.single = New(rdb, r.back)
	return r
}

// OnBack has f called each time that a node that had failed serves again, until stop is called.
func (r *Router) OnBack(f func()) (stop func()) {
	r.backMu.Lock()
	defer r.backMu.Unlock()
	if r.onBack == nil {
		r.onBack = make(map[*func()]bool)
	}
	r.onBack[&f] = true
	return func() {
		r.backMu.Lock()
		defer r.backMu.Unlock()
		delete(r.onBack, &f)
	}
}

func (r *Router) back() {
	r.backMu.Lock()
	all := slices.Collect(maps.Keys(r.onBack))
	r.backMu.Unlock()
	for _, f := range all {
		(*f)()
	}
}

// follow sends commands again if their error says that they belong to another node.
// Any other error it returns, after having the topology loaded if it may have changed.
func (r *Router) follow(ctx context.Context, within time.Duration, b *Batcher, err error, cmds []redis.Cmder) error {
	to, ask := redirection(err)
	switch {
	case to != "":
		if node := r.find(ctx, within, to); node != nil {
			return r.batcher(node).redirected(ctx, within, ask, cmds)
		}
	case errors.Is(err, redis.ErrClosed): // go-redis has given the node up
		if other, failed := r.of(ctx, within, keyOf(cmds[0])); failed == nil && other != b {
			return other.do(ctx, within, nil, cmds)
		}
	case ctx.Err() == nil && !isAnswer(err):
		r.reload(reloadIll) // the node may have been replaced
	}
	return err
}

// redirected sends commands that another node has sent here. After ASK, this node
// takes each of them only right behind an ASKING.
func (b *Batcher) redirected(ctx context.Context, within time.Duration, ask bool, cmds []redis.Cmder) error {
	if !ask {
		return b.do(ctx, within, nil, cmds)
	}
	all := make([]redis.Cmder, 0, 2*len(cmds))
	for _, cmd := range cmds {
		all = append(all, redis.NewStatusCmd(ctx, "asking"), cmd)
	}
	return b.do(ctx, within, nil, all)
}

// redirection returns the address of the node to which an error redirects, or "",
// and whether it does so for this once only.
func redirection(err error) (to string, ask bool) {
	if to, ok := redis.IsMovedError(err); ok {
		return hostPort(to), false
	}
	if to, ok := redis.IsAskError(err); ok {
		return hostPort(to), true
	}
	return "", false
}

// hostPort writes an address as go-redis does: the server has no brackets around an
// IPv6 address.
func hostPort(addr string) string {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr[:i], "[]"), addr[i+1:])
}

// keyOf returns the first key of a command: a script's stands behind the number of
// its keys.
func keyOf(cmd redis.Cmder) string {
	args, at := cmd.Args(), 1
	if args[0] == "evalsha" || args[0] == "eval" {
		at = 3
	}
	if at >= len(args) {
		return ""
	}
	key, _ := args[at].(string)
	return key
}

// of returns the batcher of the node that has a key. At first it waits for the topology.
func (r *Router) of(ctx context.Context, within time.Duration, key string) (*Batcher, error) {
	if r.topology.Load() == nil {
		if err := r.await(ctx, within); err != nil {
			return nil, err
		}
	}
	node, err := r.cluster.MasterForKey(ctx, key) // no round trip: the topology was loaded
	if err != nil {
		return nil, unsent{err}
	}
	return r.batcher(node), nil
}

// batcher returns the batcher of a node.
func (r *Router) batcher(node *redis.Client) *Batcher {
	if t := r.topology.Load(); t != nil {
		if b := t.batchers[node]; b != nil {
			return b
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.batchers[node]; b != nil {
		return b
	}
	b := New(node, r.back)
	if r.closed != nil {
		b.Close(r.closed) // nothing was sent, so nothing is waited for
		return b
	}
	r.batchers[node] = b
	if t := r.topology.Load(); t != nil {
		r.topology.Store(&topology{nodes: t.nodes, batchers: maps.Clone(r.batchers)}) // the next time without the mutex
	}
	return b
}

// Close is [Batcher.Close] of the batchers of all nodes at once.
func (r *Router) Close(cause error) {
	if r.single != nil {
		r.single.Close(cause)
		return
	}
	r.mu.Lock()
	if r.closed == nil {
		r.closed = cause
		r.loading.end()
	}
	open := slices.Collect(maps.Values(r.batchers))
	r.mu.Unlock()
	r.start.Stop()
	var all sync.WaitGroup
	for _, b := range open {
		all.Go(func() { b.Close(cause) })
	}
	all.Wait()
}
