package lockqueue_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/contexttest"
	"github.com/fetchonce/fetchonce/internal/lockqueue"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/wake"
)

const (
	length  = 5 * time.Second
	timeout = 500 * time.Millisecond
)

var errDone = errors.New("the locker is closed")

// inBubble runs a test on a fake clock, with a Redis in memory.
func inBubble(t *testing.T, f func(t *testing.T, r redistest.Redis)) {
	synctest.Test(t, func(t *testing.T) { f(t, redistest.Bubble(t)) })
}

// newQueue returns the queue of one process, and its client.
func newQueue(t *testing.T, r redistest.Redis, slots int) (*lockqueue.Queue, redis.UniversalClient) {
	t.Helper()
	rdb := r.Client()
	names, mailbox, router := protocol.NewNamespace("test", ""), wake.New(rdb), batch.NewRouter(rdb)
	q := lockqueue.New(lockqueue.Config{
		Redis: protocol.NewClient(router.Link(0, 0), names, mailbox.Process(), timeout, false),
		Names: names, Mailbox: mailbox,
		Lease: length, Slots: slots, RedisTimeout: timeout,
	})
	t.Cleanup(func() {
		q.Close(errDone)
		router.Close(errDone)
		mailbox.Close()
	})
	return q, rdb
}

// newQueues returns the queues of two processes.
func newQueues(t *testing.T, r redistest.Redis, slots int) (here, there *lockqueue.Queue) {
	t.Helper()
	here, _ = newQueue(t, r, slots)
	there, _ = newQueue(t, r, slots)
	return here, there
}

// A caller is a goroutine that acquires the lock "it".
type caller struct {
	t    *testing.T
	hold *lockqueue.Hold
	err  error
	done chan struct{}
}

func acquire(t *testing.T, ctx context.Context, q *lockqueue.Queue) *caller {
	t.Helper()
	c := &caller{t: t, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.hold, c.err = q.Acquire(ctx, "it", nil)
	}()
	synctest.Wait()
	return c
}

// has waits until the caller has the lock.
func (c *caller) has() *lockqueue.Hold {
	c.t.Helper()
	<-c.done
	if c.err != nil {
		c.t.Fatal(c.err)
	}
	return c.hold
}

func (c *caller) waits() bool {
	synctest.Wait()
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

func release(t *testing.T, h *lockqueue.Hold) {
	t.Helper()
	if err := h.Release(true); err != nil {
		t.Error(err)
	}
}

func TestLocalHandoffSendsNoCommand(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		q, rdb := newQueue(t, r, 1)
		first := acquire(t, t.Context(), q).has()
		second := acquire(t, t.Context(), q)
		release(t, first)
		h := second.has() // the grant is for the callers that waited when it came: this one alone
		third, fourth := acquire(t, t.Context(), q), acquire(t, t.Context(), q)
		release(t, h)
		h = third.has()
		redistest.WireOf(rdb).Reset()
		release(t, h)
		next := fourth.has()
		if sent := redistest.WireOf(rdb).Commands(); len(sent) > 0 {
			t.Errorf("a local hand-off sent %v", sent)
		}
		if !next.Local() || next.Fence() <= h.Fence() {
			t.Errorf("local %v, fence %d after %d; want a local hand-off with a higher fence", next.Local(), next.Fence(), h.Fence())
		}
		release(t, next)
	})
}

// A local hand-off is for callers that waited when the grant came.
func TestLaterCallerDoesNotPassAnotherProcess(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		here, there := newQueues(t, r, 1)
		first := acquire(t, t.Context(), here).has()
		other := acquire(t, t.Context(), there)
		mine := acquire(t, t.Context(), here)
		release(t, first)
		h := other.has()
		if !mine.waits() {
			t.Error("a local caller has the lock, though another process waited longer")
		}
		release(t, h)
		release(t, mine.has())
	})
}

// After maxLocal the lock goes to the other process, though local callers waited longer.
func TestLongHoldsAlternateBetweenProcesses(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		here, there := newQueues(t, r, 1)
		first := acquire(t, t.Context(), there).has()
		second, third := acquire(t, t.Context(), here), acquire(t, t.Context(), here)
		release(t, first)
		h := second.has()
		other := acquire(t, t.Context(), there)
		time.Sleep(time.Second)
		release(t, h)
		h = other.has()
		if !third.waits() {
			t.Error("a local caller has the lock after a hold of a second")
		}
		release(t, h)
		release(t, third.has())
	})
}

// A grant of a semaphore serves one hold, so that fences rise over all slots.
func TestSemaphoreHasNoLocalHandoff(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		here, there := newQueues(t, r, 2)
		first, second := acquire(t, t.Context(), there).has(), acquire(t, t.Context(), there).has()
		third, fourth := acquire(t, t.Context(), here), acquire(t, t.Context(), here)
		if !third.waits() || !fourth.waits() {
			t.Fatal("three callers hold a semaphore of two slots")
		}
		release(t, first)
		h := third.has()
		release(t, h)
		next := fourth.has()
		if next.Local() || next.Fence() <= h.Fence() {
			t.Errorf("local %v, fence %d after %d", next.Local(), next.Fence(), h.Fence())
		}
		release(t, next)
		release(t, second)
	})
}

func TestTryAcquireDoesNotPassAWaiter(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		here, there := newQueues(t, r, 1)
		h := acquire(t, t.Context(), here).has()
		waiting := acquire(t, t.Context(), there)
		for _, q := range []*lockqueue.Queue{here, there} {
			if _, err := q.TryAcquire(t.Context(), "it"); !errors.Is(err, lockqueue.ErrBusy) {
				t.Errorf("TryAcquire = %v, want ErrBusy", err)
			}
		}
		release(t, h)
		release(t, waiting.has())
	})
}

// A caller leaves at the moment at which it receives the lock.
func TestLockOfAnEndedCallerGoesToTheNextWaiter(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		q, _ := newQueue(t, r, 1)
		h := acquire(t, t.Context(), q).has()
		ctx, cancel := context.WithCancel(t.Context())
		gone, next := acquire(t, ctx, q), acquire(t, t.Context(), q)
		cancel()
		release(t, h)
		if <-gone.done; !errors.Is(gone.err, lockqueue.ErrEnded) {
			t.Errorf("Acquire = %v, want ErrEnded", gone.err)
		}
		release(t, next.has())
		synctest.Wait()
		if n := q.Len(); n > 0 {
			t.Errorf("the queue keeps %d names without callers", n)
		}
	})
}

// The holder has not noticed yet that its lock is lost.
func TestLostHoldFreesTheLocalQueue(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		q, rdb := newQueue(t, r, 1)
		h := acquire(t, t.Context(), q).has()
		next := acquire(t, t.Context(), q)
		if err := rdb.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		h.Lost()
		release(t, next.has())
		if err := h.Release(false); !errors.Is(err, lockqueue.ErrLost) {
			t.Errorf("Release = %v, want ErrLost", err)
		}
	})
}

// Close ends the holds and fails the waiters, and waits for the holders to release.
func TestCloseWaitsForTheHolders(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		q, _ := newQueue(t, r, 1)
		h := acquire(t, t.Context(), q).has()
		var cause error
		if err := h.Begin(func(err error) { cause = err }); err != nil {
			t.Fatal(err)
		}
		waiting := acquire(t, t.Context(), q)
		closed := make(chan struct{})
		go func() { defer close(closed); q.Close(errDone) }()
		if <-waiting.done; !errors.Is(waiting.err, lockqueue.ErrClosed) {
			t.Errorf("Acquire = %v, want ErrClosed", waiting.err)
		}
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close did not wait for the holder")
		default:
		}
		if !errors.Is(cause, errDone) {
			t.Errorf("the hold ended with %v", cause)
		}
		release(t, h)
		<-closed
		if _, err := q.Acquire(t.Context(), "it", nil); !errors.Is(err, lockqueue.ErrClosed) {
			t.Errorf("Acquire = %v after Close, want ErrClosed", err)
		}
	})
}

// Redis does not answer a request. When it answers again, the owner is removed from the lock, so the
// next caller does not wait for a lease.
func TestOwnerOfAnUnansweredRequestIsRemoved(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		q, rdb := newQueue(t, r, 1)
		release(t, acquire(t, t.Context(), q).has())
		redistest.WireOf(rdb).LoseReplies(100, "EVALSHA")
		lost := acquire(t, t.Context(), q)
		if <-lost.done; lost.err == nil {
			t.Fatal("a request without an answer received the lock")
		}
		redistest.WireOf(rdb).Heal()
		began := time.Now()
		release(t, acquire(t, t.Context(), q).has())
		if took := time.Since(began); took >= length {
			t.Errorf("the next caller waited %v, a whole lease", took)
		}
	})
}

// A hold is lost by the holder's clock, its lease is still in Redis, and Redis refuses the release.
// When Redis takes writes again, the owner is removed from the lock.
func TestOwnerOfALostHoldIsRemovedAfterAFailedRelease(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		q, rdb := newQueue(t, r, 1)
		h := acquire(t, t.Context(), q).has()
		redistest.WireOf(rdb).Fail(100, "READONLY You can't write against a read only replica.", "EVALSHA")
		h.Lost()
		if err := h.Release(false); !errors.Is(err, lockqueue.ErrLost) {
			t.Errorf("Release = %v, want ErrLost", err)
		}
		redistest.WireOf(rdb).Heal()
		began := time.Now()
		release(t, acquire(t, t.Context(), q).has())
		if took := time.Since(began); took >= length/2 {
			t.Errorf("the next caller waited %v for the lease of the lost hold", took)
		}
	})
}

// The context of a caller may call the queue, so the queue calls none of its methods under the mutex.
func TestContextMayCallTheQueue(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis) {
		q, _ := newQueue(t, r, 1)
		var calls, held atomic.Int32
		inner, cancel := context.WithCancel(t.Context())
		ctx := &contexttest.Context{Context: inner, Called: func() {
			calls.Add(1)
			if !q.IsFree() {
				held.Add(1)
			}
		}}
		first := acquire(t, ctx, q)
		second := acquire(t, ctx, q)
		_, _ = q.TryAcquire(ctx, "it")
		release(t, first.has())
		h := second.has()
		third := acquire(t, ctx, q)
		cancel()
		<-third.done
		release(t, h)
		if calls.Load() == 0 || held.Load() > 0 {
			t.Errorf("%d of %d calls of the context's methods were made under the mutex", held.Load(), calls.Load())
		}
	})
}
