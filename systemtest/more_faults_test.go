package systemtest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// Redis is slow, and a fetch lasts for three leases. The lease is renewed, and the value is fetched
// once.
func TestSlowRedisCostsNoSecondFetch(t *testing.T) {
	for _, delay := range []time.Duration{50 * time.Millisecond, 150 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := redistest.Bubble(t).Backend()
				slow := func(opt *options) {
					opt.Lease, opt.RedisTimeout, opt.FetchTimeout = 3*time.Second, time.Second, fetchonce.Off
				}
				holder, other := testkit.NewLoader(t, r, slow), testkit.NewLoader(t, r, slow)
				r.Wire().Delay(delay)
				o := testkit.NewOrigin(t)
				here := testkit.Get(t, t.Context(), holder, "k", o)
				c := o.Next()
				there := testkit.Get(t, t.Context(), other, "k", o)
				time.Sleep(10 * time.Second) // three leases
				if c.Ctx.Err() != nil {
					t.Error("the fetch has lost its lease:", context.Cause(c.Ctx))
				}
				c.Returns("v")
				here.Want("v")
				there.Want("v")
				testkit.WantKept(t, other, "v")
				o.Want(1)
			})
		})
	}
}

// A server that is out of memory evicts a lease. The holder loses it, and another process fetches.
// The holder's value is not stored.
func TestEvictedLeaseIsLost(t *testing.T) {
	r := redistest.Server(t, "--maxmemory-policy", "allkeys-lru").Backend()
	admin := r.Plain()
	holder, other := testkit.NewLoader(t, r, testkit.ShortLease(r)), testkit.NewLoader(t, r, testkit.ShortLease(r))
	wantTakenOver(t, holder, other, func() {
		setMaxMemory(t, admin, "1")
		r.Until("the lease is evicted", func() bool {
			admin.Set(t.Context(), "test:x:{x}", "x", time.Minute) // evicts keys, and fails
			return admin.Exists(t.Context(), "test:m:{k}").Val() == 0
		})
		setMaxMemory(t, admin, "0")
	})
}

// wantTakenOver calls lose, which ends a lease in Redis during the holder's fetch. It checks that
// the fetch's context ends, that the other process fetches, and that the holder's value reaches its
// caller and is not stored.
func wantTakenOver(t *testing.T, holder, other loader, lose func()) {
	t.Helper()
	o := testkit.NewOrigin(t)
	o.Ignore = true
	early := testkit.Get(t, t.Context(), holder, "k", o)
	old := o.Next()
	lose()
	late := testkit.Get(t, t.Context(), other, "k", o)
	next := o.Next()
	<-old.Ctx.Done()
	if !errors.Is(context.Cause(old.Ctx), fetchonce.ErrLockLost) {
		t.Error("the context of the fetch ended with", context.Cause(old.Ctx))
	}
	old.Returns("old")
	early.Want("old")
	next.Returns("new")
	late.Want("new")
	testkit.WantKept(t, holder, "new")
	o.Want(2)
}

func setMaxMemory(t *testing.T, admin redis.UniversalClient, bytes string) {
	t.Helper()
	if err := admin.ConfigSet(t.Context(), "maxmemory", bytes).Err(); err != nil {
		t.Fatal(err)
	}
}

// The server's clock jumps forward during a fetch, so the lease ends. Another process fetches. The
// holder's value is not stored.
func TestClockThatJumpsForwardEndsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		holder, other := testkit.NewLoader(t, r.Backend()), testkit.NewLoader(t, r.Backend())
		wantTakenOver(t, holder, other, func() { r.SetTime(time.Now().Add(time.Hour)) })
	})
}

// The server's clock steps back by an hour during a fetch, so the lease would last an hour longer.
// The next renewal sets its end again. No other process fetches.
func TestClockThatStepsBackDoesNotLengthenTheLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		holder, other, admin := testkit.NewLoader(t, r, testkit.ShortLease(r)), testkit.NewLoader(t, r, testkit.ShortLease(r)), r.Client()
		o := testkit.NewOrigin(t)
		here := testkit.Get(t, t.Context(), holder, "k", o)
		c := o.Next()
		there := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		admin.PExpire(t.Context(), "test:m:{k}", time.Hour) // instead of the clock, the TTL changes
		r.Until("the lease is renewed for its length", func() bool {
			left := admin.PTTL(t.Context(), "test:m:{k}").Val()
			return left > 0 && left <= testkit.LeaseLength(r)
		})
		if c.Ctx.Err() != nil {
			t.Error("the fetch has lost its lease:", context.Cause(c.Ctx))
		}
		c.Returns("v")
		here.Want("v")
		there.Want("v")
		testkit.WantKept(t, other, "v")
		o.Want(1)
	})
}

// An old and a new build run at once, with different types and Schemas. They share the lease of a
// key and not its value, so each fetches once, one after the other.
func TestSchemaSeparatesTwoBuilds(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		schema := func(name string) func(*options) { return func(opt *options) { opt.Schema = name } }
		o := testkit.NewOrigin(t)
		before, after := testkit.NewLoader(t, r, schema("1")), testkit.NewLoader(t, r, schema("2"))
		alsoBefore, alsoAfter := testkit.NewLoader(t, r, schema("1")), testkit.NewLoader(t, r, schema("2"))
		here := testkit.Get(t, t.Context(), before, "k", o)
		c := o.Next()
		there := testkit.Get(t, t.Context(), after, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		c.Returns("old shape")
		here.Want("old shape")
		o.Next().Returns("new shape")
		there.Want("new shape")
		for range 3 { // and they do not overwrite each other
			testkit.Get(t, t.Context(), alsoBefore, "k", o).Want("old shape")
			testkit.Get(t, t.Context(), alsoAfter, "k", o).Want("new shape")
		}
		o.Want(2)
	})
}
