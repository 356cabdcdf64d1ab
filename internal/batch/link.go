package batch

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/breaker"
	"github.com/fetchonce/fetchonce/internal/guard"
)

// A Link sends the commands of one Loader or Locker through a Router. With a breaker, it sends
// nothing to a node that failed, until the node answers a probe. All Links that use a breaker
// share those of the nodes.
type Link struct {
	router  *Router
	node    *Batcher      // of all keys; nil if each key has its own node
	every   time.Duration // between probes; 0 or less: no breaker
	timeout time.Duration // of a probe
}

// Link returns a Link. breaker is the time between the probes of a failed node, and timeout that of
// a probe. If breaker is 0 or less, the Link has no breaker and sends every command.
func (r *Router) Link(breaker, timeout time.Duration) *Link {
	return &Link{router: r, node: r.single, every: breaker, timeout: timeout}
}

// At returns a Link that sends all commands to one node. It returns MOVED and ASK as errors. The
// node is nil for a single server.
func (l *Link) At(node *redis.Client) *Link {
	if l.node != nil || node == nil {
		return l
	}
	at := *l
	at.node = l.router.batcher(node)
	return &at
}

// Do is [Batcher.Do] at the node of the commands' keys. All keys must have the same node.
func (l *Link) Do(ctx context.Context, within time.Duration, cmds ...redis.Cmder) error {
	return l.do(ctx, within, nil, cmds)
}

// Read is [Batcher.Read] at the node of the command's key.
func (l *Link) Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error {
	return l.do(ctx, within, cmd, nil)
}

func (l *Link) do(ctx context.Context, within time.Duration, read *redis.StringCmd, cmds []redis.Cmder) error {
	if l.node != nil {
		if err := l.refusal(l.node); err != nil {
			return err
		}
		return l.node.do(ctx, within, read, cmds)
	}
	first := redis.Cmder(read)
	if read == nil {
		first = cmds[0]
	}
	cold, began := l.router.topology.Load() == nil, now()
	b, err := l.of(ctx, within, keyOf(first))
	if err != nil {
		return err
	}
	if cold { // otherwise within stays the same: only requests with equal limits share a pipeline
		within -= now() - began
	}
	err = b.do(ctx, within, read, cmds)
	if err == nil {
		return nil
	}
	if cmds == nil {
		cmds = []redis.Cmder{read}
	}
	return l.router.follow(ctx, within, b, err, cmds)
}

// of is [Router.of]. If the breaker is open, it returns the breaker's error.
func (l *Link) of(ctx context.Context, within time.Duration, key string) (*Batcher, error) {
	r := l.router
	if l.every > 0 && r.topology.Load() == nil {
		if err := r.start.Err(); err != nil {
			return nil, err
		}
	}
	b, err := r.of(ctx, within, key)
	if err == nil {
		err = l.refusal(b)
	}
	return b, err
}

// refusal returns the error of a node's breaker, if that is open.
func (l *Link) refusal(b *Batcher) error {
	if l.every <= 0 {
		return nil
	}
	err := b.breaker.Err()
	if err != nil && l.router.cluster != nil {
		l.router.reload(reloadIll) // the node may have been replaced
	}
	return err
}

// Failed is called when an operation on a key has failed after all its retries; took is how long it
// took. If the node has answered nothing in that time, or has answered that it serves no key,
// Failed opens its breaker. If the caller's context ended before an answer, it probes the node. It
// returns the error, with the cause if it can find that.
func (l *Link) Failed(ctx context.Context, key string, took time.Duration, err error) error {
	if l.every <= 0 || key == "" || isOurs(err) {
		return err
	}
	node, b := l.nodeOf(key)
	silent := node == nil || node.isSilent(took)
	p := breaker.Probe{Key: key, Every: l.every, Timeout: l.timeout}
	switch {
	case b == nil:
	case ctx.Err() != nil:
		if silent && took > promptReply {
			b.Suspect(p)
		}
	case IsUnfit(err):
		b.Trip(err, p)
	case silent && !isAnswer(err):
		if errors.Is(err, ErrTimeout) {
			err = node.diagnose(err, b)
		}
		b.Trip(err, p)
	}
	return err
}

// isOurs reports whether this program caused an error, so that it says nothing about a node.
func isOurs(err error) bool {
	_, panicked := errors.AsType[*guard.PanicError](err)
	return panicked || breaker.IsOpen(err) || errors.Is(err, redis.ErrClosed)
}

// nodeOf returns the node that has a key, and its breaker. Before the topology is loaded, the node
// is nil. If the node is unknown, both are nil.
func (l *Link) nodeOf(key string) (*Batcher, *breaker.Breaker) {
	if l.node != nil {
		return l.node, l.node.breaker
	}
	if l.router.topology.Load() == nil {
		return nil, l.router.start
	}
	node, err := l.router.of(context.Background(), l.timeout, key)
	if err != nil {
		return nil, nil
	}
	return node, node.breaker
}

// IsUnfit reports whether an error is the answer of a node that serves no key now.
func IsUnfit(err error) bool {
	return redis.IsLoadingError(err) || redis.IsClusterDownError(err) || redis.IsMasterDownError(err)
}

// isSilent reports whether the node has answered no command in time, for as long as took.
func (b *Batcher) isSilent(took time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inTime <= now()-took
}
