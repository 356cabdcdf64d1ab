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

// ErrTimeout says that Redis did not answer in time. It is an [os.ErrDeadlineExceeded],
// and not a [context.DeadlineExceeded]: the caller's own deadline has not passed.
var ErrTimeout = fmt.Errorf("no answer from Redis in time: %w", os.ErrDeadlineExceeded)

// A Conn is what a Batcher needs of a go-redis client.
type Conn interface {
	Process(ctx context.Context, cmd redis.Cmder) error
	Pipeline() redis.Pipeliner
}

// A Batcher sends commands. It is made by [New], and must be closed.
type Batcher struct {
	conn          Conn
	deadlineAware bool // see isDeadlineAware
	once          bool // conn does not retry
	linger        time.Duration
	breaker       *breaker.Breaker
	dial          func(ctx context.Context) error // see dialerOf
	dials         singleflight.Group

	// Requests for use again. It is not one pool for the whole program: a request has a
	// channel, which belongs to the synctest bubble that it was made in.
	free sync.Pool

	mu        sync.Mutex
	queue     []*batch      // in order, none empty; the last one may still be joined
	inFlight  []*batch      // sent and not answered, also those that are stuck
	pipelines int           // of inFlight, those that are not stuck
	stuck     int           // pipelines whose callers have all timed out
	prompt    bool          // the last reply came within promptReply
	replied   time.Duration // when Redis last replied, since epoch
	inTime    time.Duration // when it last replied before its callers' time was over
	closed    error
	idle      chan struct{} // closed when the Batcher is, and pipelines is 0
	spare     chan struct{} // for the next limit: that of the last one, if it was not closed
	alarm     alarm
}

// New returns a Batcher over a client. It calls back when its breaker has closed.
func New(conn Conn, back func()) *Batcher {
	b := &Batcher{
		conn: conn, deadlineAware: isDeadlineAware(conn), once: sendsOnce(conn),
		linger: linger, replied: never, inTime: never, idle: make(chan struct{}),
	}
	b.breaker, b.dial = breaker.New(b.serves, back), dialerOf(conn)
	b.alarm.timer = time.AfterFunc(time.Hour, b.ring)
	b.alarm.timer.Stop()
	return b
}

// Do sends commands in their order, on one connection, and returns their first error. It
// returns ctx's error when ctx ends, and [ErrTimeout] when within has passed since the
// call. In the queue, the time counts from the last reply of Redis at the earliest, so a
// queue times out only while Redis answers no command.
//
// After such an error the commands may still be executed, and must not be used any more;
// [NotSent] says when none was sent. On a closed Batcher Do returns the cause of Close.
func (b *Batcher) Do(ctx context.Context, within time.Duration, cmds ...redis.Cmder) error {
	return b.do(ctx, within, nil, cmds)
}

// Read is Do for one command that reads its first key. Equal reads in the queue are sent
// as one command, and share its reply: its bytes must not be changed. A read in flight is
// not shared with later callers, as its key may have been deleted since.
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
	end, ends := ctx.Deadline() // before the mutex is held: the context is the caller's code
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
			// The pipeline's limit, a moment before the caller's, or the client's ReadTimeout.
			return fmt.Errorf("%w: %v", ErrTimeout, err) //nolint:errorlint // it is not the caller's deadline, see ErrTimeout
		default:
			return err
		}
	}
	return nil
}

// Close fails the queued requests with the cause. It returns when those in flight are
// answered or have timed out. A pipeline that is stuck in go-redis ends with the client's
// ReadTimeout: Close does not wait for it.
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
