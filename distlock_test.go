package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/fetchonce/fetchonce/internal/testkit"
)

func TestLockHasOneHolder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := testkit.NewLocker(t, r), testkit.NewLocker(t, r)
		first := testkit.Taken(t, r, a)
		if _, _, err := b.TryAcquire(t.Context(), "it"); err != fetchonce.ErrLocked {
			t.Errorf("TryAcquire of a held lock = %v, want ErrLocked", err)
		}
		if err := a.TryDo(t.Context(), "it", testkit.Nothing); err != fetchonce.ErrLocked {
			t.Errorf("TryDo in the holder's process = %v, want ErrLocked", err)
		}
		if err := b.TryDo(t.Context(), "another", testkit.Nothing); err != nil {
			t.Errorf("TryDo of another lock = %v", err)
		}
		second := testkit.Queued(t.Context(), t, r, b, 1)
		second.Waits()
		first.Release(nil)
		second.Has()
		if second.Ls.Fence() <= first.Ls.Fence() {
			t.Errorf("the fences are %d and then %d", first.Ls.Fence(), second.Ls.Fence())
		}
		if second.Ctx.Err() != nil || first.Ctx.Err() == nil {
			t.Errorf("the contexts' errors are %v and %v", first.Ctx.Err(), second.Ctx.Err())
		}
		second.Release(nil)
		if _, ls, err := a.TryAcquire(t.Context(), "it"); err != nil {
			t.Errorf("TryAcquire of a free lock = %v", err)
		} else if ls.Fence() <= second.Ls.Fence() { // in a bubble, no time has passed
			t.Errorf("the fences are %d and then %d", second.Ls.Fence(), ls.Fence())
		} else if err := ls.Release(); err != nil {
			t.Error(err)
		}
		r.Settle()
		if n := a.Names() + b.Names(); n > 0 {
			t.Errorf("%d names are still in use", n)
		}
	})
}

func TestTryAcquireDoesNotPassTheQueue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b, c := testkit.NewLocker(t, r), testkit.NewLocker(t, r), testkit.NewLocker(t, r)
		first := testkit.Taken(t, r, a)
		second := testkit.Queued(t.Context(), t, r, b, 1)
		first.Release(nil)
		if err := c.TryDo(t.Context(), "it", testkit.Nothing); err != fetchonce.ErrLocked {
			t.Errorf("TryDo = %v, want ErrLocked", err)
		}
		second.Has()
		second.Release(nil)
		if !r.Fake() {
			return
		}
		// Nor when a dead holder's lease has just ended, and the waiter has not noticed yet.
		rdb := r.Client()
		testkit.Taken(t, r, testkit.LockerOf(t, rdb))
		second = testkit.Queued(t.Context(), t, r, b, 1)
		redistest.WireOf(rdb).Down()
		time.Sleep(5 * time.Second)
		if err := c.TryDo(t.Context(), "it", testkit.Nothing); err != fetchonce.ErrLocked {
			t.Errorf("TryDo = %v, want ErrLocked", err)
		}
		second.Has()
		second.Release(nil)
	})
}

func TestUncontendedDoCostsTwoRoundTrips(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		lk := testkit.LockerOf(t, rdb)
		if err := lk.Do(t.Context(), "it", testkit.Nothing); err != nil {
			t.Fatal(err)
		}
		wire := redistest.WireOf(rdb)
		wire.Reset()
		for range 3 {
			if err := lk.Do(t.Context(), "it", testkit.Nothing); err != nil {
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
		lk := testkit.NewLocker(t, r)
		want := errors.New("mine")
		if err := lk.Do(t.Context(), "it", func(context.Context) error { return want }); err != want {
			t.Errorf("Do = %v, want the function's error unchanged", err)
		}
		if err := lk.TryDo(t.Context(), "it", testkit.Nothing); err != nil {
			t.Errorf("TryDo = %v", err)
		}
	})
}

func TestPanicAndGoexitReleaseTheLock(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := testkit.NewLocker(t, r), testkit.NewLocker(t, r)
		for name, fn := range map[string]func(){"panic": func() { panic("mine") }, "Goexit": runtime.Goexit} {
			done := make(chan any)
			go func() {
				defer func() { done <- recover() }()
				_ = a.Do(t.Context(), "it", func(context.Context) error { fn(); return nil })
			}()
			if got := <-done; name == "panic" && got != "mine" {
				t.Errorf("Do panicked with %v", got)
			}
			if err := b.TryDo(t.Context(), "it", testkit.Nothing); err != nil {
				t.Errorf("after a %s, TryDo = %v", name, err)
			}
		}
	})
}

// A holder notices at its next renewal that its lease has ended in Redis.
func TestLostLockEndsItsContext(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, r backend){
		"DEL":      func(t *testing.T, r backend) { testkit.Admin(r).Del(t.Context(), "test:l:{it}") },
		"FLUSHALL": flushAll,
		"restart":  func(t *testing.T, r backend) { r.Kill(); r.Restart() },
	} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				a, b := testkit.NewLocker(t, r, testkit.ShortLockLease(r)), testkit.NewLocker(t, r, testkit.ShortLockLease(r))
				var lost *testkit.Taker
				err := a.Do(t.Context(), "it", func(ctx context.Context) error {
					lost = &testkit.Taker{T: t, Ctx: ctx}
					lose(t, r)
					lost.LostBy(time.Now().Add(testkit.LeaseLength(r)/3+slack(r)), fetchonce.ErrLockLost)
					return errMine
				})
				if !errors.Is(err, errMine) || !errors.Is(err, fetchonce.ErrLockLost) {
					t.Errorf("Do = %v, want its function's error and ErrLockLost", err)
				}
				r.Until("the locker works again", func() bool {
					return a.Do(t.Context(), "it", testkit.Nothing) == nil && b.Do(t.Context(), "it", testkit.Nothing) == nil
				})
			})
		})
	}
}

var errMine = errors.New("mine")

// slack is how late a deadline may be noticed on a real machine.
func slack(r backend) time.Duration {
	if r.Fake() {
		return 5 * time.Millisecond // Redis counts in whole milliseconds
	}
	return 200 * time.Millisecond
}

func flushAll(t *testing.T, r backend) {
	t.Helper()
	if err := testkit.FlushAll(t.Context(), testkit.Admin(r)); err != nil {
		t.Fatal(err)
	}
}

// After a FLUSHALL the waiters still wait, in their order.
func TestQueueKeepsItsOrderAfterAFlushAll(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		first := testkit.Taken(t, r, testkit.NewLocker(t, r))
		var waiting []*testkit.Taker
		for i := range 3 {
			waiting = append(waiting, testkit.Queued(t.Context(), t, r, testkit.NewLocker(t, r), i+1))
		}
		flushAll(t, r)
		r.Until("the others have polled again", func() bool { return testkit.InQueue(t, r) == 2 })
		first.LostBy(time.Now().Add(5*time.Second), fetchonce.ErrLockLost)
		first.Release(fetchonce.ErrLockLost)
		for len(waiting) > 0 {
			var next *testkit.Taker
			r.Until("one of them has the lock", func() bool {
				for _, a := range waiting {
					select {
					case <-a.Done:
						next = a
						return true
					default:
					}
				}
				return false
			})
			next.Has()
			// The first to poll after the FLUSHALL has the lock; the others keep their order.
			waiting = slices.DeleteFunc(waiting, func(a *testkit.Taker) bool { return a == next })
			for _, a := range waiting {
				a.Waits()
			}
			next.Release(nil)
		}
	})
}

func TestWaiterThatLeavesDoesNotBlockTheQueue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b, c := testkit.NewLocker(t, r), testkit.NewLocker(t, r), testkit.NewLocker(t, r)
		first := testkit.Taken(t, r, a)
		ctx, cancel := context.WithCancelCause(t.Context())
		second := testkit.Queued(ctx, t, r, b, 1)
		third := testkit.Queued(t.Context(), t, r, c, 2)
		left := time.Now()
		cancel(errMine)
		second.Ended()
		if !errors.Is(second.Err, fetchonce.ErrLocked) || !errors.Is(second.Err, errMine) {
			t.Errorf("Acquire = %v, want ErrLocked and the cause of the end of the context", second.Err)
		}
		r.Until("it has left the queue", func() bool { return testkit.InQueue(t, r) == 1 })
		if took := time.Since(left); took > slack(r) {
			t.Errorf("it took %v to leave the queue", took)
		}
		third.Waits()
		first.Release(nil)
		third.Has()
		third.Release(nil)
	})
}

// One of two waiters in a process leaves: the process stays in the queue.
func TestProcessStaysInTheQueueWhenOneOfItsWaitersLeaves(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := testkit.NewLocker(t, r), testkit.NewLocker(t, r)
		first := testkit.Taken(t, r, a)
		ctx, cancel := context.WithCancel(t.Context())
		second := testkit.Queued(ctx, t, r, b, 1)
		third := testkit.Take(t.Context(), t, r, b)
		r.Until("both wait", func() bool { return b.Waiting("it") == 2 })
		cancel()
		second.Ended()
		first.Release(nil)
		third.Has()
		third.Release(nil)
	})
}

func TestQueueKeepsItsOrder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		last := testkit.Taken(t, r, testkit.NewLocker(t, r))
		var waiting []*testkit.Taker
		for i := range 5 {
			waiting = append(waiting, testkit.Queued(t.Context(), t, r, testkit.NewLocker(t, r), i+1))
		}
		for i, a := range waiting {
			last.Release(nil)
			a.Has()
			if a.Ls.Fence() <= last.Ls.Fence() {
				t.Errorf("the fences are %d and then %d", last.Ls.Fence(), a.Ls.Fence())
			}
			for _, b := range waiting[i+1:] {
				b.Waits()
			}
			last = a
		}
		last.Release(nil)
	})
}

// A process dies while it holds the lock. The next in the queue has it when the lease ends.
func TestDeadHolderBlocksForItsLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rounds := 1
		if r.Fake() {
			rounds = 10
		}
		for range rounds {
			rdb := r.Client()
			dead := testkit.Taken(t, r, testkit.LockerOf(t, rdb, testkit.ShortLockLease(r)))
			a := testkit.Queued(t.Context(), t, r, testkit.NewLocker(t, r, testkit.ShortLockLease(r)), 1)
			b := testkit.Queued(t.Context(), t, r, testkit.NewLocker(t, r, testkit.ShortLockLease(r)), 2)
			died := time.Now()
			redistest.WireOf(rdb).Down()
			a.Has()
			if took := time.Since(died); took > testkit.LeaseLength(r)+250*time.Millisecond {
				t.Errorf("the next in the queue waited %v for a dead holder", took)
			}
			b.Waits()
			dead.LostBy(died.Add(testkit.LeaseLength(r)), fetchonce.ErrLockLost)
			a.Release(nil)
			b.Has()
			b.Release(nil)
		}
	})
}

// Three dead waiters delay the next one by less than a second together.
func TestDeadWaitersAreSkipped(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		first := testkit.Taken(t, r, testkit.NewLocker(t, r, testkit.ShortLockLease(r)))
		var dead []redis.UniversalClient
		for i := range 3 {
			rdb := r.Client()
			testkit.Queued(t.Context(), t, r, testkit.LockerOf(t, rdb, testkit.ShortLockLease(r)), i+1)
			dead = append(dead, rdb)
		}
		last := testkit.Queued(t.Context(), t, r, testkit.NewLocker(t, r, testkit.ShortLockLease(r)), 4)
		for _, rdb := range dead {
			redistest.WireOf(rdb).Down()
		}
		began := time.Now()
		first.Release(nil)
		last.Has()
		if took := time.Since(began); took > testkit.LeaseLength(r)+time.Second {
			t.Errorf("the last waited %v for three dead waiters", took)
		}
		last.Release(nil)
	})
}

// A waiter that receives no notification finds by polling that it was granted the lock.
func TestRecheckTimerCoversALostGrant(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		first := testkit.Taken(t, r, testkit.NewLocker(t, r))
		second := testkit.Queued(t.Context(), t, r, testkit.LockerOf(t, rdb), 1)
		if r.Fake() {
			time.Sleep(50 * time.Millisecond) // until it is subscribed
			r.Settle()
		}
		redistest.WireOf(rdb).DropMessages(redistest.All)
		began := time.Now()
		first.Release(nil)
		second.Has()
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		second.Release(nil)
	})
}

// The lock is granted to a process whose only waiter has left, before the request that withdraws
// it arrives in Redis. The process hands the lock off. The late request does not harm the next
// holder.
func TestGrantToAProcessThatLeftIsPassedOn(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		g := testkit.NewGate(rdb)
		first := testkit.Taken(t, r, testkit.NewLocker(t, r))
		ctx, cancel := context.WithCancel(t.Context())
		second := testkit.Queued(ctx, t, r, testkit.LockerOf(t, rdb), 1)
		third := testkit.Queued(t.Context(), t, r, testkit.NewLocker(t, r), 2)
		g.Shut()
		cancel()
		second.Ended()
		<-g.Stopped // the request that withdraws it
		first.Release(nil)
		third.Has()
		g.Open()
		r.Settle()
		if third.Ctx.Err() != nil {
			t.Error("the context of the new holder has ended")
		}
		third.Release(nil)
		r.Until("neither holder nor waiter is left", func() bool {
			return len(strings.Fields(testkit.Admin(r).Get(t.Context(), "test:l:{it}").Val())) <= 3 && testkit.InQueue(t, r) == 0
		})
	})
}

// A process hangs, and the lock is granted to another. Then the first confirms its own grant.
func TestLateConfirmationDoesNotTakeTheLock(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		first := testkit.Taken(t, r, testkit.NewLocker(t, r))
		second := testkit.Queued(t.Context(), t, r, testkit.LockerOf(t, rdb, func(opt *lockOptions) { opt.RedisTimeout = 10 * time.Second }), 1)
		third := testkit.Queued(t.Context(), t, r, testkit.NewLocker(t, r), 2)
		fourth := testkit.Queued(t.Context(), t, r, testkit.NewLocker(t, r), 3)
		redistest.WireOf(rdb).Pause()
		first.Release(nil)
		third.Has()
		redistest.WireOf(rdb).Resume()
		r.Until("it is in the queue again", func() bool { return testkit.InQueue(t, r) == 2 })
		second.Waits()
		third.Release(nil)
		second.Has() // it lost the grant, and kept its place in the queue
		fourth.Waits()
		if second.Ls.Fence() <= third.Ls.Fence() {
			t.Error("the fences do not rise")
		}
		second.Release(nil)
		fourth.Has()
		fourth.Release(nil)
	})
}

// A request whose reply is lost is sent again and takes effect once.
func TestLocksSurviveLostReplies(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		wire := redistest.WireOf(rdb)
		a, b := testkit.LockerOf(t, rdb), testkit.NewLocker(t, r)
		if err := a.Do(t.Context(), "it", testkit.Nothing); err != nil { // so that Redis has the scripts
			t.Fatal(err)
		}
		wire.LoseReplies(1, "EVALSHA")
		first := testkit.Taken(t, r, a)
		second := testkit.Queued(t.Context(), t, r, b, 1)
		wire.LoseReplies(1, "EVALSHA")
		first.Release(fetchonce.ErrLockLost) // sent twice: the second cannot tell a release from a loss
		second.Has()

		third := testkit.Queued(t.Context(), t, r, a, 1)
		wire.LoseReplies(1, "EVALSHA") // of the confirmation
		second.Release(nil)
		third.Has()

		fourth := testkit.Queued(t.Context(), t, r, b, 1)
		fifth := testkit.Take(t.Context(), t, r, a) // so that one request of a releases and queues
		r.Until("it waits", func() bool { return a.Waiting("it") == 1 })
		if r.Fake() {
			time.Sleep(20 * time.Millisecond) // until local hand-offs end
		}
		wire.LoseReplies(1, "EVALSHA")
		third.Release(fetchonce.ErrLockLost)
		fourth.Has()
		fifth.Waits()
		fourth.Release(nil)
		fifth.Has()
		fifth.Release(nil)
	})
}

// A heldRequest is a request for a free lock that has not reached Redis. Two callers of one
// process wait for it.
type heldRequest struct {
	*testkit.Gate // open it to let the request through

	locker        *fetchonce.Locker
	first, second *testkit.Taker
}

// holdRequest starts an Acquire with ctx and holds back its request, then starts a second.
func holdRequest(ctx context.Context, t *testing.T, r backend) heldRequest {
	t.Helper()
	rdb := r.Client()
	held := heldRequest{Gate: testkit.NewGate(rdb)}
	held.locker = testkit.LockerOf(t, rdb, func(opt *lockOptions) { opt.RedisTimeout = 10 * time.Second })
	held.Shut()
	held.first = testkit.Take(ctx, t, r, held.locker)
	<-held.Stopped
	held.second = testkit.Take(t.Context(), t, r, held.locker)
	r.Until("both wait", func() bool { return held.locker.Waiting("it") == 2 })
	return held
}

// The caller that sent the request leaves. The lease that the request is granted passes to the
// next caller.
func TestRequestOfACallerThatLeftIsReleased(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		ctx, cancel := context.WithCancelCause(t.Context())
		request := holdRequest(ctx, t, r)
		first, second := request.first, request.second
		cancel(errMine)
		first.Ended()
		if !errors.Is(first.Err, fetchonce.ErrLocked) || !errors.Is(first.Err, errMine) {
			t.Errorf("Acquire = %v, want ErrLocked and the cause of the end of the context", first.Err)
		}
		second.Waits()
		request.Open()
		second.Has()
		second.Release(nil)
		other := testkit.NewLocker(t, r)
		r.Until("the lock is free", func() bool { return other.TryDo(t.Context(), "it", testkit.Nothing) == nil })
		r.Until("no name is in use", func() bool { return request.locker.Names() == 0 })
	})
}

func TestCloseEndsARequestInFlight(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		request := holdRequest(t.Context(), t, r)
		first, second := request.first, request.second
		closed := returns(t, "Close", func() { _ = request.locker.Close() })
		first.Ended()
		second.Ended()
		r.Settle()
		if isClosed(closed) {
			t.Error("Close returned before the request was answered")
		}
		request.Open()
		<-closed
		if first.Err != fetchonce.ErrClosed || second.Err != fetchonce.ErrClosed {
			t.Errorf("Acquire = %v and %v, want ErrClosed", first.Err, second.Err)
		}
		other := testkit.NewLocker(t, r)
		r.Until("the lock is free", func() bool { return other.TryDo(t.Context(), "it", testkit.Nothing) == nil })
	})
}

func TestErrorOfARequestReachesAllWaiters(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		request := holdRequest(t.Context(), t, r)
		first, second := request.first, request.second
		r.Kill()
		request.Open()
		first.Ended()
		second.Ended()
		var ours *fetchonce.Error
		if !errors.As(first.Err, &ours) || !errors.As(second.Err, &ours) {
			t.Errorf("Acquire = %v and %v, want an *Error for both", first.Err, second.Err)
		}
		r.Restart()
		r.Until("it works again", func() bool { return request.locker.Do(t.Context(), "it", testkit.Nothing) == nil })
	})
}

func TestLockWithoutRedisReturnsAnError(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := testkit.NewLocker(t, r, func(opt *lockOptions) { opt.RedisTimeout = 500 * time.Millisecond })
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
		r.Until("it works again", func() bool { return lk.Do(t.Context(), "it", testkit.Nothing) == nil })
		r.Pause()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := lk.TryDo(ctx, "it", mustNot); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("TryDo = %v, want the context's error", err)
		}
		if took := time.Since(began); took > 20*time.Millisecond+slack(r) {
			t.Errorf("TryDo returned %v after the call", took)
		}
		began = time.Now()
		if err := lk.Do(t.Context(), "it", mustNot); !errors.As(err, &ours) {
			t.Errorf("Do = %v, want an *Error", err)
		}
		if took := time.Since(began); took > 500*time.Millisecond+slack(r) {
			t.Errorf("Do returned %v after the call", took)
		}
		r.Resume()
		r.Until("it works again", func() bool { return lk.Do(t.Context(), "it", testkit.Nothing) == nil })
	})
}

// A holder whose Redis hangs stops before its lease has ended there.
func TestHolderWithoutRedisStopsInTime(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		first := testkit.Taken(t, r, testkit.LockerOf(t, rdb, testkit.ShortLockLease(r)))
		second := testkit.Queued(t.Context(), t, r, testkit.NewLocker(t, r, testkit.ShortLockLease(r)), 1)
		redistest.WireOf(rdb).Pause()
		second.Has()
		if first.Ctx.Err() == nil {
			t.Error("two contexts live at once")
		}
		redistest.WireOf(rdb).Resume()
		first.Release(fetchonce.ErrLockLost)
		r.Settle()
		if second.Ctx.Err() != nil {
			t.Error("the late release ended another's lease")
		}
		second.Release(nil)
	})
}

// The holder has lost the lock and has not noticed. A waiter in its own process acquires it.
func TestLostLockIsTakenAgainInItsProcess(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		lk := testkit.NewLocker(t, r, testkit.ShortLockLease(r))
		first := testkit.Taken(t, r, lk)
		second := testkit.Take(t.Context(), t, r, lk)
		r.Until("it waits", func() bool { return lk.Waiting("it") == 1 })
		flushAll(t, r)
		second.Has()
		first.Release(fetchonce.ErrLockLost)
		r.Settle()
		if second.Ctx.Err() != nil {
			t.Error("the release of a lost lease ended another's")
		}
		second.Release(nil)
	})
}

func TestMaxHoldEndsTheHold(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		hold := testkit.LeaseLength(r) * 3 / 2
		a := testkit.NewLocker(t, r, testkit.ShortLockLease(r), func(opt *lockOptions) { opt.MaxHold = hold })
		b := testkit.NewLocker(t, r)
		began := time.Now()
		first := testkit.Taken(t, r, a)
		second := testkit.Queued(t.Context(), t, r, b, 1)
		first.LostBy(began.Add(hold+slack(r)), fetchonce.ErrMaxHold)
		if time.Since(began) < hold {
			t.Error("the context ended too soon")
		}
		second.Waits() // the lease still runs
		second.Has()
		if took := time.Since(began); took > hold+testkit.LeaseLength(r)+slack(r)+recheckTime {
			t.Errorf("the next in the queue had the lock after %v", took)
		}
		first.Release(fetchonce.ErrLockLost)
		second.Release(nil)
		if err := a.Do(t.Context(), "it", func(ctx context.Context) error { <-ctx.Done(); return nil }); err != nil {
			t.Errorf("a Do whose function ended with its context = %v", err)
		}
	})
}

const recheckTime = 50 * time.Millisecond

// The caller's context ends. The lease is renewed until the holder releases the lock.
func TestLeaseIsKeptWhileItsHolderCleansUp(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := testkit.NewLocker(t, r, testkit.ShortLockLease(r)), testkit.NewLocker(t, r)
		ctx, cancel := context.WithCancelCause(t.Context())
		first := testkit.Take(ctx, t, r, a)
		first.Has()
		second := testkit.Queued(t.Context(), t, r, b, 1)
		cancel(errMine)
		first.LostBy(time.Now().Add(time.Second), errMine)
		time.Sleep(2 * testkit.LeaseLength(r))
		second.Waits()
		first.Release(nil)
		second.Has()
		second.Release(nil)
	})
}

func TestSecondReleaseDoesNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := testkit.NewLocker(t, r), testkit.NewLocker(t, r)
		first := testkit.Taken(t, r, a)
		first.Release(nil)
		second := testkit.Taken(t, r, b)
		first.Release(nil)
		r.Settle()
		if err := a.TryDo(t.Context(), "it", testkit.Nothing); err != fetchonce.ErrLocked {
			t.Errorf("after a second release, TryDo = %v, want ErrLocked", err)
		}
		second.Release(nil)
	})
}

func TestReentranceIsRefused(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		lk, other := testkit.LockerOf(t, rdb), testkit.NewLocker(t, r, func(opt *lockOptions) { opt.Prefix = "other" })
		var inner context.Context
		err := lk.Do(t.Context(), "it", func(ctx context.Context) error {
			inner = context.WithoutCancel(ctx)
			redistest.WireOf(rdb).Reset()
			var ours *fetchonce.Error
			for name, do := range map[string]func(context.Context, string, func(context.Context) error) error{"Do": lk.Do, "TryDo": lk.TryDo} {
				if err := do(inner, "it", testkit.Nothing); !errors.As(err, &ours) || !strings.Contains(err.Error(), "holds the lock already") {
					t.Errorf("%s of the same lock inside Do = %v", name, err)
				}
			}
			if n := redistest.WireOf(rdb).RoundTrips(); n > 0 {
				t.Errorf("that cost %d round trips", n)
			}
			return errors.Join(lk.Do(ctx, "another", testkit.Nothing), other.Do(ctx, "it", testkit.Nothing))
		})
		if err != nil {
			t.Error(err)
		}
		if err := lk.Do(inner, "it", testkit.Nothing); err != nil {
			t.Errorf("Do with the context of a Do that has returned = %v", err)
		}
	})
}

func TestSemaphoreHasAtMostSlotsHolders(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		slots := func(opt *lockOptions) { opt.Slots = 3 }
		var inside, most, fence, runs atomic.Int64
		var wg sync.WaitGroup
		for range 3 {
			lk := testkit.NewLocker(t, r, slots)
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
		a, b := testkit.LockerOf(t, rdb, slots, testkit.ShortLockLease(r)), testkit.NewLocker(t, r, slots, testkit.ShortLockLease(r))
		held := []*testkit.Taker{testkit.Taken(t, r, a), testkit.Taken(t, r, b), testkit.Taken(t, r, b)}
		for _, h := range held {
			if f := h.Ls.Fence(); f <= fence.Swap(f) {
				t.Error("the fences do not rise")
			}
		}
		if err := b.TryDo(t.Context(), "it", testkit.Nothing); err != fetchonce.ErrLocked {
			t.Errorf("TryDo without a free slot = %v, want ErrLocked", err)
		}
		// Each lease ends by itself.
		last := testkit.Queued(t.Context(), t, r, b, 1)
		redistest.WireOf(rdb).Down()
		last.Has()
		if held[0].Ctx.Err() == nil || held[1].Ctx.Err() != nil || held[2].Ctx.Err() != nil {
			t.Error("the lease of a living process ended")
		}
		for _, h := range []*testkit.Taker{held[1], held[2], last} {
			h.Release(nil)
		}
	})
}

// A local hand-off sends no command.
func TestLocalHandoffsCostNoRoundTrips(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		lk := testkit.LockerOf(t, rdb)
		if err := lk.Do(t.Context(), "it", testkit.Nothing); err != nil { // so that Redis has the scripts
			t.Fatal(err)
		}
		last := testkit.Taken(t, r, lk)
		var waiting []*testkit.Taker
		for i := range 4 {
			waiting = append(waiting, testkit.Take(t.Context(), t, r, lk))
			r.Until("it waits", func() bool { return lk.Waiting("it") == i+1 })
		}
		if r.Fake() {
			time.Sleep(20 * time.Millisecond) // until the first release asks Redis for waiters elsewhere
		}
		redistest.WireOf(rdb).Reset()
		for _, a := range waiting {
			last.Release(nil)
			a.Has()
			if a.Ls.Fence() <= last.Ls.Fence() {
				t.Errorf("the fences are %d and then %d", last.Ls.Fence(), a.Ls.Fence())
			}
			last = a
		}
		last.Release(nil)
		if n := redistest.WireOf(rdb).RoundTrips(); n != 2 && r.Fake() { // real time may bring more
			t.Errorf("5 holds ended in %d round trips, want 2: %v", n, redistest.WireOf(rdb).Commands())
		}
	})
}

// A process with many waiters hands the lock off to another process after 16 holds at most.
func TestLocalHandoffsAreBounded(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := testkit.NewLocker(t, r), testkit.NewLocker(t, r)
		first := testkit.Taken(t, r, a)
		var holds, after atomic.Int64
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer wg.Wait()
		defer cancel()
		var other *testkit.Taker
		for range 40 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_ = a.Do(ctx, "it", func(context.Context) error {
						holds.Add(1)
						time.Sleep(100 * time.Microsecond) // in a bubble, time stands still while a goroutine runs
						return nil
					})
				}
			})
		}
		r.Until("they wait", func() bool { return a.Waiting("it") == 40 })
		other = testkit.Queued(t.Context(), t, r, b, 1)
		first.Release(nil)
		other.Has()
		after.Store(holds.Load())
		if n := after.Load(); n > 16 {
			t.Errorf("the other process had the lock after %d holds", n)
		}
		other.Release(nil)
		r.Until("the lock goes back and forth", func() bool { return holds.Load() > after.Load()+100 })
	})
}

func TestClosedLockerRefusesLocks(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		a, b := testkit.NewLocker(t, r, testkit.ShortLockLease(r)), testkit.NewLocker(t, r, testkit.ShortLockLease(r))
		first := testkit.Taken(t, r, a)
		waiting := testkit.Take(t.Context(), t, r, a)
		r.Until("it waits", func() bool { return a.Waiting("it") == 1 })
		next := testkit.Queued(t.Context(), t, r, b, 1)
		closed := make(chan error)
		go func() { closed <- a.Close() }()
		first.LostBy(time.Now().Add(slack(r)+time.Millisecond), fetchonce.ErrClosed)
		waiting.Ended()
		if waiting.Err != fetchonce.ErrClosed {
			t.Errorf("the waiter got %v, want ErrClosed", waiting.Err)
		}
		next.Waits() // the holder has not released
		select {
		case err := <-closed:
			t.Error("Close returned before the holder:", err)
		default:
		}
		first.Release(nil)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		next.Has()
		if err := a.Do(t.Context(), "it", testkit.Nothing); err != fetchonce.ErrClosed {
			t.Errorf("Do on a closed locker = %v", err)
		}
		if err := a.TryDo(t.Context(), "it", testkit.Nothing); err != fetchonce.ErrClosed {
			t.Errorf("TryDo on a closed locker = %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}

		// Close waits for the lease of a holder that never releases.
		began := time.Now()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > testkit.LeaseLength(r)+slack(r) {
			t.Errorf("Close took %v", took)
		}
		next.Release(fetchonce.ErrLockLost)
	})
}

// A foreign value under one of a lock's keys is left unchanged, except that it gets a TTL.
//
//test:long
func TestForeignValueAtALocksKeyIsAnError(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := testkit.Admin(r)
		lk := testkit.NewLocker(t, r, testkit.ShortLockLease(r))
		rdb.Set(t.Context(), "test:l:{it}", "mine", 0)
		var ours *fetchonce.Error
		if err := lk.Do(t.Context(), "it", testkit.Nothing); !errors.As(err, &ours) {
			t.Errorf("with a foreign value, Do = %v, want an *Error", err)
		}
		if got := rdb.Get(t.Context(), "test:l:{it}").Val(); got != "mine" {
			t.Errorf("the foreign value is %q", got)
		}
		if left := rdb.PTTL(t.Context(), "test:l:{it}").Val(); left < 0 || left > testkit.LeaseLength(r) {
			t.Errorf("the foreign value expires in %v", left)
		}
		r.Until("the lock is free again", func() bool { return lk.Do(t.Context(), "it", testkit.Nothing) == nil })
		const key = "test:q:{it}"
		rdb.Set(t.Context(), key, "mine", 0)
		holder := testkit.Taken(t, r, testkit.NewLocker(t, r))
		waiter := testkit.Take(t.Context(), t, r, lk)
		r.Until("the foreign value has a TTL", func() bool { return rdb.PTTL(t.Context(), key).Val() > 0 })
		if got := rdb.Get(t.Context(), key).Val(); got != "mine" {
			t.Errorf("the foreign value in the queue's key is %q", got)
		}
		holder.Release(nil)
		waiter.Has()
		waiter.Release(nil)
	})
}

// A forged lock says that its lease ends in a year.
func TestForgedLockBlocksForALease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		state := fmt.Sprintf("lock 1 x.1 1 %d", time.Now().AddDate(1, 0, 0).UnixMilli())
		testkit.Admin(r).Set(t.Context(), "test:l:{it}", state, 0)
		waiter := testkit.Take(t.Context(), t, r, testkit.NewLocker(t, r, testkit.ShortLockLease(r)))
		waiter.Has()
		waiter.Release(nil)
	})
}

// Every key of a lock has a TTL.
//
//test:long
func TestLocksKeysExpire(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		dead := r.Client()
		first := testkit.Taken(t, r, testkit.LockerOf(t, rdb, testkit.ShortLockLease(r)))
		testkit.Queued(t.Context(), t, r, testkit.LockerOf(t, dead, testkit.ShortLockLease(r)), 1)
		for _, key := range []string{"test:l:{it}", "test:q:{it}"} {
			if ttl := testkit.Admin(r).PTTL(t.Context(), key).Val(); ttl <= 0 {
				t.Errorf("%s expires in %v", key, ttl)
			}
		}
		redistest.WireOf(rdb).Down()
		redistest.WireOf(dead).Down()
		first.LostBy(time.Now().Add(testkit.LeaseLength(r)), fetchonce.ErrLockLost)
		r.Until("nothing is left", func() bool { return len(testkit.Keys(t, r)) == 0 })
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
	if err := lk.Do(none, "it", testkit.Nothing); !errors.As(err, &ours) || !strings.Contains(err.Error(), "nil") {
		t.Errorf("Do with a nil context = %v", err)
	}
}
