package batch

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	partSize = 1000 // commands of an Each that share a round trip
	parts    = 2    // of an Each that are queued or in flight at once: more would delay other callers
)

// Each sends commands that are independent of each other and returns the error of each. It sends
// them in parts, each like [Batcher.Do]. A command whose error is [ErrTimeout], or the error of
// ctx, must not be used any more.
func (b *Batcher) Each(ctx context.Context, within time.Duration, cmds []redis.Cmder) []error {
	errs := make([]error, len(cmds))
	b.each(ctx, within, cmds, errs)
	return errs
}

func (b *Batcher) each(ctx context.Context, within time.Duration, cmds []redis.Cmder, errs []error) {
	next := make(chan [2]int)
	var all sync.WaitGroup
	for range min(parts, (len(cmds)+partSize-1)/partSize) {
		all.Go(func() {
			for part := range next {
				b.part(ctx, within, cmds[part[0]:part[1]], errs[part[0]:part[1]])
			}
		})
	}
	for from := 0; from < len(cmds); from += partSize {
		next <- [2]int{from, min(from+partSize, len(cmds))}
	}
	close(next)
	all.Wait()
}

// part sends some of the commands of an Each.
func (b *Batcher) part(ctx context.Context, within time.Duration, cmds []redis.Cmder, errs []error) {
	err := b.do(ctx, within, nil, cmds)
	unknown := err != nil && (ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) || NotSent(err))
	for i, cmd := range cmds {
		if unknown { // the commands may still be in flight
			errs[i] = err
		} else {
			errs[i] = cmd.Err()
		}
	}
}

// Each is [Batcher.Each] for commands that may belong to different nodes. Each node has its own
// parts, so a slow one delays only its own commands.
func (l *Link) Each(ctx context.Context, within time.Duration, cmds []redis.Cmder) []error {
	errs := make([]error, len(cmds))
	if l.node != nil {
		err := l.refusal(l.node)
		if err == nil {
			return l.node.Each(ctx, within, cmds)
		}
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	groups := make(map[*Batcher]*group)
	for i, cmd := range cmds {
		b, err := l.of(ctx, within, keyOf(cmd))
		if err != nil {
			errs[i] = err
			continue
		}
		g := groups[b]
		if g == nil {
			g = &group{errs: errs}
			groups[b] = g
		}
		g.cmds, g.at = append(g.cmds, cmd), append(g.at, i)
	}
	var all sync.WaitGroup
	for b, g := range groups {
		all.Go(func() { l.router.each(ctx, within, b, g) })
	}
	all.Wait()
	return errs
}

// A group is the commands of an Each that belong to one node.
type group struct {
	cmds []redis.Cmder
	at   []int   // the index of each command in the Each
	errs []error // of the Each
}

// each sends a group and follows the node's redirections.
func (r *Router) each(ctx context.Context, within time.Duration, b *Batcher, g *group) {
	var moved sync.WaitGroup
	for i, err := range b.Each(ctx, within, g.cmds) {
		failed := &g.errs[g.at[i]]
		*failed = err
		switch to, _ := redirection(err); {
		case err == nil || isAnswer(err) && to == "":
		case to != "":
			moved.Go(func() { *failed = r.follow(ctx, within, b, err, g.cmds[i:i+1]) })
		default:
			r.reload(reloadIll)
		}
	}
	moved.Wait()
}
