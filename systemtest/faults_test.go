package systemtest_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// grace is what a caller may wait beyond its own deadline.
const grace = 250 * time.Millisecond

// wantInTime checks that a Get returns soon after its deadline at the latest.
func wantInTime(t *testing.T, r backend, l loader, o *testkit.Origin) testkit.Outcome {
	t.Helper()
	const limit = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	started := time.Now()
	out := testkit.Get(t, ctx, l, "k", o).Outcome()
	if waited := time.Since(started); r.Fake() && waited > limit+grace {
		t.Errorf("a caller with a deadline of %v waited %v", limit, waited)
	}
	return out
}

// Redis is killed while a process fetches and another waits for it.
func TestRedisKilledDuringFetch(t *testing.T) {
	testkit.Policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		o := testkit.NewOrigin(t)
		holder, other := testkit.NewLoader(t, r, testkit.WithPolicy(policy)), testkit.NewLoader(t, r, testkit.WithPolicy(policy))
		here := testkit.Get(t, t.Context(), holder, "k", o)
		c := o.Next()
		there := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		r.Kill()

		if policy == fetchonce.FailOpen {
			o.Next().Returns("unleased") // the other fetches without a lease
			there.Want("unleased")
		} else {
			testkit.WantRedisDown(t, there.Outcome())
		}
		c.Returns("v")
		here.Want("v") // the fetched value reaches its caller
		late := testkit.Get(t, t.Context(), holder, "k", o)
		if policy == fetchonce.FailOpen {
			o.Next().Returns("unleased")
			late.Want("unleased")
		} else {
			testkit.WantRedisDown(t, late.Outcome())
		}

		r.Restart()
		wantWorking(t, r, holder, other)
	})
}

// wantWorking waits until both Loaders use Redis again, and checks that they share a fetch.
func wantWorking(t *testing.T, r backend, a, b loader) {
	t.Helper()
	for _, l := range []loader{a, b} {
		r.Until("Redis is used again", func() bool { return l.Set(t.Context(), "back", "v") == nil })
	}
	o := testkit.NewOrigin(t)
	g := testkit.Get(t, t.Context(), a, "again", o)
	c := o.Next()
	waiter := testkit.Get(t, t.Context(), b, "again", o)
	testkit.AwaitWaiters(t, r, "again", 1)
	c.Returns("v")
	g.Want("v")
	waiter.Want("v")
	o.Want(1)
}

// Redis restarts empty during a fetch. The value of that fetch is not stored.
func TestRedisRestartedEmptyDuringFetch(t *testing.T) {
	testkit.Policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		o := testkit.NewOrigin(t)
		o.Ignore = true
		holder, other := testkit.NewLoader(t, r, testkit.WithPolicy(policy)), testkit.NewLoader(t, r, testkit.WithPolicy(policy))
		here := testkit.Get(t, t.Context(), holder, "k", o)
		old := o.Next()
		r.Kill()
		r.Restart()
		r.Until("Redis is used again", func() bool { return other.Set(t.Context(), "back", "v") == nil })

		there := testkit.Get(t, t.Context(), other, "k", o) // no process has the lease
		c := o.Next()
		old.Returns("old")
		here.Want("old")
		r.Settle()
		c.Returns("new")
		there.Want("new")
		testkit.WantKept(t, other, "new") // the old FILL was refused
		o.Want(2)
	})
}

func TestHungRedisFollowsThePolicy(t *testing.T) {
	testkit.Policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		o := testkit.NewOrigin(t)
		holder, other := testkit.NewLoader(t, r, testkit.WithPolicy(policy)), testkit.NewLoader(t, r, testkit.WithPolicy(policy))
		here := testkit.Get(t, t.Context(), holder, "k", o)
		c := o.Next()
		r.Pause()

		ctx, cancel := context.WithCancel(t.Context())
		leaver := testkit.Get(t, ctx, other, "other", o)
		cancel()
		leaver.WantErr(context.Canceled)
		if policy == fetchonce.FailClosed {
			testkit.WantRedisDown(t, wantInTime(t, r, other, o))
		} else {
			done := make(chan testkit.Outcome)
			go func() { done <- wantInTime(t, r, other, o) }()
			o.Next().Returns("unleased")
			if out := <-done; out.Value != "unleased" && !errors.Is(out.Err, context.DeadlineExceeded) {
				t.Errorf("a caller got %q, %v", out.Value, out.Err)
			}
		}
		c.Returns("v")
		here.Want("v")
		r.Resume()
		wantWorking(t, r, holder, other)
	})
}

// An ACQUIRE is executed and its reply is lost. The lease is released.
func TestUnansweredAcquireIsReleased(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb, func(opt *options) { opt.Lease, opt.RedisTimeout = time.Minute, 100*time.Millisecond })
		testkit.WarmScripts(t, r, l)
		redistest.WireOf(rdb).LoseReplies(2, "EVALSHA")
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("unleased")
		g.Want("unleased")
		other := testkit.Get(t, t.Context(), testkit.NewLoader(t, r), "k", o)
		o.Next().Returns("v") // although the lease would last a minute
		other.Want("v")
	})
}

// Each script loses its reply once, is sent again, and takes effect once.
func TestCommandsWithLostRepliesAreSentAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, other := testkit.LoaderOf(t, rdb), testkit.NewLoader(t, r)
		testkit.WarmScripts(t, r, l)
		o := testkit.NewOrigin(t)
		wire := redistest.WireOf(rdb)
		wire.LoseReplies(1, "EVALSHA")
		g := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		wire.LoseReplies(1, "EVALSHA")
		c.Returns("v")
		g.Want("v")
		testkit.Get(t, t.Context(), other, "k", o).Want("v")
		o.Want(1)
		wire.LoseReplies(1, "EVALSHA")
		if err := l.Delete(t.Context(), "k"); err != nil {
			t.Error(err)
		}
		wire.LoseReplies(1, "EVALSHA")
		if err := l.Set(t.Context(), "k", "set"); err != nil {
			t.Error(err)
		}
		testkit.Get(t, t.Context(), other, "k", o).Want("set")
	})
}

// Temporary errors such as LOADING are retried within RedisTimeout.
func TestTemporaryErrorsOfRedisAreRetried(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		for _, text := range []string{"LOADING Redis is loading the dataset in memory", "TRYAGAIN Multiple keys request during rehashing of slot"} {
			rdb := r.Client()
			l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailClosed))
			o := testkit.NewOrigin(t)
			redistest.WireOf(rdb).Fail(2, text, "EVALSHA")
			g := testkit.Get(t, t.Context(), l, text[:4], o)
			o.Next().Returns("v")
			g.Want("v")
		}
	})
}

// A permanent error to ACQUIRE is handled by the policy. A caller always receives a value that was
// fetched.
func TestPermanentErrorsOfRedisFollowThePolicy(t *testing.T) {
	testkit.Policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(policy))
		o := testkit.NewOrigin(t)
		wire := redistest.WireOf(rdb)
		for _, text := range []string{"OOM command not allowed when used memory > 'maxmemory'.", "NOPERM this user has no permissions", "BUSY Redis is busy running a script"} {
			wire.Fail(redistest.All, text, "EVALSHA", "EVAL")
			g := testkit.Get(t, t.Context(), l, "acquire", o)
			if policy == fetchonce.FailClosed {
				testkit.WantRedisDown(t, g.Outcome())
			} else {
				o.Next().Returns("v")
				g.Want("v")
			}
			wire.Heal()
			g = testkit.Get(t, t.Context(), l, "fill "+text[:4], o)
			c := o.Next()
			wire.Fail(redistest.All, text, "EVALSHA", "EVAL")
			c.Returns("v")
			g.Want("v")
			if err := l.Delete(t.Context(), "acquire"); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("Delete = %v, want %q", err, text)
			}
			wire.Heal()
		}
	})
}

// The caller leaves while its ACQUIRE is held back. The lease is released after the ACQUIRE.
func TestAcquireOfACallerThatLeftIsReleased(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		testkit.WarmScripts(t, r, testkit.NewLoader(t, r))
		rdb := r.Client()
		stopped, free := testkit.HoldFirst(rdb, "evalsha")
		ctx, cancel := context.WithCancel(t.Context())
		o := testkit.NewOrigin(t)
		g := testkit.Get(t, ctx, testkit.LoaderOf(t, rdb), "k", o)
		<-stopped
		cancel()
		g.WantErr(context.Canceled)
		r.Settle() // a RELEASE that was sent now would arrive first
		close(free)
		began := time.Now()
		g = testkit.Get(t, t.Context(), testkit.NewLoader(t, r), "k", o)
		o.Next().Returns("v")
		g.Want("v")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("a lease without a holder lasted %v", took)
		}
		o.Want(1)
	})
}
