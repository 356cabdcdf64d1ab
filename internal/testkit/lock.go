package testkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
)

// LockOptions are the options of a Locker.
type LockOptions = fetchonce.LockOptions

// NewLocker returns a Locker over a new client, as a new process has it. On a busy machine a real server may take
// longer to answer than the default RedisTimeout.
func NewLocker(t *testing.T, r Backend, change ...func(*LockOptions)) *fetchonce.Locker {
	t.Helper()
	if !r.Fake() {
		change = append([]func(*LockOptions){PatientLocker}, change...)
	}
	return LockerOf(t, r.Client(), change...)
}

// PatientLocker sets a RedisTimeout of 10 s: the machine may be busy with other tests.
func PatientLocker(opt *LockOptions) { opt.RedisTimeout = 10 * time.Second }

// LockerOf returns a Locker over a client. Its log is discarded.
func LockerOf(t *testing.T, rdb redis.UniversalClient, change ...func(*LockOptions)) *fetchonce.Locker {
	t.Helper()
	opt := LockOptions{Prefix: "test", Logger: slog.New(slog.DiscardHandler)}
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

// ShortLockLease makes leases short enough for a test to wait for their end.
func ShortLockLease(r Backend) func(*LockOptions) {
	return func(opt *LockOptions) { opt.Lease = LeaseLength(r) }
}

// A Taker is one Acquire of the lock "it" that has started.
type Taker struct {
	T    *testing.T
	r    Backend
	Done chan struct{} // closed when Acquire has returned

	// The results of Acquire. They are set before Done is closed.
	Ctx context.Context
	Ls  *fetchonce.Lease
	Err error
}

// Take starts an Acquire.
func Take(ctx context.Context, t *testing.T, r Backend, lk *fetchonce.Locker) *Taker {
	t.Helper()
	a := &Taker{T: t, r: r, Done: make(chan struct{})}
	go func() {
		defer close(a.Done)
		a.Ctx, a.Ls, a.Err = lk.Acquire(ctx, "it")
	}()
	return a
}

// Taken takes a lock that is free.
func Taken(t *testing.T, r Backend, lk *fetchonce.Locker) *Taker {
	t.Helper()
	a := Take(t.Context(), t, r, lk)
	a.Has()
	return a
}

// Queued starts an Acquire and waits until n processes, this one included, are in the lock's
// queue in Redis.
func Queued(ctx context.Context, t *testing.T, r Backend, lk *fetchonce.Locker, n int) *Taker {
	t.Helper()
	a := Take(ctx, t, r, lk)
	r.Until(fmt.Sprintf("%d processes are in the queue", n), func() bool { return InQueue(t, r) == n })
	r.Settle()
	return a
}

// InQueue returns how many processes are in the queue of "it" in Redis.
func InQueue(t *testing.T, r Backend) int {
	t.Helper()
	n, err := Admin(r).ZCount(t.Context(), "test:q:{it}", "(0", "+inf").Result()
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// Ended waits until the Acquire has returned.
func (a *Taker) Ended() {
	a.T.Helper()
	select {
	case <-a.Done:
	case <-time.After(time.Minute):
		a.T.Fatal("an Acquire never returned")
	}
}

// Has waits until Acquire has returned a lease.
func (a *Taker) Has() {
	a.T.Helper()
	a.Ended()
	if a.Err != nil {
		a.T.Fatalf("Acquire = %v, want a lease", a.Err)
	}
}

// Waits ends the test if Acquire has returned.
func (a *Taker) Waits() {
	a.T.Helper()
	a.r.Settle()
	select {
	case <-a.Done:
		a.T.Fatalf("Acquire returned (error %v), want it to wait", a.Err)
	default:
	}
}

// Release releases the lease and checks the error.
func (a *Taker) Release(want error) {
	a.T.Helper()
	if err := a.Ls.Release(); !errors.Is(err, want) || (want == nil) != (err == nil) {
		a.T.Errorf("Release = %v, want %v", err, want)
	}
}

// LostBy waits until the context of the lease ends, which must be before the deadline, and
// checks its cause.
func (a *Taker) LostBy(deadline time.Time, want error) {
	a.T.Helper()
	select {
	case <-a.Ctx.Done():
	case <-time.After(time.Until(deadline)):
		if a.Ctx.Err() == nil {
			a.T.Fatal("the context of the lease has not ended in time")
		}
	}
	if cause := context.Cause(a.Ctx); !errors.Is(cause, want) {
		a.T.Errorf("the context's cause is %v, want %v", cause, want)
	}
}

// Nothing is work that does nothing.
func Nothing(context.Context) error { return nil }
