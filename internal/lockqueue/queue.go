package lockqueue

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// The errors of a Queue. Errors of Redis are returned unchanged.
var (
	ErrBusy   = errors.New("the lock is held, or others wait for it")
	ErrEnded  = errors.New("the context has ended")
	ErrClosed = errors.New("the queue is closed")
	ErrLost   = errors.New("the lock was lost")
)

// A Config has the settings of a Queue and the objects that it uses.
type Config struct {
	Redis        *protocol.Client
	Names        *protocol.Namespace
	Mailbox      *wake.Mailbox
	Lease        time.Duration // how long a grant lasts without a renewal
	Slots        int           // how many callers may hold a lock at once
	RedisTimeout time.Duration // of one request
}

// A Queue has the local queues of all locks of one Locker. The caller must close it.
type Queue struct {
	Config
	channel     string // of the notifications for this process
	unsubscribe func()
	leftovers   cleanup.List

	ctx  context.Context // ends with Close; it is not the context of requests
	stop context.CancelFunc

	mu      sync.Mutex
	closed  bool
	states  map[string]*lockState
	pending int           // how many grants and goroutines of start exist: Close waits for them
	idle    chan struct{} // closed when the queue is closed and pending is 0
}

// New returns a Queue. It sends nothing before the first Acquire.
func New(c Config) *Queue {
	q := &Queue{Config: c, channel: c.Names.Channel(c.Mailbox.Process()), states: make(map[string]*lockState), idle: make(chan struct{})}
	q.leftovers.IsFinal = protocol.IsFinal
	q.unsubscribe = c.Mailbox.Use(q.channel)
	q.ctx, q.stop = context.WithCancel(context.Background())
	return q
}

// Acquire waits for a lock. It returns ErrEnded if ctx ends first, ErrBusy if limit is closed
// first, ErrClosed after Close, or an error of Redis. A nil limit is never closed.
func (q *Queue) Acquire(ctx context.Context, name string, limit <-chan struct{}) (*Hold, error) {
	w, err := q.join(ctx, name)
	if err != nil {
		return nil, err
	}
	return w.await(ctx, limit)
}

// TryAcquire is Acquire without the wait: it returns ErrBusy if the lock is held, or if other
// callers wait for it.
func (q *Queue) TryAcquire(ctx context.Context, name string) (*Hold, error) {
	w, err := q.startTry(ctx, name)
	if err != nil {
		return nil, err
	}
	return w.await(ctx, nil)
}

// Close fails the waiters with ErrClosed and ends the holds with the cause. It waits until all
// holds are released or lost, and all requests are answered. Then, for at most RedisTimeout, it
// removes the owners that failed requests may have left in Redis.
func (q *Queue) Close(cause error) {
	for _, end := range q.shut() {
		end(cause)
	}
	q.stop()
	<-q.idle
	q.leftovers.Close(q.RedisTimeout)
	q.unsubscribe()
}

// Waiting returns how many callers wait in the local queue of a name.
func (q *Queue) Waiting(name string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := q.states[name]; s != nil {
		return s.waiters.Len()
	}
	return 0
}

// Len returns how many names callers hold or wait for.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.states)
}

// Leftovers returns how many owners the queue still has to remove from locks in the background.
func (q *Queue) Leftovers() int { return q.leftovers.Len() }

// shut makes later callers fail, fails the waiters, and returns the functions that end the holds.
func (q *Queue) shut() []func(error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	var ends []func(error)
	for _, s := range q.states {
		s.fail(ErrClosed)
		for _, g := range s.grants {
			if g.end != nil { // else its hold has not begun, and Begin fails
				ends = append(ends, g.end)
			}
		}
	}
	q.checkIdle()
	return ends
}

// start runs f on a goroutine that Close waits for. The caller holds q.mu.
func (q *Queue) start(f func()) {
	q.pending++
	go func() {
		defer q.pendingDone()
		f()
	}()
}

// pendingDone undoes one increment of pending.
func (q *Queue) pendingDone() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pending--
	q.checkIdle()
}

func (q *Queue) checkIdle() {
	if !q.closed || q.pending > 0 {
		return
	}
	select {
	case <-q.idle: // it is closed already; a lost lock was released after Close
	default:
		close(q.idle)
	}
}
