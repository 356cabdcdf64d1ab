package batch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/singleflight"

	"github.com/fetchonce/fetchonce/internal/breaker"
)

// ErrTimeout reports that Redis did not answer in time. It matches [os.ErrDeadlineExceeded], and
// not [context.DeadlineExceeded]: the deadline of the caller's context has not passed.
var ErrTimeout = fmt.Errorf("no answer from Redis in time: %w", os.ErrDeadlineExceeded)

// A Conn has the methods of a go-redis client that a Batcher calls.
type Conn interface {
	Process(ctx context.Context, cmd redis.Cmder) error
	Pipeline() redis.Pipeliner
}

// A Batcher sends commands to one node. The caller of [New] must close it.
type Batcher struct {
	conn          Conn
	deadlineAware bool // see isDeadlineAware
	once          bool // conn makes one attempt; see sendsOnce
	linger        time.Duration
	breaker       *breaker.Breaker
	dial          func(ctx context.Context) error // see dialerOf
	dials         singleflight.Group

	// free has requests to reuse. Each Batcher has its own pool: a request has a channel, which
	// belongs to the synctest bubble that made it.
	free sync.Pool

	mu        sync.Mutex
	queue     []*batch      // in order, none empty; a request may join the last one
	inFlight  []*batch      // sent and not answered, including the stuck ones
	pipelines int           // how many of inFlight are not stuck
	stuck     int           // how many of inFlight are stuck; see markStuck
	prompt    bool          // the last reply came within promptReply
	replied   time.Duration // when Redis last replied, since epoch
	inTime    time.Duration // when Redis last replied within the time limit of the callers
	closed    error
	idle      chan struct{} // closed when the Batcher is closed and pipelines is 0
	alarm     alarm
}

// New returns a Batcher over a client. It calls recovered each time that its breaker closes.
func New(conn Conn, recovered func()) *Batcher {
	b := &Batcher{
		conn: conn, deadlineAware: isDeadlineAware(conn), once: sendsOnce(conn),
		linger: linger, replied: never, inTime: never, idle: make(chan struct{}),
	}
	b.breaker, b.dial = breaker.New(b.probe, recovered), dialerOf(conn)
	b.alarm.timer = time.AfterFunc(time.Hour, b.onAlarm)
	b.alarm.timer.Stop()
	return b
}

// Do sends commands in their order, on one connection, and returns their first error. It
// returns ctx's error when ctx ends, and [ErrTimeout] when within has passed since the call. For
// a request in the queue, each reply of Redis restarts the time, so it times out only while Redis
// answers no command.
//
// After such an error the commands may still be executed, and must not be used any more;
// [NotSent] reports whether none was sent. After Close, Do returns the cause of Close.
func (b *Batcher) Do(ctx context.Context, within time.Duration, cmds ...redis.Cmder) error {
	return b.do(ctx, within, nil, cmds)
}

// Read is Do for one command that reads its first key. Equal reads in the queue are sent as one
// command and share its reply, so the caller must not change the bytes. A read in flight is not
// shared with later callers: its key may have been deleted since it was sent.
func (b *Batcher) Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error {
	return b.do(ctx, within, cmd, nil)
}

func (b *Batcher) do(ctx context.Context, within time.Duration, read *redis.StringCmd, cmds []redis.Cmder) error {
	if within <= 0 {
		return unsent{ErrTimeout}
	}
	if err := ctx.Err(); err != nil {
		return unsent{err}
	}
	r := b.request()
	if read != nil {
		r.one[0] = read
		cmds = r.one[:]
	}
	r.cmds, r.read, r.until, r.state = cmds, read != nil, now()+within, queued
	end, ends := ctx.Deadline() // not under the mutex: the context is user code
	own, err := b.enqueue(r, within, end, ends)
	if err != nil {
		return err
	}
	if own != nil {
		b.sendInline(own)
		err = orEnd(ctx, b.failure(firstError(cmds)))
	} else {
		select {
		case <-r.done:
		case <-ctx.Done():
			if b.leave(r) {
				return unsent{ctx.Err()}
			}
			return ctx.Err()
		}
		if r.state == refused {
			return r.err
		}
		err = b.failure(firstError(cmds))
	}
	r.cmds, r.one[0], r.batch = nil, nil, nil
	b.free.Put(r)
	return err
}

// firstError returns the first error of some commands.
func firstError(cmds []redis.Cmder) error {
	for _, cmd := range cmds {
		switch err := cmd.Err(); {
		case err == nil:
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
			// The limit of the pipeline, or the ReadTimeout of the client.
			return fmt.Errorf("%w: %v", ErrTimeout, err) //nolint:errorlint // must not match context.DeadlineExceeded, see ErrTimeout
		default:
			return err
		}
	}
	return nil
}

// Close fails the queued requests with the cause, and waits until those in flight are answered or
// have timed out. It does not wait for a stuck pipeline, which ends with the client's ReadTimeout.
func (b *Batcher) Close(cause error) {
	b.mu.Lock()
	if b.closed != nil {
		b.mu.Unlock()
		return
	}
	b.closed = cause
	b.breaker.Stop()
	for _, f := range b.queue {
		for _, r := range f.requests {
			if r != nil {
				r.refuse(unsent{cause})
			}
		}
	}
	b.queue = nil
	b.checkIdle()
	b.mu.Unlock()
	<-b.idle
	b.alarm.timer.Stop()
}

// checkIdle lets Close return if nothing is in flight. The caller holds b.mu.
func (b *Batcher) checkIdle() {
	if b.pipelines == 0 && b.closed != nil {
		close(b.idle)
	}
}
