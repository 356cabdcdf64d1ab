package fetchonce_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// Two lockers, and locks of each inside those of the other, while Redis hangs until
// the outer leases end: all calls return.
func TestNestedLocksSurviveAHangingRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		short := func(opt *lockOptions) { opt.Lease, opt.RedisTimeout = 60*time.Millisecond, 20*time.Millisecond }
		lockers := []*fetchonce.Locker{testkit.NewLocker(t, r, short), testkit.NewLocker(t, r, short)}
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
