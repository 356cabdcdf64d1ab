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

// A Router sends each command to the master that has its key. Each master has a [Batcher] of its
// own, so a node that hangs delays only its own commands. For a single server there is one Batcher.
//
// The Router sends through the clients of the nodes, and not through the ClusterClient: a pipeline
// of a ClusterClient returns when its slowest node has answered. So the Router follows MOVED and
// ASK itself. topology.go has how it learns the nodes.
type Router struct {
	cluster *redis.ClusterClient // nil for a single server
	single  *Batcher             // nil for a cluster

	topology atomic.Pointer[topology] // nil until it is loaded
	start    *breaker.Breaker         // used until then; its probe loads the topology

	recoveredMu sync.Mutex
	onRecovered map[*func()]bool // see OnRecovered

	mu       sync.Mutex
	closed   error
	batchers map[*redis.Client]*Batcher
	loading  loading
}

// NewRouter returns a Router over a client. The caller must close it. It connects when the first
// command is sent.
//
// A wrapper of a ClusterClient counts as a single server: its methods may do more than the clients
// of the nodes.
func NewRouter(rdb redis.UniversalClient) *Router {
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		r := &Router{cluster: cluster, batchers: make(map[*redis.Client]*Batcher), loading: loading{began: never, ended: make(chan struct{})}}
		r.start = breaker.New(func(ctx context.Context, _ string) error { return r.await(ctx, loadTime) }, r.recovered)
		return r
	}
	r := &Router{}
	r.single = New(rdb, r.recovered)
	return r
}

// OnRecovered makes the Router call f each time that a node which had failed serves again, until
// stop is called.
func (r *Router) OnRecovered(f func()) (stop func()) {
	r.recoveredMu.Lock()
	defer r.recoveredMu.Unlock()
	if r.onRecovered == nil {
		r.onRecovered = make(map[*func()]bool)
	}
	r.onRecovered[&f] = true
	return func() {
		r.recoveredMu.Lock()
		defer r.recoveredMu.Unlock()
		delete(r.onRecovered, &f)
	}
}

func (r *Router) recovered() {
	r.recoveredMu.Lock()
	all := slices.Collect(maps.Keys(r.onRecovered))
	r.recoveredMu.Unlock()
	for _, f := range all {
		(*f)()
	}
}

// follow sends commands again if their error redirects to another node. It returns any other error;
// if the topology may have changed, it first starts to load that.
func (r *Router) follow(ctx context.Context, within time.Duration, b *Batcher, err error, cmds []redis.Cmder) error {
	to, ask := redirection(err)
	switch {
	case to != "":
		if node := r.find(ctx, within, to); node != nil {
			return r.batcher(node).redirected(ctx, within, ask, cmds)
		}
	case errors.Is(err, redis.ErrClosed): // go-redis has removed the node
		if other, failed := r.of(ctx, within, keyOf(cmds[0])); failed == nil && other != b {
			return other.do(ctx, within, nil, cmds)
		}
	case ctx.Err() == nil && !isAnswer(err):
		r.reload(reloadIll) // the node may have been replaced
	}
	return err
}

// redirected sends commands to the node that another node has redirected to. After ASK, each
// command needs an ASKING before it.
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

// redirection returns the address of the node to which an error redirects, or "". ask says that the
// redirection is an ASK, which holds for one command only.
func redirection(err error) (to string, ask bool) {
	if to, ok := redis.IsMovedError(err); ok {
		return hostPort(to), false
	}
	if to, ok := redis.IsAskError(err); ok {
		return hostPort(to), true
	}
	return "", false
}

// hostPort returns an address in the form of go-redis: the server sends an IPv6 address without
// brackets.
func hostPort(addr string) string {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr[:i], "[]"), addr[i+1:])
}

// keyOf returns the first key of a command. In a script's command, it comes after the number of keys.
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

// of returns the Batcher of the node that has a key. It waits until the topology is loaded.
func (r *Router) of(ctx context.Context, within time.Duration, key string) (*Batcher, error) {
	if r.topology.Load() == nil {
		if err := r.await(ctx, within); err != nil {
			return nil, err
		}
	}
	node, err := r.cluster.MasterForKey(ctx, key) // no round trip: the topology is loaded
	if err != nil {
		return nil, unsent{err}
	}
	return r.batcher(node), nil
}

// batcher returns the Batcher of a node.
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
	b := New(node, r.recovered)
	if r.closed != nil {
		b.Close(r.closed) // does not wait: nothing was sent
		return b
	}
	r.batchers[node] = b
	if t := r.topology.Load(); t != nil {
		r.topology.Store(&topology{nodes: t.nodes, batchers: maps.Clone(r.batchers)}) // the next call needs no mutex
	}
	return b
}

// Close closes the Batchers of all nodes at the same time; see [Batcher.Close].
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
