package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

type lockOptions = fetchonce.LockOptions

// newLocker returns the locker of a new process. On a busy machine a real server may take
// longer to answer than the default RedisTimeout.
func newLocker(t *testing.T, r backend, change ...func(*lockOptions)) *fetchonce.Locker {
	t.Helper()
	if !r.Fake() {
		change = append([]func(*lockOptions){patientLocker}, change...)
	}
	return lockerOf(t, r.Client(), change...)
}

// patientLocker has a locker wait longer for an answer than a busy machine takes.
func patientLocker(opt *lockOptions) { opt.RedisTimeout = 10 * time.Second }

func lockerOf(t *testing.T, rdb redis.UniversalClient, change ...func(*lockOptions)) *fetchonce.Locker {
	t.Helper()
	opt := lockOptions{Prefix: "test", Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&opt)
	}
	lk, err := fetchonce.NewLocker(rdb, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lk.Close() })
	return lk
}

func shortLockLease(r backend) func(*lockOptions) {
	return func(opt *lockOptions) { opt.Lease = leaseLength(r) }
}

// A taker is one Acquire under way.
type taker struct {
	t    *testing.T
	r    backend
	done chan struct{}

	// Set before done is closed.
	ctx context.Context
	ls  *fetchonce.Lease
	err error
}

func take(ctx context.Context, t *testing.T, r backend, lk *fetchonce.Locker) *taker {
	t.Helper()
	a := &taker{t: t, r: r, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.ctx, a.ls, a.err = lk.Acquire(ctx, "it")
	}()
	return a
}

// taken takes the lock, at once.
func taken(t *testing.T, r backend, lk *fetchonce.Locker) *taker {
	t.Helper()
	a := take(t.Context(), t, r, lk)
	a.has()
	return a
}

// queued begins to take the lock and waits until the process is in the queue
// in Redis, as the n-th.
func queued(ctx context.Context, t *testing.T, r backend, lk *fetchonce.Locker, n int) *taker {
	t.Helper()
	a := take(ctx, t, r, lk)
	r.Until(fmt.Sprintf("%d processes are in the queue", n), func() bool { return inQueue(t, r) == n })
	r.Settle()
	return a
}

func inQueue(t *testing.T, r backend) int {
	t.Helper()
	n, err := admin(r).ZCard(t.Context(), "test:q:{it}").Result()
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

var (
	adminsMu sync.Mutex
	admins   = map[backend]redis.UniversalClient{}
)

// admin returns a client that is no process of the test's.
func admin(r backend) redis.UniversalClient {
	adminsMu.Lock()
	defer adminsMu.Unlock()
	if admins[r] == nil {
		admins[r] = r.Client()
	}
	return admins[r]
}

// ended waits until the Acquire has returned.
func (a *taker) ended() {
	a.t.Helper()
	select {
	case <-a.done:
	case <-time.After(time.Minute):
		a.t.Fatal("an Acquire never returned")
	}
}

func (a *taker) has() {
	a.t.Helper()
	a.ended()
	if a.err != nil {
		a.t.Fatalf("Acquire = %v, want a lease", a.err)
	}
}

func (a *taker) waits() {
	a.t.Helper()
	a.r.Settle()
	select {
	case <-a.done:
		a.t.Fatalf("Acquire returned (error %v), want it to wait", a.err)
	default:
	}
}

func (a *taker) release(want error) {
	a.t.Helper()
	if err := a.ls.Release(); !errors.Is(err, want) || (want == nil) != (err == nil) {
		a.t.Errorf("Release = %v, want %v", err, want)
	}
}

// lostBy waits until the context of the lease ends, which must be before then.
func (a *taker) lostBy(deadline time.Time, want error) {
	a.t.Helper()
	select {
	case <-a.ctx.Done():
	case <-time.After(time.Until(deadline)):
		if a.ctx.Err() == nil {
			a.t.Fatal("the context of the lease has not ended in time")
		}
	}
	if cause := context.Cause(a.ctx); !errors.Is(cause, want) {
		a.t.Errorf("the context's cause is %v, want %v", cause, want)
	}
}

func TestLockHasOneHolder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := newLocker(t, r), newLocker(t, r)
		first := taken(t, r, a)
		if _, _, err := b.TryAcquire(t.Context(), "it"); err != fetchonce.ErrLocked {
			t.Errorf("TryAcquire of a held lock = %v, want ErrLocked", err)
		}
		if err := a.TryDo(t.Context(), "it", nothing); err != fetchonce.ErrLocked {
			t.Errorf("TryDo in the holder's process = %v, want ErrLocked", err)
		}
		if err := b.TryDo(t.Context(), "another", nothing); err != nil {
			t.Errorf("TryDo of another lock = %v", err)
		}
		second := queued(t.Context(), t, r, b, 1)
		second.waits()
		first.release(nil)
		second.has()
		if second.ls.Fence() <= first.ls.Fence() {
			t.Errorf("the fences are %d and then %d", first.ls.Fence(), second.ls.Fence())
		}
		if second.ctx.Err() != nil || first.ctx.Err() == nil {
			t.Errorf("the contexts' errors are %v and %v", first.ctx.Err(), second.ctx.Err())
		}
		second.release(nil)
		if _, ls, err := a.TryAcquire(t.Context(), "it"); err != nil {
			t.Errorf("TryAcquire of a free lock = %v", err)
		} else if ls.Fence() <= second.ls.Fence() { // in a bubble, no time has passed
			t.Errorf("the fences are %d and then %d", second.ls.Fence(), ls.Fence())
		} else if err := ls.Release(); err != nil {
			t.Error(err)
		}
		r.Settle()
		if n := a.Names() + b.Names(); n > 0 {
			t.Errorf("something is going on under %d names", n)
		}
	})
}

func nothing(context.Context) error { return nil }

func TestTryDoesNotOvertakeTheQueue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b, c := newLocker(t, r), newLocker(t, r), newLocker(t, r)
		first := taken(t, r, a)
		second := queued(t.Context(), t, r, b, 1)
		first.release(nil)
		if err := c.TryDo(t.Context(), "it", nothing); err != fetchonce.ErrLocked {
			t.Errorf("TryDo = %v, want ErrLocked", err)
		}
		second.has()
		second.release(nil)
		if !r.Fake() {
			return
		}
		// Nor when a dead holder's lease has just ended, and the waiter has not noticed yet.
		rdb := r.Client()
		taken(t, r, lockerOf(t, rdb))
		second = queued(t.Context(), t, r, b, 1)
		redistest.WireOf(rdb).Down()
		time.Sleep(5 * time.Second)
		if err := c.TryDo(t.Context(), "it", nothing); err != fetchonce.ErrLocked {
			t.Errorf("TryDo = %v, want ErrLocked", err)
		}
		second.has()
		second.release(nil)
	})
}

func TestUncontendedDoCostsTwoRoundTrips(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		lk := lockerOf(t, rdb)
		if err := lk.Do(t.Context(), "it", nothing); err != nil {
			t.Fatal(err)
		}
		wire := redistest.WireOf(rdb)
		wire.Reset()
		for range 3 {
			if err := lk.Do(t.Context(), "it", nothing); err != nil {
				t.Fatal(err)
			}
		}
		if n := wire.RoundTrips(); n != 6 {
			t.Errorf("3 Do cost %d round trips, want 6: %v", n, wire.Commands())
		}
	})
}

func TestDoReturnsItsFunctionsError(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := newLocker(t, r)
		want := errors.New("mine")
		if err := lk.Do(t.Context(), "it", func(context.Context) error { return want }); err != want {
			t.Errorf("Do = %v, want the function's error as it is", err)
		}
		if err := lk.TryDo(t.Context(), "it", nothing); err != nil {
			t.Errorf("TryDo = %v", err)
		}
	})
}

func TestPanicAndGoexitRelease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := newLocker(t, r), newLocker(t, r)
		for name, fn := range map[string]func(){"panic": func() { panic("mine") }, "Goexit": runtime.Goexit} {
			done := make(chan any)
			go func() {
				defer func() { done <- recover() }()
				_ = a.Do(t.Context(), "it", func(context.Context) error { fn(); return nil })
			}()
			if got := <-done; name == "panic" && got != "mine" {
				t.Errorf("Do panicked with %v", got)
			}
			if err := b.TryDo(t.Context(), "it", nothing); err != nil {
				t.Errorf("after a %s, TryDo = %v", name, err)
			}
		}
	})
}

// Whoever ends a lease in Redis, its holder hears of it by the next renewal.
func TestLostLockEndsItsContext(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, r backend){
		"DEL":      func(t *testing.T, r backend) { admin(r).Del(t.Context(), "test:l:{it}") },
		"FLUSHALL": flushAll,
		"restart":  func(t *testing.T, r backend) { r.Kill(); r.Restart() },
	} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				a, b := newLocker(t, r, shortLockLease(r)), newLocker(t, r, shortLockLease(r))
				var lost *taker
				err := a.Do(t.Context(), "it", func(ctx context.Context) error {
					lost = &taker{t: t, ctx: ctx}
					lose(t, r)
					lost.lostBy(time.Now().Add(leaseLength(r)/3+slack(r)), fetchonce.ErrLockLost)
					return errMine
				})
				if !errors.Is(err, errMine) || !errors.Is(err, fetchonce.ErrLockLost) {
					t.Errorf("Do = %v, want its function's error and ErrLockLost", err)
				}
				r.Until("the locker works again", func() bool {
					return a.Do(t.Context(), "it", nothing) == nil && b.Do(t.Context(), "it", nothing) == nil
				})
			})
		})
	}
}

var errMine = errors.New("mine")

// slack is how late a real machine may be.
func slack(r backend) time.Duration {
	if r.Fake() {
		return 5 * time.Millisecond // Redis counts in whole ones
	}
	return 200 * time.Millisecond
}

func flushAll(t *testing.T, r backend) {
	t.Helper()
	rdb := admin(r)
	flush := func(ctx context.Context, rdb *redis.Client) error { return rdb.FlushAll(ctx).Err() }
	var err error
	if c, ok := rdb.(*redis.ClusterClient); ok {
		err = c.ForEachMaster(t.Context(), flush)
	} else {
		err = flush(t.Context(), rdb.(*redis.Client))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// After a FLUSHALL those who waited still wait, in their order.
func TestFlushAllKeepsTheQueue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		first := taken(t, r, newLocker(t, r))
		var waiting []*taker
		for i := range 3 {
			waiting = append(waiting, queued(t.Context(), t, r, newLocker(t, r), i+1))
		}
		flushAll(t, r)
		r.Until("the others have looked again", func() bool { return inQueue(t, r) == 2 })
		first.lostBy(time.Now().Add(5*time.Second), fetchonce.ErrLockLost)
		first.release(fetchonce.ErrLockLost)
		for len(waiting) > 0 {
			var next *taker
			r.Until("somebody has the lock", func() bool {
				for _, a := range waiting {
					select {
					case <-a.done:
						next = a
						return true
					default:
					}
				}
				return false
			})
			next.has()
			// Whoever looks first after the FLUSHALL has it; the others keep their order.
			waiting = slices.DeleteFunc(waiting, func(a *taker) bool { return a == next })
			for _, a := range waiting {
				a.waits()
			}
			next.release(nil)
		}
	})
}

func TestWaiterMayLeaveALock(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b, c := newLocker(t, r), newLocker(t, r), newLocker(t, r)
		first := taken(t, r, a)
		ctx, cancel := context.WithCancelCause(t.Context())
		second := queued(ctx, t, r, b, 1)
		third := queued(t.Context(), t, r, c, 2)
		left := time.Now()
		cancel(errMine)
		second.ended()
		if !errors.Is(second.err, fetchonce.ErrLocked) || !errors.Is(second.err, errMine) {
			t.Errorf("Acquire = %v, want ErrLocked and the cause of the end of the context", second.err)
		}
		r.Until("it has left the queue", func() bool { return inQueue(t, r) == 1 })
		if took := time.Since(left); took > slack(r) {
			t.Errorf("it took %v to leave the queue", took)
		}
		third.waits()
		first.release(nil)
		third.has()
		third.release(nil)
	})
}

// One of two waiters in a process leaves: the process stays in the queue.
func TestWaiterMayLeaveItsProcess(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := newLocker(t, r), newLocker(t, r)
		first := taken(t, r, a)
		ctx, cancel := context.WithCancel(t.Context())
		second := queued(ctx, t, r, b, 1)
		third := take(t.Context(), t, r, b)
		r.Until("both wait", func() bool { return b.Waiting("it") == 2 })
		cancel()
		second.ended()
		first.release(nil)
		third.has()
		third.release(nil)
	})
}

func TestQueueKeepsItsOrder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		last := taken(t, r, newLocker(t, r))
		var waiting []*taker
		for i := range 5 {
			waiting = append(waiting, queued(t.Context(), t, r, newLocker(t, r), i+1))
		}
		for i, a := range waiting {
			last.release(nil)
			a.has()
			if a.ls.Fence() <= last.ls.Fence() {
				t.Errorf("the fences are %d and then %d", last.ls.Fence(), a.ls.Fence())
			}
			for _, b := range waiting[i+1:] {
				b.waits()
			}
			last = a
		}
		last.release(nil)
	})
}

// The lock of a process that died is the next one's when its lease has ended.
func TestDeadHolderBlocksForItsLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rounds := 1
		if r.Fake() {
			rounds = 10
		}
		for range rounds {
			rdb := r.Client()
			dead := taken(t, r, lockerOf(t, rdb, shortLockLease(r)))
			a := queued(t.Context(), t, r, newLocker(t, r, shortLockLease(r)), 1)
			b := queued(t.Context(), t, r, newLocker(t, r, shortLockLease(r)), 2)
			died := time.Now()
			redistest.WireOf(rdb).Down()
			a.has()
			if took := time.Since(died); took > leaseLength(r)+250*time.Millisecond {
				t.Errorf("the next one has waited %v for a dead holder", took)
			}
			b.waits()
			dead.lostBy(died.Add(leaseLength(r)), fetchonce.ErrLockLost)
			a.release(nil)
			b.has()
			b.release(nil)
		}
	})
}

// Those who died in the queue cost the others less than a second in all.
func TestDeadWaitersArePassedOver(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		first := taken(t, r, newLocker(t, r, shortLockLease(r)))
		var dead []redis.UniversalClient
		for i := range 3 {
			rdb := r.Client()
			queued(t.Context(), t, r, lockerOf(t, rdb, shortLockLease(r)), i+1)
			dead = append(dead, rdb)
		}
		last := queued(t.Context(), t, r, newLocker(t, r, shortLockLease(r)), 4)
		for _, rdb := range dead {
			redistest.WireOf(rdb).Down()
		}
		began := time.Now()
		first.release(nil)
		last.has()
		if took := time.Since(began); took > leaseLength(r)+time.Second {
			t.Errorf("the last has waited %v for three dead", took)
		}
		last.release(nil)
	})
}

// A waiter that hears nothing finds by itself that it was handed the lock.
func TestLostGrantIsFound(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		first := taken(t, r, newLocker(t, r))
		second := queued(t.Context(), t, r, lockerOf(t, rdb), 1)
		if r.Fake() {
			time.Sleep(50 * time.Millisecond) // until it hears
			r.Settle()
		}
		redistest.WireOf(rdb).DropMessages(redistest.All)
		began := time.Now()
		first.release(nil)
		second.has()
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		second.release(nil)
	})
}

// A process is handed the lock, and nobody there wants it any more; its leaving
// has not arrived yet. The next one has it, and stays undisturbed when it does.
func TestGrantToOneThatHasLeft(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		g := newGate(rdb)
		first := taken(t, r, newLocker(t, r))
		ctx, cancel := context.WithCancel(t.Context())
		second := queued(ctx, t, r, lockerOf(t, rdb), 1)
		third := queued(t.Context(), t, r, newLocker(t, r), 2)
		g.shut()
		cancel()
		second.ended()
		<-g.stopped // it leaves, on its way
		first.release(nil)
		third.has()
		g.open()
		r.Settle()
		if third.ctx.Err() != nil {
			t.Error("the context of the new holder has ended")
		}
		third.release(nil)
		r.Until("nothing is left of any of them", func() bool {
			return len(strings.Fields(admin(r).Get(t.Context(), "test:l:{it}").Val())) <= 3 && inQueue(t, r) == 0
		})
	})
}

// A hung process comes back long after its turn was given to another.
func TestLateConfirmationHarmsNobody(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		first := taken(t, r, newLocker(t, r))
		second := queued(t.Context(), t, r, lockerOf(t, rdb, func(opt *lockOptions) { opt.RedisTimeout = 10 * time.Second }), 1)
		third := queued(t.Context(), t, r, newLocker(t, r), 2)
		fourth := queued(t.Context(), t, r, newLocker(t, r), 3)
		redistest.WireOf(rdb).Pause()
		first.release(nil)
		third.has()
		redistest.WireOf(rdb).Resume()
		r.Until("it is in the queue again", func() bool { return inQueue(t, r) == 2 })
		second.waits()
		third.release(nil)
		second.has() // it has lost its turn, but not its place
		fourth.waits()
		if second.ls.Fence() <= third.ls.Fence() {
			t.Error("the fences do not rise")
		}
		second.release(nil)
		fourth.has()
		fourth.release(nil)
	})
}

// Requests whose answers are lost are sent again, and do no more than once.
func TestLostRepliesOfALock(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		wire := redistest.WireOf(rdb)
		a, b := lockerOf(t, rdb), newLocker(t, r)
		if err := a.Do(t.Context(), "it", nothing); err != nil { // so that the scripts are known
			t.Fatal(err)
		}
		wire.LoseReplies(1, "EVALSHA")
		first := taken(t, r, a)
		second := queued(t.Context(), t, r, b, 1)
		wire.LoseReplies(1, "EVALSHA")
		first.release(fetchonce.ErrLockLost) // sent twice, so it may be a loss
		second.has()

		third := queued(t.Context(), t, r, a, 1)
		wire.LoseReplies(1, "EVALSHA") // of the confirmation
		second.release(nil)
		third.has()

		fourth := queued(t.Context(), t, r, b, 1)
		fifth := take(t.Context(), t, r, a) // so that a gives back and asks in one
		r.Until("it waits", func() bool { return a.Waiting("it") == 1 })
		if r.Fake() {
			time.Sleep(20 * time.Millisecond) // beyond the time for turns of its own
		}
		wire.LoseReplies(1, "EVALSHA")
		third.release(fetchonce.ErrLockLost)
		fourth.has()
		fifth.waits()
		fourth.release(nil)
		fifth.has()
		fifth.release(nil)
	})
}

// asking begins to take a lock that nobody holds, and stops the request on its
// way; another goroutine of the process waits behind it.
func asking(ctx context.Context, t *testing.T, r backend) (lk *fetchonce.Locker, g *gate, first, second *taker) {
	t.Helper()
	rdb := r.Client()
	g = newGate(rdb)
	lk = lockerOf(t, rdb, func(opt *lockOptions) { opt.RedisTimeout = 10 * time.Second })
	g.shut()
	first = take(ctx, t, r, lk)
	<-g.stopped
	second = take(t.Context(), t, r, lk)
	r.Until("both wait", func() bool { return lk.Waiting("it") == 2 })
	return lk, g, first, second
}

// Whoever asks for itself may leave while it does, and what it has asked for is
// given back, whenever it arrives.
func TestCallerMayLeaveItsRequest(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		ctx, cancel := context.WithCancelCause(t.Context())
		lk, g, first, second := asking(ctx, t, r)
		cancel(errMine)
		first.ended()
		if !errors.Is(first.err, fetchonce.ErrLocked) || !errors.Is(first.err, errMine) {
			t.Errorf("Acquire = %v, want ErrLocked and the cause of the end of the context", first.err)
		}
		second.waits()
		g.open()
		second.has()
		second.release(nil)
		other := newLocker(t, r)
		r.Until("nothing is left of it", func() bool { return other.TryDo(t.Context(), "it", nothing) == nil })
		r.Until("nothing goes on any more", func() bool { return lk.Names() == 0 })
	})
}

func TestClosedWhileItsRequestIsUnderWay(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk, g, first, second := asking(t.Context(), t, r)
		closed := returns(t, "Close", func() { _ = lk.Close() })
		first.ended()
		second.ended()
		r.Settle()
		if isClosed(closed) {
			t.Error("Close returned before the request was answered")
		}
		g.open()
		<-closed
		if first.err != fetchonce.ErrClosed || second.err != fetchonce.ErrClosed {
			t.Errorf("Acquire = %v and %v, want ErrClosed", first.err, second.err)
		}
		other := newLocker(t, r)
		r.Until("nothing is left of it", func() bool { return other.TryDo(t.Context(), "it", nothing) == nil })
	})
}

func TestErrorOfARequestIsForAllWhoWait(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk, g, first, second := asking(t.Context(), t, r)
		r.Kill()
		g.open()
		first.ended()
		second.ended()
		var ours *fetchonce.Error
		if !errors.As(first.err, &ours) || !errors.As(second.err, &ours) {
			t.Errorf("Acquire = %v and %v, want an *Error for both", first.err, second.err)
		}
		r.Restart()
		r.Until("it works again", func() bool { return lk.Do(t.Context(), "it", nothing) == nil })
	})
}

func TestLockWithoutRedisSaysSo(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := newLocker(t, r, func(opt *lockOptions) { opt.RedisTimeout = 500 * time.Millisecond })
		mustNot := func(context.Context) error { t.Error("it ran without a lock"); return nil }
		var ours *fetchonce.Error
		r.Kill()
		if err := lk.Do(t.Context(), "it", mustNot); !errors.As(err, &ours) || ours.Op != "lock" || ours.Key != "it" {
			t.Errorf("Do = %v, want an *Error", err)
		}
		if err := lk.TryDo(t.Context(), "it", mustNot); !errors.As(err, &ours) || errors.Is(err, fetchonce.ErrLocked) {
			t.Errorf("TryDo = %v, want an *Error", err)
		}
		r.Restart()
		r.Until("it works again", func() bool { return lk.Do(t.Context(), "it", nothing) == nil })
		r.Pause()
		began := time.Now()
		if err := lk.Do(t.Context(), "it", mustNot); !errors.As(err, &ours) {
			t.Errorf("Do = %v, want an *Error", err)
		}
		if took := time.Since(began); took > 500*time.Millisecond+slack(r) {
			t.Errorf("it took %v to say so", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		began = time.Now()
		if err := lk.TryDo(ctx, "it", mustNot); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("TryDo = %v, want the context's error", err)
		}
		if took := time.Since(began); took > 20*time.Millisecond+slack(r) {
			t.Errorf("it took %v to heed the context", took)
		}
		r.Resume()
		r.Until("it works again", func() bool { return lk.Do(t.Context(), "it", nothing) == nil })
	})
}

// A holder whose Redis hangs stops before its lease has ended there.
func TestHolderWithoutRedisStopsInTime(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		first := taken(t, r, lockerOf(t, rdb, shortLockLease(r)))
		second := queued(t.Context(), t, r, newLocker(t, r, shortLockLease(r)), 1)
		redistest.WireOf(rdb).Pause()
		second.has()
		if first.ctx.Err() == nil {
			t.Error("two contexts live at once")
		}
		redistest.WireOf(rdb).Resume()
		first.release(fetchonce.ErrLockLost)
		r.Settle()
		if second.ctx.Err() != nil {
			t.Error("the late release ended another's lease")
		}
		second.release(nil)
	})
}

// The waiters of a process do not wait for a holder there that has lost the
// lock and does not notice.
func TestLostLockIsTakenAgainInItsProcess(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := newLocker(t, r, shortLockLease(r))
		first := taken(t, r, lk)
		second := take(t.Context(), t, r, lk)
		r.Until("it waits", func() bool { return lk.Waiting("it") == 1 })
		flushAll(t, r)
		second.has()
		first.release(fetchonce.ErrLockLost)
		r.Settle()
		if second.ctx.Err() != nil {
			t.Error("the release of a lost lease ended another's")
		}
		second.release(nil)
	})
}

func TestMaxHold(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		hold := leaseLength(r) * 3 / 2
		a := newLocker(t, r, shortLockLease(r), func(opt *lockOptions) { opt.MaxHold = hold })
		b := newLocker(t, r)
		began := time.Now()
		first := taken(t, r, a)
		second := queued(t.Context(), t, r, b, 1)
		first.lostBy(began.Add(hold+slack(r)), fetchonce.ErrMaxHold)
		if time.Since(began) < hold {
			t.Error("the context ended too soon")
		}
		second.waits() // the holder has a while to notice
		second.has()
		if took := time.Since(began); took > hold+leaseLength(r)+slack(r)+lookLater {
			t.Errorf("the next one had it after %v", took)
		}
		first.release(fetchonce.ErrLockLost)
		second.release(nil)
		if err := a.Do(t.Context(), "it", func(ctx context.Context) error { <-ctx.Done(); return nil }); err != nil {
			t.Errorf("a Do that heeded MaxHold = %v", err)
		}
	})
}

const lookLater = 50 * time.Millisecond

// The caller's context ends: the work is to stop, and the lock is there until
// it has.
func TestLeaseIsKeptWhileItsHolderCleansUp(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := newLocker(t, r, shortLockLease(r)), newLocker(t, r)
		ctx, cancel := context.WithCancelCause(t.Context())
		first := take(ctx, t, r, a)
		first.has()
		second := queued(t.Context(), t, r, b, 1)
		cancel(errMine)
		first.lostBy(time.Now().Add(time.Second), errMine)
		time.Sleep(2 * leaseLength(r))
		second.waits()
		first.release(nil)
		second.has()
		second.release(nil)
	})
}

func TestSecondReleaseDoesNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := newLocker(t, r), newLocker(t, r)
		first := taken(t, r, a)
		first.release(nil)
		second := taken(t, r, b)
		first.release(nil)
		r.Settle()
		if err := a.TryDo(t.Context(), "it", nothing); err != fetchonce.ErrLocked {
			t.Errorf("after a second release, TryDo = %v, want ErrLocked", err)
		}
		second.release(nil)
	})
}

func TestReentranceIsRefused(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		lk, other := lockerOf(t, rdb), newLocker(t, r, func(opt *lockOptions) { opt.Prefix = "other" })
		var inner context.Context
		err := lk.Do(t.Context(), "it", func(ctx context.Context) error {
			inner = context.WithoutCancel(ctx)
			redistest.WireOf(rdb).Reset()
			var ours *fetchonce.Error
			for name, do := range map[string]func(context.Context, string, func(context.Context) error) error{"Do": lk.Do, "TryDo": lk.TryDo} {
				if err := do(inner, "it", nothing); !errors.As(err, &ours) || !strings.Contains(err.Error(), "holds the lock already") {
					t.Errorf("%s of the same lock inside Do = %v", name, err)
				}
			}
			if n := redistest.WireOf(rdb).RoundTrips(); n > 0 {
				t.Errorf("that cost %d round trips", n)
			}
			return errors.Join(lk.Do(ctx, "another", nothing), other.Do(ctx, "it", nothing))
		})
		if err != nil {
			t.Error(err)
		}
		if err := lk.Do(inner, "it", nothing); err != nil {
			t.Errorf("Do with the context of a Do that is over = %v", err)
		}
	})
}

func TestSemaphoreHasSoManyHolders(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		slots := func(opt *lockOptions) { opt.Slots = 3 }
		var inside, most, fence, runs atomic.Int64
		var wg sync.WaitGroup
		for range 3 {
			lk := newLocker(t, r, slots)
			for range 4 {
				wg.Go(func() {
					for range 3 {
						err := lk.Do(t.Context(), "it", func(context.Context) error {
							n := inside.Add(1)
							for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
							}
							time.Sleep(time.Millisecond)
							inside.Add(-1)
							runs.Add(1)
							return nil
						})
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		if most.Load() != 3 || runs.Load() != 36 {
			t.Errorf("there were %d holders at once, want 3; %d runs", most.Load(), runs.Load())
		}

		rdb := r.Client()
		a, b := lockerOf(t, rdb, slots, shortLockLease(r)), newLocker(t, r, slots, shortLockLease(r))
		held := []*taker{taken(t, r, a), taken(t, r, b), taken(t, r, b)}
		for _, h := range held {
			if f := h.ls.Fence(); f <= fence.Swap(f) {
				t.Error("the fences do not rise")
			}
		}
		if err := b.TryDo(t.Context(), "it", nothing); err != fetchonce.ErrLocked {
			t.Errorf("TryDo without a free slot = %v, want ErrLocked", err)
		}
		// Each lease has an end of its own.
		last := queued(t.Context(), t, r, b, 1)
		redistest.WireOf(rdb).Down()
		last.has()
		if held[0].ctx.Err() == nil || held[1].ctx.Err() != nil || held[2].ctx.Err() != nil {
			t.Error("another lease than the dead process's was ended")
		}
		for _, h := range []*taker{held[1], held[2], last} {
			h.release(nil)
		}
	})
}

// Inside a process the lock goes from hand to hand without Redis.
func TestTurnsInAProcessCostNoRoundTrips(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		lk := lockerOf(t, rdb)
		if err := lk.Do(t.Context(), "it", nothing); err != nil { // so that the scripts are known
			t.Fatal(err)
		}
		last := taken(t, r, lk)
		var waiting []*taker
		for i := range 4 {
			waiting = append(waiting, take(t.Context(), t, r, lk))
			r.Until("it waits", func() bool { return lk.Waiting("it") == i+1 })
		}
		if r.Fake() {
			time.Sleep(20 * time.Millisecond) // the time for turns of its own is over: the first asks whether others wait
		}
		redistest.WireOf(rdb).Reset()
		for _, a := range waiting {
			last.release(nil)
			a.has()
			if a.ls.Fence() <= last.ls.Fence() {
				t.Errorf("the fences are %d and then %d", last.ls.Fence(), a.ls.Fence())
			}
			last = a
		}
		last.release(nil)
		if n := redistest.WireOf(rdb).RoundTrips(); n != 2 && r.Fake() { // real time may bring more
			t.Errorf("5 turns were ended in %d round trips, want 2: %v", n, redistest.WireOf(rdb).Commands())
		}
	})
}

// A process with many waiters does not keep the lock for long while another
// process waits.
func TestTurnsInAProcessAreBounded(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := newLocker(t, r), newLocker(t, r)
		first := taken(t, r, a)
		var turns, after atomic.Int64
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer wg.Wait()
		defer cancel()
		var other *taker
		for range 40 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_ = a.Do(ctx, "it", func(context.Context) error {
						turns.Add(1)
						time.Sleep(100 * time.Microsecond) // in a bubble time stands still while anybody works
						return nil
					})
				}
			})
		}
		r.Until("they wait", func() bool { return a.Waiting("it") == 40 })
		other = queued(t.Context(), t, r, b, 1)
		first.release(nil)
		other.has()
		after.Store(turns.Load())
		if n := after.Load(); n > 16 {
			t.Errorf("the other process had its turn after %d", n)
		}
		other.release(nil)
		r.Until("the lock goes back and forth", func() bool { return turns.Load() > after.Load()+100 })
	})
}

func TestClosedLocker(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := newLocker(t, r, shortLockLease(r)), newLocker(t, r, shortLockLease(r))
		first := taken(t, r, a)
		waiting := take(t.Context(), t, r, a)
		r.Until("it waits", func() bool { return a.Waiting("it") == 1 })
		next := queued(t.Context(), t, r, b, 1)
		closed := make(chan error)
		go func() { closed <- a.Close() }()
		first.lostBy(time.Now().Add(slack(r)+time.Millisecond), fetchonce.ErrClosed)
		waiting.ended()
		if waiting.err != fetchonce.ErrClosed {
			t.Errorf("the waiter got %v, want ErrClosed", waiting.err)
		}
		next.waits() // the holder has not said yet that it has stopped
		select {
		case err := <-closed:
			t.Error("Close returned before the holder:", err)
		default:
		}
		first.release(nil)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		next.has()
		if err := a.Do(t.Context(), "it", nothing); err != fetchonce.ErrClosed {
			t.Errorf("Do on a closed locker = %v", err)
		}
		if err := a.TryDo(t.Context(), "it", nothing); err != fetchonce.ErrClosed {
			t.Errorf("TryDo on a closed locker = %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}

		// A holder that never gives back what it holds.
		began := time.Now()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > leaseLength(r)+slack(r) {
			t.Errorf("Close took %v", took)
		}
		next.release(fetchonce.ErrLockLost)
	})
}

// What is under a lock's names and not a lock is given an end, and nothing else is done to it.
//
//test:long
func TestForeignDataUnderALocksName(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := admin(r)
		lk := newLocker(t, r, shortLockLease(r))
		rdb.Set(t.Context(), "test:l:{it}", "mine", 0)
		var ours *fetchonce.Error
		if err := lk.Do(t.Context(), "it", nothing); !errors.As(err, &ours) {
			t.Errorf("with foreign data there, Do = %v, want an *Error", err)
		}
		if got := rdb.Get(t.Context(), "test:l:{it}").Val(); got != "mine" {
			t.Errorf("what was there is %q", got)
		}
		if left := rdb.PTTL(t.Context(), "test:l:{it}").Val(); left < 0 || left > leaseLength(r) {
			t.Errorf("it ends in %v", left)
		}
		r.Until("the lock is free again", func() bool { return lk.Do(t.Context(), "it", nothing) == nil })
		for _, key := range []string{"test:q:{it}", "test:w:{it}"} {
			rdb.Set(t.Context(), key, "mine", 0)
			holder := taken(t, r, newLocker(t, r))
			waiter := take(t.Context(), t, r, lk)
			r.Until("the foreign data has an end", func() bool { return rdb.PTTL(t.Context(), key).Val() > 0 })
			if got := rdb.Get(t.Context(), key).Val(); got != "mine" {
				t.Errorf("what was at %s is %q", key, got)
			}
			holder.release(nil)
			waiter.has()
			waiter.release(nil)
			rdb.Del(t.Context(), key)
		}
	})
}

// A stranger writes a lock that ends in a year.
func TestForgedLockBlocksForALease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		state := fmt.Sprintf("lock 1 x.1 1 %d", time.Now().AddDate(1, 0, 0).UnixMilli())
		admin(r).Set(t.Context(), "test:l:{it}", state, 0)
		waiter := take(t.Context(), t, r, newLocker(t, r, shortLockLease(r)))
		waiter.has()
		waiter.release(nil)
	})
}

// Nothing of a lock is in Redis for ever.
//
//test:long
func TestLocksKeysHaveAnEnd(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		dead := r.Client()
		first := taken(t, r, lockerOf(t, rdb, shortLockLease(r)))
		queued(t.Context(), t, r, lockerOf(t, dead, shortLockLease(r)), 1)
		for _, key := range []string{"test:l:{it}", "test:q:{it}", "test:w:{it}"} {
			if ttl := admin(r).PTTL(t.Context(), key).Val(); ttl <= 0 {
				t.Errorf("%s ends in %v", key, ttl)
			}
		}
		redistest.WireOf(rdb).Down()
		redistest.WireOf(dead).Down()
		first.lostBy(time.Now().Add(leaseLength(r)), fetchonce.ErrLockLost)
		r.Until("nothing is left", func() bool { return len(keys(t, r)) == 0 })
	})
}

func TestLockersArgumentsAreChecked(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	for name, opt := range map[string]lockOptions{
		"LockOptions.Prefix is empty":                      {},
		"LockOptions.Lease is 1ms, less than 10ms":         {Prefix: "p", Lease: time.Millisecond},
		"LockOptions.Lease cannot be turned off":           {Prefix: "p", Lease: fetchonce.Off},
		"LockOptions.RedisTimeout cannot be turned off":    {Prefix: "p", RedisTimeout: fetchonce.Off},
		"LockOptions.MaxHold is 1µs, less than 1ms":        {Prefix: "p", MaxHold: time.Microsecond},
		"LockOptions.MaxWait is 1µs, less than 1ms":        {Prefix: "p", MaxWait: time.Microsecond},
		"LockOptions.Slots cannot be turned off":           {Prefix: "p", Slots: fetchonce.Off},
		"LockOptions.Slots is 1001, more than 1000":        {Prefix: "p", Slots: 1001},
		"LockOptions.Lease is 1000000h0m0s, more than 100": {Prefix: "p", Lease: 1000000 * time.Hour},
	} {
		_, err := fetchonce.NewLocker(rdb, opt)
		var ours *fetchonce.Error
		if !errors.As(err, &ours) || !strings.Contains(err.Error(), name) {
			t.Errorf("NewLocker(%+v) = %v, want %q", opt, err, name)
		}
	}
	if _, err := fetchonce.NewLocker(nil, lockOptions{Prefix: "p"}); err == nil {
		t.Error("NewLocker takes a nil client")
	}
	lk, err := fetchonce.NewLocker(rdb, lockOptions{Prefix: "p", MaxHold: fetchonce.Off})
	if err != nil {
		t.Fatal(err)
	}
	defer lk.Close()
	var ours *fetchonce.Error
	if err := lk.Do(t.Context(), "it", nil); !errors.As(err, &ours) || !strings.Contains(err.Error(), "nil") {
		t.Errorf("Do with a nil function = %v", err)
	}
	var none context.Context
	if err := lk.Do(none, "it", nothing); !errors.As(err, &ours) || !strings.Contains(err.Error(), "nil") {
		t.Errorf("Do with a nil context = %v", err)
	}
}
