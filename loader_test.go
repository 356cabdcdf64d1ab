package fetchonce_test

import (
	"context"
	"crypto/rand"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

func TestOneFetchForAllCallersInAllProcesses(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		var all []*testkit.Getter
		for range 4 {
			l := newLoader(t, r)
			for range 250 {
				all = append(all, testkit.Get(t, t.Context(), l, "k", o))
			}
		}
		c := o.Next()
		r.Settle() // in a bubble, all of them wait now
		c.Returns("v")
		for _, g := range all {
			g.Want("v")
		}
		o.Want(1)
	})
}

// The lookups of two callers return missing. The second sends ACQUIRE after the first has
// fetched, stored and released.
func TestAcquireReturnsAValueStoredAfterTheLookup(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		slow := r.Client()
		gate := testkit.NewGate(slow)
		gate.Shut()
		second := testkit.Get(t, t.Context(), testkit.LoaderOf(t, slow), "k", o)
		<-gate.Stopped // between its miss and its ACQUIRE

		first := testkit.Get(t, t.Context(), newLoader(t, r), "k", o)
		o.Next().Returns("v")
		first.Want("v")

		gate.Open()
		second.Want("v")
		o.Want(1)
	})
}

func TestFetchOutlivesTheCallerThatStartedIt(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb)
		ctx, cancel := context.WithCancel(t.Context())
		leader := testkit.Get(t, ctx, l, "k", o)
		c := o.Next()
		others := []*testkit.Getter{testkit.Get(t, t.Context(), l, "k", o), testkit.Get(t, t.Context(), newLoader(t, r), "k", o)}
		r.Until("the other has joined", func() bool { return l.Callers("k") == 2 })
		testkit.AwaitWaiters(t, r, "k", 1)

		cancel()
		leader.WantErr(context.Canceled)
		if c.Ctx.Err() != nil {
			t.Error("the fetch was cancelled when the leader left:", context.Cause(c.Ctx))
		}
		c.Returns("v")
		for _, g := range others {
			g.Want("v")
		}
		if r.Fake() {
			o.Want(1)
		}
	})
}

func TestLastCallerThatLeavesReleasesTheLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, func(opt *options) { opt.Lease = time.Minute })
		ctx, cancel := context.WithCancel(t.Context())
		g := testkit.Get(t, ctx, l, "k", o)
		c := o.Next()
		waiter := testkit.Get(t, t.Context(), newLoader(t, r), "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)

		started := time.Now()
		cancel()
		g.WantErr(context.Canceled)
		<-c.Ctx.Done()
		o.Next().Returns("v") // the other process has the lease, which would have lasted a minute
		if waited := time.Since(started); r.Fake() && waited != 0 {
			t.Errorf("the lease was free after %v, want at once", waited)
		}
		waiter.Want("v")
		o.Want(2)
	})
}

func TestNewCallerDoesNotJoinACancelledFetch(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		o.Ignore = true // so that the cancelled fetch still runs
		l := newLoader(t, r)
		ctx, cancel := context.WithCancel(t.Context())
		g := testkit.Get(t, ctx, l, "k", o)
		old := o.Next()
		cancel()
		g.WantErr(context.Canceled)

		second := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		if c.Ctx.Err() != nil {
			t.Error("the new caller's fetch was cancelled")
		}
		old.Returns("old")
		r.Settle()
		c.Returns("new")
		second.Want("new")
		testkit.Get(t, t.Context(), l, "k", o).Want("new")
		o.Want(2)
	})
}

func TestWaiterHasItsOwnDeadline(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		g := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		started := time.Now()
		for _, waiting := range []loader{l, other} {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			testkit.Get(t, ctx, waiting, "k", o).WantErr(context.DeadlineExceeded)
		}
		if waited := time.Since(started); r.Fake() && waited != 100*time.Millisecond {
			t.Errorf("two callers with 50 ms each left after %v", waited)
		}
		c.Returns("v")
		g.Want("v")
	})
}

func TestFailureIsSharedAndNotCached(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		boom := errors.New("boom: the origin is down")
		clients := []loader{newLoader(t, r), newLoader(t, r), newLoader(t, r), newLoader(t, r)}
		for _, l := range clients {
			warm(t, r, l) // a waiter that is not notified of a failure fetches
		}
		ours := testkit.Get(t, t.Context(), clients[0], "k", o)
		c := o.Next()
		var all []*testkit.Getter
		for _, l := range clients {
			for range 5 {
				all = append(all, testkit.Get(t, t.Context(), l, "k", o))
			}
		}
		for i, l := range clients {
			want := 5
			if i == 0 {
				want = 6
			}
			r.Until("all callers wait", func() bool { return l.Callers("k") == want })
		}
		testkit.AwaitWaiters(t, r, "k", 3)
		r.Settle()
		c.Fails(boom)
		if out := ours.Outcome(); out.Err != boom {
			t.Errorf("Get = %v, want the fetch's error", out.Err)
		}
		for _, g := range all {
			out := g.Outcome()
			if out.Err == nil || innermost(out.Err).Error() != boom.Error() {
				t.Errorf("a caller got %v, want the text of %v", out.Err, boom)
			}
			if e, ok := errors.AsType[*fetchonce.Error](out.Err); out.Err != boom && (!ok || e.Op != "fetch" || e.Key != "k") {
				t.Errorf("another process got %v, want an *Error of a fetch", out.Err)
			}
		}
		o.Want(1)

		g := testkit.Get(t, t.Context(), clients[3], "k", o)
		o.Next().Returns("v")
		g.Want("v")
		o.Want(2)
	})
}

func innermost(err error) error {
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return err
}

func TestPanicOfAFetchReachesItsCallers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		here := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		there := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		c.Does(func() { panic("oh no") })

		p, ok := here.Outcome().Panicked.(*fetchonce.PanicError)
		if !ok || p.Value != "oh no" || !strings.Contains(string(p.Stack), "TestPanicOfAFetchReachesItsCallers") {
			t.Errorf("in the fetching process: panic with %v, want a PanicError with the stack of the fetch", p)
		}
		out := there.Outcome()
		if _, ok := errors.AsType[*fetchonce.Error](out.Err); !ok || !strings.Contains(out.Err.Error(), "panicked: oh no") {
			t.Errorf("in the other process: %v, %v; want an *Error with the panic's value", out.Err, out.Panicked)
		}
		g := testkit.Get(t, t.Context(), other, "k", o)
		o.Next().Returns("v")
		g.Want("v")
		o.Want(2)
	})
}

func TestGoexitOfAFetchIsAnError(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		here := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		there := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		c.Does(runtime.Goexit)
		for _, g := range []*testkit.Getter{here, there} {
			if out := g.Outcome(); out.Err == nil || !strings.Contains(out.Err.Error(), "Goexit") {
				t.Errorf("Get = %q, %v, panic %v; want an error that names Goexit", out.Value, out.Err, out.Panicked)
			}
		}
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("v")
		g.Want("v")
	})
}

// Another process deletes the key during its fetch. The fetched value may be older than the Delete.
func TestDeleteDuringFetchDiscardsTheValue(t *testing.T) {
	for name, ignores := range map[string]bool{"the fetch obeys its context": false, "the fetch ignores its context": true} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				o := testkit.NewOrigin(t)
				o.Ignore = ignores
				holder, deleter := newLoader(t, r), newLoader(t, r)
				early := testkit.Get(t, t.Context(), holder, "k", o)
				old := o.Next()
				if err := deleter.Delete(t.Context(), "k"); err != nil {
					t.Fatal(err)
				}
				<-old.Ctx.Done() // the holder is notified
				if cause := context.Cause(old.Ctx); !errors.Is(cause, fetchonce.ErrLockLost) {
					t.Errorf("the fetch was cancelled because of %v, want ErrLockLost", cause)
				}
				late := []*testkit.Getter{testkit.Get(t, t.Context(), holder, "k", o), testkit.Get(t, t.Context(), deleter, "k", o)}
				c := o.Next() // the fetch of the late callers
				old.Returns("old")
				r.Settle()
				c.Returns("new")
				for _, g := range late {
					g.Want("new")
				}
				// A caller from before the Delete may have either.
				if out := early.Outcome(); out.Err != nil || out.Value != "new" && !ignores {
					t.Errorf("the early caller got %q, %v", out.Value, out.Err)
				}
				testkit.WantKept(t, deleter, "new")
				o.Want(2)
			})
		})
	}
}

func TestDeleteDuringFillDiscardsTheValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		slow := r.Client()
		gate := testkit.NewGate(slow)
		holder, deleter := testkit.LoaderOf(t, slow, func(opt *options) { opt.Lease = time.Minute }), newLoader(t, r)
		early := testkit.Get(t, t.Context(), holder, "k", o)
		old := o.Next()
		during := testkit.Get(t, t.Context(), holder, "k", o) // joins the flight during the fetch
		r.Until("the second has joined", func() bool { return holder.Callers("k") == 2 })
		gate.Shut()
		old.Returns("old")
		<-gate.Stopped // the FILL is held back

		if err := deleter.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		late := testkit.Get(t, t.Context(), deleter, "k", o)
		o.Next().Returns("new")
		late.Want("new")
		gate.Open()
		early.Want("old") // fetched after it came, before the Delete
		during.Want("new")
		testkit.Get(t, t.Context(), holder, "k", o).Want("new")
		testkit.WantKept(t, deleter, "new")
		o.Want(2)
	})
}

func TestReleaseAfterADeleteKeepsTheNextLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		slow := r.Client()
		gate := testkit.NewGate(slow)
		holder, deleter := testkit.LoaderOf(t, slow, func(opt *options) { opt.Lease = time.Minute }), newLoader(t, r)
		boom := errors.New("boom")
		early := testkit.Get(t, t.Context(), holder, "k", o)
		c := o.Next()
		gate.Shut()
		c.Fails(boom)
		<-gate.Stopped // the RELEASE is held back

		if err := deleter.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		late := testkit.Get(t, t.Context(), deleter, "k", o)
		next := o.Next()
		gate.Open()
		early.WantErr(boom)
		r.Settle()
		next.Returns("new") // its lease was not released by the earlier holder
		late.Want("new")
		testkit.WantKept(t, holder, "new")
		o.Want(2)
	})
}

// A Get that begins after a Delete in the same process does not join a flight from before.
func TestGetAfterDeleteDoesNotJoinTheEarlierFlight(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		o.Ignore = true
		l := newLoader(t, r)
		early := testkit.Get(t, t.Context(), l, "k", o)
		old := o.Next()
		if err := l.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		late := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("new")
		late.Want("new")
		old.Returns("old")
		early.Want("old")
		testkit.WantKept(t, l, "new")
	})
}

func TestSetDuringFetchDiscardsTheFetchedValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, setter := newLoader(t, r), newLoader(t, r)
		early := testkit.Get(t, t.Context(), l, "k", o)
		old := o.Next()
		waiter := testkit.Get(t, t.Context(), setter, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		if err := setter.Set(t.Context(), "k", "set"); err != nil {
			t.Fatal(err)
		}
		<-old.Ctx.Done()
		early.Want("set")
		waiter.Want("set")
		testkit.Get(t, t.Context(), l, "k", o).Want("set")
		o.Want(1)
	})
}

// The holder's process loses Redis for longer than its lease.
func TestValueFetchedBeyondItsLeaseIsNotStored(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		o.Ignore = true
		paused := r.Client()
		holder := testkit.LoaderOf(t, paused, testkit.ShortLease(r))
		early := testkit.Get(t, t.Context(), holder, "k", o)
		old := o.Next()
		redistest.WireOf(paused).Pause()

		other := newLoader(t, r, testkit.ShortLease(r))
		started := time.Now()
		late := testkit.Get(t, t.Context(), other, "k", o)
		c := o.Next() // its lease has ended
		if waited := time.Since(started); r.Fake() && waited > testkit.LeaseLength(r)+250*time.Millisecond {
			t.Errorf("the lease was taken over after %v", waited)
		}
		if !errors.Is(context.Cause(old.Ctx), fetchonce.ErrLockLost) {
			t.Error("the lease has ended, but the context of its fetch has not")
		}
		redistest.WireOf(paused).Resume()
		old.Returns("old")
		early.Want("old") // the caller came before the fetch
		r.Settle()
		if late.Returned() {
			t.Error("the late FILL of the paused holder ended the other process's wait")
		}
		c.Returns("new")
		late.Want("new")
		testkit.WantKept(t, holder, "new")
		o.Want(2)
	})
}

func TestRecheckTimerCoversALostNotification(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		lossy := r.Client()
		holder := testkit.Get(t, t.Context(), newLoader(t, r), "k", o)
		c := o.Next()
		waiter := testkit.Get(t, t.Context(), testkit.LoaderOf(t, lossy), "k", o)
		redistest.WireOf(lossy).DropMessages(redistest.All)
		testkit.AwaitWaiters(t, r, "k", 1)
		r.Settle() // the waiter is subscribed: before that, it rechecks at once
		c.Returns("v")
		holder.Want("v")
		fetched := time.Now()
		waiter.Want("v")
		if waited := time.Since(fetched); r.Fake() && (waited == 0 || waited > time.Second) {
			t.Errorf("the waiter waited %v after the lost notification, want up to a second", waited)
		}
		o.Want(1)
	})
}

// The notification carries the value. The waiter sends no command after it.
func TestNotificationCarriesTheValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb)
		warm(t, r, l) // subscribed, and Redis has the scripts
		holder := testkit.Get(t, t.Context(), newLoader(t, r), "k", o)
		c := o.Next()
		redistest.WireOf(rdb).Reset()
		waiter := make(chan fetchonce.Result[string], 1)
		go func() {
			got, _ := l.Load(t.Context(), "k", func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "", errors.New("no") })
			waiter <- got
		}()
		testkit.AwaitWaiters(t, r, "k", 1)
		c.Returns("v")
		holder.Want("v")
		if got := <-waiter; got.Value != "v" || got.Source != fetchonce.SourcePeer {
			t.Errorf("the waiter got %q from %v, want v from a peer", got.Value, got.Source)
		}
		if n := testkit.Scripts(rdb); n != 1 {
			t.Errorf("the waiter sent %d scripts, want 1: %v", n, redistest.WireOf(rdb).Commands())
		}
	})
}

// warm returns when l has received a notification from another Loader.
func warm(t *testing.T, r backend, l loader) {
	t.Helper()
	o := testkit.NewOrigin(t)
	other := newLoader(t, r)
	for {
		key := "warm" + rand.Text() // a key that no loader has loaded
		holder := testkit.Get(t, t.Context(), other, key, o)
		c := o.Next()
		waiter := make(chan fetchonce.Source, 1)
		go func() {
			got, _ := l.Load(t.Context(), key, func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "", nil })
			waiter <- got.Source
		}()
		testkit.AwaitWaiters(t, r, key, 1)
		c.Returns("v")
		holder.Want("v")
		if <-waiter == fetchonce.SourcePeer {
			return
		}
	}
}

func TestScriptsAreSentAgainAfterAScriptFlush(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, admin := newLoader(t, r), r.Client()
		flush := func() {
			if err := admin.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		for _, key := range []string{"a", "b"} {
			flush()
			g := testkit.Get(t, t.Context(), l, key, o)
			c := o.Next()
			flush()
			c.Returns("v")
			g.Want("v")
			if got, err := l.Peek(t.Context(), key); got.Value != "v" {
				t.Errorf("%q, %v is stored; want v", got.Value, err)
			}
			flush()
			if err := l.Delete(t.Context(), key); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestNotFoundIsCached(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		nothing := errors.Join(errors.New("404"), fetchonce.ErrNotFound)
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Fails(nothing)
		if out := g.Outcome(); out.Err != nothing {
			t.Errorf("Get = %v, want the fetch's error", out.Err)
		}
		testkit.Get(t, t.Context(), other, "k", o).WantErr(fetchonce.ErrNotFound)
		o.Want(1)
		if !r.Fake() {
			return
		}
		time.Sleep(30*time.Second + time.Second) // a tenth of the TTL
		g = testkit.Get(t, t.Context(), other, "k", o)
		o.Next().Returns("v")
		g.Want("v")
	})
}

// A hit on a remembered absence allocates less than one on a value, which is decoded.
func TestHitOfAnAbsenceAllocatesNoValue(t *testing.T) {
	r := redistest.Server(t).Backend()
	l := newLoader(t, r, func(opt *options) { opt.NotFoundTTL = time.Hour })
	testkit.Set(t, l, "k", "value")
	none := func(context.Context, string) (string, error) { return "", fetchonce.ErrNotFound }
	const runs = 2000 // the race detector empties pools at random, so the limit is a fraction
	allocs := func(key string) float64 {
		return testing.AllocsPerRun(1, func() {
			for range runs {
				_, _ = l.Get(t.Context(), key, none)
			}
		}) / runs
	}
	// The value is allocated, and the string in it.
	if absent, found := allocs("absent"), allocs("k"); absent > found-1.5 {
		t.Errorf("a hit on an absence makes %v allocations, and one on a value %v", absent, found)
	}
}

func TestErrorTTLSharesAFailureWithLaterCallers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		opt := func(opt *options) { opt.ErrorTTL = time.Minute }
		l, other := newLoader(t, r, opt), newLoader(t, r, opt)
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Fails(errors.New("boom"))
		_ = g.Outcome()
		for _, l := range []loader{l, other} {
			if out := testkit.Get(t, t.Context(), l, "k", o).Outcome(); out.Err == nil || innermost(out.Err).Error() != "boom" {
				t.Errorf("a later caller got %v, want the failure", out.Err)
			}
		}
		o.Want(1)
		if err := l.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		g = testkit.Get(t, t.Context(), other, "k", o)
		o.Next().Returns("v")
		g.Want("v")
	})
}

func TestFetchTimeoutEndsTheFetch(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		o.Ignore = true // the fetch hangs
		opt := func(opt *options) {
			opt.FetchTimeout = 2 * time.Second // connecting to a real server may be slow
			if r.Fake() {
				opt.FetchTimeout = 300 * time.Millisecond
			}
		}
		l, other := newLoader(t, r, opt), newLoader(t, r, opt)
		here := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		there := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		here.WantErr(fetchonce.ErrFetchTimeout)
		if cause := context.Cause(c.Ctx); !errors.Is(cause, fetchonce.ErrFetchTimeout) {
			t.Errorf("the fetch was cancelled because of %v", cause)
		}
		there.WantErr(fetchonce.ErrFetchTimeout)
		o.Want(1)
		c.Returns("too late")
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("v")
		g.Want("v")
	})
}

func TestLeaseIsRenewedWhileTheFetchRuns(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		rdb := r.Client()
		g := testkit.Get(t, t.Context(), testkit.LoaderOf(t, rdb, testkit.ShortLease(r)), "k", o)
		c := o.Next()
		before := testkit.Scripts(rdb)
		r.Until("three renewals", func() bool { return testkit.Scripts(rdb) >= before+4 })
		if c.Ctx.Err() != nil {
			t.Error("the fetch was cancelled:", context.Cause(c.Ctx))
		}
		waiter := testkit.Get(t, t.Context(), newLoader(t, r), "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		c.Returns("v")
		g.Want("v")
		waiter.Want("v")
		o.Want(1)
	})
}

func TestMaxFetchesBoundsTheFetchesOfAProcess(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r, func(opt *options) { opt.MaxFetches = 1 }), newLoader(t, r)
		first := testkit.Get(t, t.Context(), l, "a", o)
		c := o.Next()
		second, third := testkit.Get(t, t.Context(), l, "b", o), testkit.Get(t, t.Context(), l, "c", o)
		r.Until("three lookups", func() bool { return testkit.Gets(r) >= 3 })
		// A caller that waits for a permit holds no lease: another process can fetch, and
		// the value that it stores ends the wait.
		remote := testkit.Get(t, t.Context(), other, "b", o)
		o.Next().Returns("b")
		remote.Want("b")
		second.Want("b")
		o.Want(2)
		c.Returns("a")
		first.Want("a")
		o.Next().Returns("c")
		third.Want("c")
	})
}

// A fetch that Gets another key yields its permit until that Get returns.
func TestNestedGetsYieldTheirPermits(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, func(opt *options) { opt.MaxFetches = 1 })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var running atomic.Int64
		inner := func(context.Context, string) (string, error) {
			if n := running.Add(1); n != 1 {
				t.Errorf("%d fetches at once", n)
			}
			defer running.Add(-1)
			time.Sleep(time.Millisecond)
			return "v", nil
		}
		outer := func(ctx context.Context, key string) (string, error) {
			var all errgroup.Group
			for _, other := range []string{"x", "y", key + "z"} {
				all.Go(func() error {
					_, err := l.Get(ctx, other, inner)
					return err
				})
			}
			if err := all.Wait(); err != nil {
				return "", err
			}
			return inner(ctx, key) // the outer fetch has its permit again
		}
		var all errgroup.Group
		for _, key := range []string{"a", "b", "c", "d"} {
			all.Go(func() error {
				_, err := l.Get(ctx, key, outer)
				return err
			})
		}
		if err := all.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestLoadReportsTheSource(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, other := newLoader(t, r), newLoader(t, r)
		var fences []int64
		fetch := func(_ context.Context, f *fetchonce.Fetch[string]) (string, error) {
			if r.Fake() {
				time.Sleep(time.Millisecond) // a fence is a time, which stands still in a bubble
			}
			fences = append(fences, f.Fence)
			return "v of " + f.Key, nil
		}
		for _, want := range []fetchonce.Source{fetchonce.SourceFetch, fetchonce.SourceRedis} {
			for _, l := range []loader{l, other} {
				if want == fetchonce.SourceFetch {
					if err := other.Delete(t.Context(), "k"); err != nil {
						t.Fatal(err)
					}
				}
				if got, err := l.Load(t.Context(), "k", fetch); got.Source != want || got.Value != "v of k" || err != nil {
					t.Errorf("Load = %+v, %v; want it from %v", got, err, want)
				}
			}
		}
		if len(fences) != 2 || fences[0] <= 0 || fences[1] <= fences[0] {
			t.Errorf("fences %v do not rise", fences)
		}
		if r.Fake() {
			time.Sleep(time.Minute)
			if got, _ := l.Peek(t.Context(), "k"); got.Age != time.Minute {
				t.Errorf("after a minute its age is %v", got.Age)
			}
		}
	})
}

func TestFetchSetsTheTTL(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, func(opt *options) { opt.Jitter = fetchonce.Off })
		for _, test := range []struct{ set, want time.Duration }{{0, 5 * time.Minute}, {time.Hour, time.Hour}, {-1, 0}, {time.Microsecond, 0}} {
			key := test.set.String()
			got, err := l.Load(t.Context(), key, func(_ context.Context, f *fetchonce.Fetch[string]) (string, error) {
				f.TTL = test.set
				return "v", nil
			})
			if got.Value != "v" || err != nil {
				t.Fatalf("Load = %v, %v", got, err)
			}
			left, err := r.Client().PTTL(t.Context(), "test:v:{"+key+"}").Result()
			if err != nil || left > test.want || left < test.want-10*time.Second && test.want > 0 {
				t.Errorf("with a TTL of %v it is kept for %v, %v; want %v", test.set, left, err, test.want)
			}
		}
	})
}

func TestTTLHasJitter(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, admin := newLoader(t, r, func(opt *options) { opt.TTL, opt.Jitter = time.Hour, 0.5 }), r.Client()
		ttls := map[time.Duration]bool{}
		for i := range 20 {
			key := strings.Repeat("k", i+1)
			if err := l.Set(t.Context(), key, "v"); err != nil {
				t.Fatal(err)
			}
			left := admin.PTTL(t.Context(), "test:v:{"+key+"}").Val()
			if left > time.Hour || left < 30*time.Minute-time.Minute {
				t.Errorf("kept for %v, want half an hour to an hour", left)
			}
			ttls[left.Round(time.Minute)] = true
		}
		if len(ttls) < 5 {
			t.Errorf("20 values have %d different TTLs, want 5 at least", len(ttls))
		}
	})
}

func TestTooLargeValueIsReturnedAndNotStored(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, func(opt *options) { opt.MaxBytes = 1000 })
		o := testkit.NewOrigin(t)
		long := strings.Repeat("x", 2000)
		for n := 1; n <= 2; n++ {
			g := testkit.Get(t, t.Context(), l, "k", o)
			o.Next().Returns(long)
			g.Want(long)
			o.Want(n)
		}
		err := l.Set(t.Context(), "k", long)
		if e, ok := errors.AsType[*fetchonce.Error](err); !ok || e.Op != "encode" {
			t.Errorf("Set = %v, want an *Error", err)
		}
	})
}

func TestWaitersReceiveALargeValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		large := strings.Repeat("large ", 20_000)
		g := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		waiter := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		c.Returns(large)
		g.Want(large)
		waiter.Want(large)
		testkit.Get(t, t.Context(), other, "k", o).Want(large)
		if err := other.Set(t.Context(), "k", large+"!"); err != nil {
			t.Fatal(err)
		}
		testkit.Get(t, t.Context(), l, "k", o).Want(large + "!")
		o.Want(1)
		testkit.WantNoKeyForEver(t, r)
	})
}

func TestEachCallerReceivesAClone(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		var clones atomic.Int64
		l, err := fetchonce.New(r.Client(), fetchonce.Options[*[]int]{Prefix: "test", Clone: func(v *[]int) *[]int {
			clones.Add(1)
			c := append([]int{}, *v...)
			return &c
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		began, answer := make(chan struct{}, 10), make(chan struct{})
		results := make(chan *[]int, 10)
		for range 10 {
			go func() {
				v, err := l.Get(t.Context(), "k", func(context.Context, string) (*[]int, error) {
					began <- struct{}{}
					<-answer
					return &[]int{1, 2, 3}, nil
				})
				if err != nil {
					t.Error(err)
				}
				(*v)[0]++ // a race if the value is shared
				results <- v
			}()
		}
		<-began
		r.Settle()
		close(answer)
		for range 10 {
			if v := <-results; (*v)[0] != 2 {
				t.Errorf("a caller has %v, which another caller has changed", *v)
			}
		}
		if r.Fake() && clones.Load() != 10 {
			t.Errorf("%d clones for 10 callers", clones.Load())
		}
	})
}

func TestReentrantGetIsRefused(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r)
		_, err := l.Get(t.Context(), "k", func(ctx context.Context, key string) (string, error) {
			return l.Get(ctx, key, func(context.Context, string) (string, error) { return "inner", nil })
		})
		if e, ok := errors.AsType[*fetchonce.Error](err); !ok || !strings.Contains(e.Error(), "wait for itself") {
			t.Errorf("Get = %v, want an *Error that says that it would wait for itself", err)
		}
		got, err := l.Get(t.Context(), "k", func(ctx context.Context, key string) (string, error) {
			return l.Get(ctx, "another key", func(context.Context, string) (string, error) { return "inner", nil })
		})
		if got != "inner" || err != nil {
			t.Errorf("Get of another key = %q, %v", got, err)
		}
	})
}

func TestCloseEndsFetchesAndWaits(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r, func(opt *options) { opt.Lease = time.Minute }), newLoader(t, r)
		var all []*testkit.Getter
		for range 20 {
			all = append(all, testkit.Get(t, t.Context(), l, "k", o))
		}
		c := o.Next()
		waiter := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		r.Settle()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if cause := context.Cause(c.Ctx); !errors.Is(cause, fetchonce.ErrClosed) {
			t.Errorf("the fetch was cancelled because of %v", cause)
		}
		for _, g := range all {
			g.WantErr(fetchonce.ErrClosed)
		}
		o.Next().Returns("v") // Close released the lease
		waiter.Want("v")

		if err := l.Close(); err != nil {
			t.Error("second Close:", err)
		}
		_, peekErr := l.Peek(t.Context(), "k")
		_, getErr := l.Get(t.Context(), "k", o.Fetch)
		for _, err := range []error{peekErr, getErr, l.Set(t.Context(), "k", "v"), l.Delete(t.Context(), "k")} {
			if err != fetchonce.ErrClosed {
				t.Errorf("after Close: %v, want ErrClosed", err)
			}
		}
	})
}

func TestInvalidCallsSendNoCommand(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, noFetch := l.Get(t.Context(), "k", nil)
		_, noFetchLoad := l.Load(t.Context(), "k", nil)
		_, noCtx := l.Get(nil, "k", testkit.NewOrigin(t).Fetch) //nolint:staticcheck // a nil context is the point
		for _, err := range []error{noFetch, noFetchLoad, noCtx} {
			if _, ok := errors.AsType[*fetchonce.Error](err); !ok {
				t.Errorf("got %v, want an *Error", err)
			}
		}
		if _, err := l.Get(ended, "k", testkit.NewOrigin(t).Fetch); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
		if sent := redistest.WireOf(rdb).Commands(); len(sent) > 0 {
			t.Errorf("%v was sent", sent)
		}
	})
}

func TestPeekNeverFetches(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r)
		if _, err := l.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek of nothing: %v, want ErrNotFound", err)
		}
		if err := l.Set(t.Context(), "k", "v"); err != nil {
			t.Fatal(err)
		}
		if got, err := l.Peek(t.Context(), "k"); got.Value != "v" || got.Source != fetchonce.SourceRedis || err != nil {
			t.Errorf("Peek = %+v, %v", got, err)
		}
	})
}
