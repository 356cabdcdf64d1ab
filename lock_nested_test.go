package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/contexttest"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// The locker calls no method of a context, and no function of the user's, while it
// holds its mutex: both may call the locker, or another one that waits for it.
func TestContextMayCallTheLocker(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		var lk *fetchonce.Locker
		var calls, held atomic.Int32
		called := func() {
			calls.Add(1)
			if !lk.IsFree() {
				held.Add(1)
			}
		}
		trace := fetchonce.Trace{
			Locked:      func(context.Context, fetchonce.TraceLock) { called() },
			Unlocked:    func(context.Context, fetchonce.TraceUnlock) { called() },
			RedisFailed: func(context.Context, fetchonce.TraceRedisError) { called() },
		}
		lk = newLocker(t, r, shortLockLease(r), func(opt *lockOptions) { opt.Trace = &trace })
		inner, cancel := context.WithCancel(t.Context())
		ctx := &contexttest.Context{Context: inner, Called: called}

		first := take(ctx, t, r, lk)
		first.has()
		second := take(ctx, t, r, lk)
		r.Until("it waits", func() bool { return lk.Waiting("it") == 1 })
		if err := lk.TryDo(ctx, "it", nothing); !errors.Is(err, fetchonce.ErrLocked) {
			t.Errorf("TryDo = %v, want ErrLocked", err)
		}
		first.release(nil)
		second.has()
		third := take(ctx, t, r, lk)
		r.Until("it waits", func() bool { return lk.Waiting("it") == 1 })
		cancel()
		third.ended()
		second.release(nil)

		ctx = &contexttest.Context{Context: t.Context(), Called: called}
		r.Kill()
		if lk.Do(ctx, "it", nothing) == nil || lk.TryDo(ctx, "it", nothing) == nil {
			t.Error("Do without Redis succeeded")
		}
		r.Restart()
		if calls.Load() == 0 || held.Load() > 0 {
			t.Errorf("of %d calls, %d were made under the locker's mutex", calls.Load(), held.Load())
		}
	})
}

// Two lockers, and locks of each inside those of the other, while Redis hangs until
// the outer leases end: all calls return.
func TestNestedLocksSurviveAHangingRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		short := func(opt *lockOptions) { opt.Lease, opt.RedisTimeout = 60*time.Millisecond, 20*time.Millisecond }
		lockers := []*fetchonce.Locker{newLocker(t, r, short), newLocker(t, r, short)}
		for range 10 {
			nest(t, r, lockers)
		}
	})
}

func nest(t *testing.T, r backend, lockers []*fetchonce.Locker) {
	t.Helper()
	var outer []context.Context
	for i, lk := range lockers {
		ctx, ls, err := lk.Acquire(t.Context(), fmt.Sprint("outer", i))
		if err != nil { // the machine is busy, and Redis has not answered in time
			return
		}
		defer func() { _ = ls.Release() }()
		outer = append(outer, ctx)
	}
	r.Pause()
	var nested sync.WaitGroup
	for i := range 40 {
		ctx, lk := outer[i%2], lockers[(i/2)%2]
		nested.Go(func() {
			for end := time.Now().Add(70 * time.Millisecond); time.Now().Before(end); {
				if _, ls, err := lk.Acquire(ctx, fmt.Sprint("inner", i)); err == nil {
					_ = ls.Release()
				} else if r.Fake() {
					time.Sleep(time.Millisecond) // a context that has ended costs no time
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { nested.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("calls hang")
	}
	r.Resume()
}
