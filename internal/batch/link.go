package batch

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/breaker"
	"github.com/fetchonce/fetchonce/internal/guard"
)

// A Link sends the commands of one Loader or Locker through a Router. With a breaker, it
// sends nothing to a node that has failed, until a probe was answered. The breaker of a node is
// shared by all Links that have one.
type Link struct {
	router  *Router
	node    *Batcher      // of all keys; nil: each key's own
	every   time.Duration // between probes; 0 or less: no breaker
	timeout time.Duration // of a probe
}

// Link returns a Link that probes a failed node as often as breaker says, with the timeout. If
// breaker is 0 or less, it sends every command.
func (r *Router) Link(breaker, timeout time.Duration) *Link {
	return &Link{router: r, node: r.single, every: breaker, timeout: timeout}
}

// At returns a Link that sends to one node, whatever the commands' keys. MOVED and ASK are
// then errors. The node is nil for a single server.
func (l *Link) At(node *redis.Client) *Link {
	if l.node != nil || node == nil {
		return l
	}
	at := *l
	at.node = l.router.batcher(node)
	return &at
}

// Do is [Batcher.Do] at the node of the commands' key, which is one.
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
	if cold { // else within stays the same: commands with one limit share a pipeline
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

// of is [Router.of], with the error of an open breaker.
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

// Failed is called when an operation on a key has failed after all its retries. It took some
// time. It opens the node's breaker if the node has answered nothing in that time, or has
// answered that it serves no key. If the caller has left before an answer, it has the node
// probed. It returns the error with its cause, if that is known only now.
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

// isOurs reports whether an error says nothing about a node: this program caused it.
func isOurs(err error) bool {
	_, panicked := errors.AsType[*guard.PanicError](err)
	return panicked || breaker.IsOpen(err) || errors.Is(err, redis.ErrClosed)
}

// nodeOf returns the node that has a key, and its breaker. Until the topology is known, there is
// only a breaker; if the node is not known, there is none.
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

// IsUnfit reports whether an error is the answer of a node that serves no key at present.
func IsUnfit(err error) bool {
	return redis.IsLoadingError(err) || redis.IsClusterDownError(err) || redis.IsMasterDownError(err)
}

// isSilent reports whether the node has answered nothing in time for so long.
func (b *Batcher) isSilent(took time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inTime <= now()-took
}
