// Package batch lets many commands at once share a round trip. One command
// alone goes straight to a connection; those that come while others are on
// their way wait for a free hand and then go together, in one pipeline.
//
// It is also what makes a caller's context and a time limit hold: go-redis
// notices neither a cancellation nor, by default, a deadline while it waits for
// an answer, so the callers wait here, and leave when they must.
//
// It knows nothing of what the commands mean. It is used by internal/protocol.
package batch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	hands   = 4   // requests or pipelines under way at once
	most    = 300 // commands in a pipeline
	overdue = 8   // hands that may be stuck with a Redis that does not answer, beside the others
)

// ErrTimeout says that Redis did not answer in time. It is an
// [os.ErrDeadlineExceeded], and not a [context.DeadlineExceeded]: it was not
// the caller's time that was over.
var ErrTimeout = fmt.Errorf("no answer from Redis in time: %w", os.ErrDeadlineExceeded)

// A Conn is what the batcher needs of a go-redis client.
type Conn interface {
	Process(ctx context.Context, cmd redis.Cmder) error
	Pipeline() redis.Pipeliner
}

// A Batcher sends commands. Its zero value is not ready; see [New].
type Batcher struct {
	conn Conn

	// Requests for use again. Not one pool for the whole program: a request has
	// a channel and a timer, which belong to the synctest bubble they were made in.
	free sync.Pool

	mu    sync.Mutex
	queue []*request // in order; nil where the caller has left
	first uint64     // number of queue[0]
	live  int        // how many of queue are not nil
	busy  int        // hands at work and in time
	stuck int        // hands whose callers have given up on them
}

// A request is one caller's commands.
type request struct {
	cmds   []redis.Cmder
	within time.Duration
	done   chan struct{} // receives once the commands are answered
	timer  *time.Timer

	// Guarded by the batcher's mu.
	number uint64 // its place in the queue
	hand   *hand  // that carries it; nil while it is queued
}

// A hand is one pipeline at work.
type hand struct {
	stuck bool // guarded by the batcher's mu
}

// New returns a batcher over a client.
func New(conn Conn) *Batcher { return &Batcher{conn: conn} }

func (b *Batcher) request() *request {
	if r, ok := b.free.Get().(*request); ok {
		return r
	}
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return &request{done: make(chan struct{}, 1), timer: timer}
}

// Do sends commands, in their order and on one connection, and returns the
// first error among theirs. It returns early with ctx's error when ctx ends,
// and with [ErrTimeout] when within is over; the commands may then still be
// executed, and must not be touched any more.
func (b *Batcher) Do(ctx context.Context, within time.Duration, cmds ...redis.Cmder) error {
	if within <= 0 {
		return ErrTimeout
	}
	r := b.request()
	r.cmds, r.within, r.hand = cmds, within, nil
	r.timer.Reset(within)
	b.enqueue(r)
	select {
	case <-r.done:
		r.timer.Stop()
		r.cmds = nil
		b.free.Put(r)
		return firstError(cmds)
	case <-ctx.Done():
		r.timer.Stop()
		if b.leave(r) {
			// Somebody must notice if Redis does not answer in time.
			time.AfterFunc(within, func() { b.giveUp(r) })
		}
		return ctx.Err()
	case <-r.timer.C:
		if b.leave(r) {
			b.giveUp(r)
		}
		return ErrTimeout
	}
}

func firstError(cmds []redis.Cmder) error {
	for _, cmd := range cmds {
		switch err := cmd.Err(); {
		case err == nil:
		case errors.Is(err, context.DeadlineExceeded):
			// The hand's own time was over, a moment before or after the caller's.
			return fmt.Errorf("%w: %v", ErrTimeout, err) //nolint:errorlint // it is not the caller's deadline, see ErrTimeout
		default:
			return err
		}
	}
	return nil
}

func (b *Batcher) enqueue(r *request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r.number = b.first + uint64(len(b.queue))
	b.queue = append(b.queue, r)
	b.live++
	b.hire()
}

// hire sets another hand to work if there is work and a free hand. The caller
// holds b.mu.
func (b *Batcher) hire() {
	if b.live > 0 && b.busy < hands {
		b.busy++
		go b.work(&hand{}) // ends when the queue is empty
	}
}

// leave takes a request that its caller gave up on out of the queue. It reports
// whether it was too late for that: the request is on its way.
func (b *Batcher) leave(r *request) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.hand != nil {
		return true
	}
	b.queue[r.number-b.first] = nil
	if b.live--; b.live == 0 {
		b.first += uint64(len(b.queue))
		b.queue = nil
	}
	return false
}

// giveUp no longer counts on the hand that carries a request, if that is still
// not answered: it may be stuck for as long as the client's own timeouts and
// retries allow, and nobody else must be stuck behind it once Redis answers
// again.
func (b *Batcher) giveUp(r *request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(r.done) == 0 && !r.hand.stuck && b.stuck < overdue {
		r.hand.stuck = true
		b.stuck++
		b.busy--
		b.hire()
	}
}

// work carries requests until there are none.
func (b *Batcher) work(h *hand) {
	for {
		batch := b.take(h)
		if batch == nil {
			return
		}
		b.send(batch)
		for _, r := range batch {
			r.done <- struct{}{} // never blocks: there is room for one
		}
	}
}

// take returns the next requests to send together, or nil if the hand may rest.
func (b *Batcher) take(h *hand) []*request {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.stuck {
		b.stuck-- // its place was given to another
		return nil
	}
	if b.live == 0 {
		b.busy--
		return nil
	}
	var batch []*request
	n, taken := 0, 0
	for taken < len(b.queue) && n < most {
		if r := b.queue[taken]; r != nil {
			r.hand = h
			batch = append(batch, r)
			n += len(r.cmds)
		}
		taken++
	}
	b.live -= len(batch)
	b.first += uint64(taken)
	b.queue = b.queue[taken:]
	if b.live == 0 {
		b.first += uint64(len(b.queue))
		b.queue = nil
	}
	return batch
}

func (b *Batcher) send(batch []*request) {
	within := batch[0].within
	for _, r := range batch[1:] {
		within = max(within, r.within)
	}
	// The callers' own contexts stay with them: one that leaves must not cut
	// off the connection on which the others wait.
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if len(batch) == 1 && len(batch[0].cmds) == 1 {
		_ = b.conn.Process(ctx, batch[0].cmds[0]) // its error is the command's
		return
	}
	pipeline := b.conn.Pipeline()
	for _, r := range batch {
		for _, cmd := range r.cmds {
			_ = pipeline.Process(ctx, cmd) // only queues it
		}
	}
	_, _ = pipeline.Exec(ctx) // the errors are the commands'
}
