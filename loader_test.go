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
)

func TestOneFetchForAllCallersInAllProcesses(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		var all []*getter
		for range 4 {
			l := newLoader(t, r)
			for range 250 {
				all = append(all, get(t, t.Context(), l, "k", o))
			}
		}
		c := o.next()
		r.Settle() // in a bubble all of them wait by now
		c.returns("v")
		for _, g := range all {
			g.want("v")
		}
		o.want(1)
	})
}

// Two callers have seen that there is no value. The second comes to ask for the
// lease when the first has fetched, stored and released.
func TestRecheckAfterAcquiring(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		slow := r.Client()
		gate := newGate(slow)
		gate.shut()
		second := get(t, t.Context(), loaderOf(t, slow), "k", o)
		<-gate.stopped // between its miss and its ACQUIRE

		first := get(t, t.Context(), newLoader(t, r), "k", o)
		o.next().returns("v")
		first.want("v")

		gate.open()
		second.want("v")
		o.want(1)
	})
}

func TestLeaderMayLeave(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		rdb := r.Client()
		l := loaderOf(t, rdb)
		ctx, cancel := context.WithCancel(t.Context())
		leader := get(t, ctx, l, "k", o)
		c := o.next()
		others := []*getter{get(t, t.Context(), l, "k", o), get(t, t.Context(), newLoader(t, r), "k", o)}
		r.Until("the other has joined", func() bool { return l.Callers("k") == 2 })
		awaitWaiters(t, r, "k", 1)

		cancel()
		leader.wantErr(context.Canceled)
		if c.ctx.Err() != nil {
			t.Error("the fetch was cancelled when the leader left:", context.Cause(c.ctx))
		}
		c.returns("v")
		for _, g := range others {
			g.want("v")
		}
		if r.Fake() {
			o.want(1)
		}
	})
}

// gets returns how many reads of values all clients have sent.
func gets(r backend) int {
	return strings.Count(strings.Join(r.Wire().Commands(), " "), "GETRANGE")
}

func TestLastCallerOutFreesTheLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l := newLoader(t, r, func(opt *options) { opt.Lease = time.Minute })
		ctx, cancel := context.WithCancel(t.Context())
		g := get(t, ctx, l, "k", o)
		c := o.next()
		waiter := get(t, t.Context(), newLoader(t, r), "k", o)
		awaitWaiters(t, r, "k", 1)

		started := time.Now()
		cancel()
		g.wantErr(context.Canceled)
		<-c.ctx.Done()
		o.next().returns("v") // the other process has the lease, of which an hour was left
		if waited := time.Since(started); r.Fake() && waited != 0 {
			t.Errorf("the lease was free after %v, want at once", waited)
		}
		waiter.want("v")
		o.want(2)
	})
}

func TestNewcomerStartsAfresh(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		o.ignore = true // so that the cancelled fetch is still there
		l := newLoader(t, r)
		ctx, cancel := context.WithCancel(t.Context())
		g := get(t, ctx, l, "k", o)
		old := o.next()
		cancel()
		g.wantErr(context.Canceled)

		newcomer := get(t, t.Context(), l, "k", o)
		c := o.next()
		if c.ctx.Err() != nil {
			t.Error("the newcomer inherited the cancellation")
		}
		old.returns("old")
		r.Settle()
		c.returns("new")
		newcomer.want("new")
		get(t, t.Context(), l, "k", o).want("new")
		o.want(2)
	})
}

func TestWaiterHasItsOwnDeadline(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		g := get(t, t.Context(), l, "k", o)
		c := o.next()
		started := time.Now()
		for _, waiting := range []loader{l, other} {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			get(t, ctx, waiting, "k", o).wantErr(context.DeadlineExceeded)
		}
		if waited := time.Since(started); r.Fake() && waited != 100*time.Millisecond {
			t.Errorf("two callers with 50 ms each left after %v", waited)
		}
		c.returns("v")
		g.want("v")
	})
}

func TestFailureIsSharedAndNotRemembered(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		boom := errors.New("boom: the origin is down")
		clients := []loader{newLoader(t, r), newLoader(t, r), newLoader(t, r), newLoader(t, r)}
		for _, l := range clients {
			warm(t, r, l) // who does not hear of a failure fetches himself
		}
		ours := get(t, t.Context(), clients[0], "k", o)
		c := o.next()
		var all []*getter
		for _, l := range clients {
			for range 5 {
				all = append(all, get(t, t.Context(), l, "k", o))
			}
		}
		for i, l := range clients {
			want := 5
			if i == 0 {
				want = 6
			}
			r.Until("all callers wait", func() bool { return l.Callers("k") == want })
		}
		awaitWaiters(t, r, "k", 3)
		r.Settle()
		c.fails(boom)
		if out := ours.outcome(); out.err != boom {
			t.Errorf("the error came back as %v", out.err)
		}
		for _, g := range all {
			out := g.outcome()
			if out.err == nil || innermost(out.err).Error() != boom.Error() {
				t.Errorf("a caller got %v, want the text of %v", out.err, boom)
			}
			if e, ok := errors.AsType[*fetchonce.Error](out.err); out.err != boom && (!ok || e.Op != "fetch" || e.Key != "k") {
				t.Errorf("another process got %v, want an *Error of a fetch", out.err)
			}
		}
		o.want(1)

		g := get(t, t.Context(), clients[3], "k", o)
		o.next().returns("v")
		g.want("v")
		o.want(2)
	})
}

func innermost(err error) error {
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return err
}

func TestPanicIsPassedOn(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		here := get(t, t.Context(), l, "k", o)
		c := o.next()
		there := get(t, t.Context(), other, "k", o)
		awaitWaiters(t, r, "k", 1)
		c.does(func() { panic("oh no") })

		p, ok := here.outcome().panicked.(*fetchonce.PanicError)
		if !ok || p.Value != "oh no" || !strings.Contains(string(p.Stack), "TestPanicIsPassedOn") {
			t.Errorf("here: panic with %v, want a PanicError with the stack of the fetch", p)
		}
		out := there.outcome()
		if _, ok := errors.AsType[*fetchonce.Error](out.err); !ok || !strings.Contains(out.err.Error(), "panicked: oh no") {
			t.Errorf("there: %v, %v; want an *Error that says so", out.err, out.panicked)
		}
		g := get(t, t.Context(), other, "k", o)
		o.next().returns("v")
		g.want("v")
		o.want(2)
	})
}

func TestGoexitIsAnError(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		here := get(t, t.Context(), l, "k", o)
		c := o.next()
		there := get(t, t.Context(), other, "k", o)
		awaitWaiters(t, r, "k", 1)
		c.does(runtime.Goexit)
		for _, g := range []*getter{here, there} {
			if out := g.outcome(); out.err == nil || !strings.Contains(out.err.Error(), "Goexit") {
				t.Errorf("Get = %q, %v, panic %v; want an error that names Goexit", out.value, out.err, out.panicked)
			}
		}
		g := get(t, t.Context(), l, "k", o)
		o.next().returns("v")
		g.want("v")
	})
}

// Somebody deletes the key while its fetch is running. What that finds is older
// than the Delete.
func TestDeleteDuringFetch(t *testing.T) {
	for name, ignores := range map[string]bool{"the fetch heeds its context": false, "the fetch goes on": true} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				o := newOrigin(t)
				o.ignore = ignores
				holder, deleter := newLoader(t, r), newLoader(t, r)
				early := get(t, t.Context(), holder, "k", o)
				old := o.next()
				if err := deleter.Delete(t.Context(), "k"); err != nil {
					t.Fatal(err)
				}
				<-old.ctx.Done() // the holder is told
				if cause := context.Cause(old.ctx); !errors.Is(cause, fetchonce.ErrLockLost) {
					t.Errorf("the fetch was cancelled because of %v, want ErrLockLost", cause)
				}
				late := []*getter{get(t, t.Context(), holder, "k", o), get(t, t.Context(), deleter, "k", o)}
				c := o.next() // somebody fetches again
				old.returns("old")
				r.Settle()
				c.returns("new")
				for _, g := range late {
					g.want("new")
				}
				// Who was there before the Delete may have either.
				if out := early.outcome(); out.err != nil || out.value != "new" && !ignores {
					t.Errorf("the early caller got %q, %v", out.value, out.err)
				}
				wantKept(t, deleter, "new")
				o.want(2)
			})
		})
	}
}

// wantKept fails the test unless a value is stored.
func wantKept(t *testing.T, l loader, value string) {
	t.Helper()
	if got, err := l.Peek(t.Context(), "k"); got.Value != value || err != nil {
		t.Errorf("%q, %v is stored; want %q", got.Value, err, value)
	}
}

func TestDeleteDuringFill(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		slow := r.Client()
		gate := newGate(slow)
		holder, deleter := loaderOf(t, slow, func(opt *options) { opt.Lease = time.Minute }), newLoader(t, r)
		early := get(t, t.Context(), holder, "k", o)
		old := o.next()
		during := get(t, t.Context(), holder, "k", o) // joins the flight during the fetch
		r.Until("the second has joined", func() bool { return holder.Callers("k") == 2 })
		gate.shut()
		old.returns("old")
		<-gate.stopped // the FILL is on its way

		if err := deleter.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		late := get(t, t.Context(), deleter, "k", o)
		o.next().returns("new")
		late.want("new")
		gate.open()
		early.want("old") // fetched after it came, before the Delete
		during.want("new")
		get(t, t.Context(), holder, "k", o).want("new")
		wantKept(t, deleter, "new")
		o.want(2)
	})
}

func TestDeleteDuringRelease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		slow := r.Client()
		gate := newGate(slow)
		holder, deleter := loaderOf(t, slow, func(opt *options) { opt.Lease = time.Minute }), newLoader(t, r)
		boom := errors.New("boom")
		early := get(t, t.Context(), holder, "k", o)
		c := o.next()
		gate.shut()
		c.fails(boom)
		<-gate.stopped // the RELEASE is on its way

		if err := deleter.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		late := get(t, t.Context(), deleter, "k", o)
		next := o.next()
		gate.open()
		early.wantErr(boom)
		r.Settle()
		next.returns("new") // its lease was not released by the other
		late.want("new")
		wantKept(t, holder, "new")
		o.want(2)
	})
}

// A Get that begins after a Delete in the same process does not join the load
// that was running before.
func TestGetAfterDeleteDoesNotJoinTheOldLoad(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		o.ignore = true
		l := newLoader(t, r)
		early := get(t, t.Context(), l, "k", o)
		old := o.next()
		if err := l.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		late := get(t, t.Context(), l, "k", o)
		o.next().returns("new")
		late.want("new")
		old.returns("old")
		early.want("old")
		wantKept(t, l, "new")
	})
}

func TestSetDuringFetchWins(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, setter := newLoader(t, r), newLoader(t, r)
		early := get(t, t.Context(), l, "k", o)
		old := o.next()
		waiter := get(t, t.Context(), setter, "k", o)
		awaitWaiters(t, r, "k", 1)
		if err := setter.Set(t.Context(), "k", "set"); err != nil {
			t.Fatal(err)
		}
		<-old.ctx.Done()
		early.want("set")
		waiter.want("set")
		get(t, t.Context(), l, "k", o).want("set")
		o.want(1)
	})
}

// The holder's process loses its network for longer than its lease.
func TestHolderPausedBeyondItsLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		o.ignore = true
		paused := r.Client()
		holder := loaderOf(t, paused, shortLease(r))
		early := get(t, t.Context(), holder, "k", o)
		old := o.next()
		redistest.WireOf(paused).Pause()

		other := newLoader(t, r, shortLease(r))
		started := time.Now()
		late := get(t, t.Context(), other, "k", o)
		c := o.next() // its lease has ended
		if waited := time.Since(started); r.Fake() && waited > leaseLength(r)+250*time.Millisecond {
			t.Errorf("the lease was taken over after %v", waited)
		}
		if !errors.Is(context.Cause(old.ctx), fetchonce.ErrLockLost) {
			t.Error("the lease has ended, but the context of its fetch has not")
		}
		redistest.WireOf(paused).Resume()
		old.returns("old")
		early.want("old") // it was there before the fetch began
		r.Settle()
		if late.returned() {
			t.Error("the paused holder has ended the other's wait")
		}
		c.returns("new")
		late.want("new")
		wantKept(t, holder, "new")
		o.want(2)
	})
}

func TestLostWakeUpIsFoundByTheTimer(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		deaf := r.Client()
		holder := get(t, t.Context(), newLoader(t, r), "k", o)
		c := o.next()
		waiter := get(t, t.Context(), loaderOf(t, deaf), "k", o)
		redistest.WireOf(deaf).DropMessages(redistest.All)
		awaitWaiters(t, r, "k", 1)
		c.returns("v")
		holder.want("v")
		fetched := time.Now()
		waiter.want("v")
		if waited := time.Since(fetched); r.Fake() && (waited == 0 || waited > time.Second) {
			t.Errorf("the waiter waited %v after a message that was lost, want up to a second", waited)
		}
		o.want(1)
	})
}

// The message brings the value: the waiter asks Redis nothing more.
func TestWakeUpBringsTheValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		rdb := r.Client()
		l := loaderOf(t, rdb)
		warm(t, r, l) // subscribed, and the scripts are known
		holder := get(t, t.Context(), newLoader(t, r), "k", o)
		c := o.next()
		redistest.WireOf(rdb).Reset()
		waiter := make(chan fetchonce.Result[string], 1)
		go func() {
			got, _ := l.Load(t.Context(), "k", func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "", errors.New("no") })
			waiter <- got
		}()
		awaitWaiters(t, r, "k", 1)
		c.returns("v")
		holder.want("v")
		if got := <-waiter; got.Value != "v" || got.Source != fetchonce.SourcePeer {
			t.Errorf("the waiter got %q from %v, want v from a peer", got.Value, got.Source)
		}
		if n := scripts(rdb); n != 1 {
			t.Errorf("the waiter sent %d scripts, want 1: %v", n, redistest.WireOf(rdb).Commands())
		}
	})
}

// warm has a loader load something, and hear from another.
func warm(t *testing.T, r backend, l loader) {
	t.Helper()
	o := newOrigin(t)
	other := newLoader(t, r)
	for {
		key := "warm" + rand.Text() // one that nobody has loaded
		holder := get(t, t.Context(), other, key, o)
		c := o.next()
		waiter := make(chan fetchonce.Source, 1)
		go func() {
			got, _ := l.Load(t.Context(), key, func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "", nil })
			waiter <- got.Source
		}()
		awaitWaiters(t, r, key, 1)
		c.returns("v")
		holder.want("v")
		if <-waiter == fetchonce.SourcePeer {
			return
		}
	}
}

func TestScriptFlush(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, admin := newLoader(t, r), r.Client()
		flush := func() {
			if err := admin.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		for _, key := range []string{"a", "b"} {
			flush()
			g := get(t, t.Context(), l, key, o)
			c := o.next()
			flush()
			c.returns("v")
			g.want("v")
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

func TestNotFoundIsRemembered(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		nothing := errors.Join(errors.New("404"), fetchonce.ErrNotFound)
		g := get(t, t.Context(), l, "k", o)
		o.next().fails(nothing)
		if out := g.outcome(); out.err != nothing {
			t.Errorf("the error came back as %v", out.err)
		}
		get(t, t.Context(), other, "k", o).wantErr(fetchonce.ErrNotFound)
		o.want(1)
		if !r.Fake() {
			return
		}
		time.Sleep(30*time.Second + time.Second) // a tenth of the TTL
		g = get(t, t.Context(), other, "k", o)
		o.next().returns("v")
		g.want("v")
	})
}

func TestErrorTTLSharesAFailureWithLaterCallers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		opt := func(opt *options) { opt.ErrorTTL = time.Minute }
		l, other := newLoader(t, r, opt), newLoader(t, r, opt)
		g := get(t, t.Context(), l, "k", o)
		o.next().fails(errors.New("boom"))
		_ = g.outcome()
		for _, l := range []loader{l, other} {
			if out := get(t, t.Context(), l, "k", o).outcome(); out.err == nil || innermost(out.err).Error() != "boom" {
				t.Errorf("a later caller got %v, want the failure", out.err)
			}
		}
		o.want(1)
		if err := l.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		g = get(t, t.Context(), other, "k", o)
		o.next().returns("v")
		g.want("v")
	})
}

func TestFetchTimeout(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		o.ignore = true // a fetch that hangs for ever
		opt := func(opt *options) {
			opt.FetchTimeout = 2 * time.Second // a real server's client may be slow to be there
			if r.Fake() {
				opt.FetchTimeout = 300 * time.Millisecond
			}
		}
		l, other := newLoader(t, r, opt), newLoader(t, r, opt)
		here := get(t, t.Context(), l, "k", o)
		c := o.next()
		there := get(t, t.Context(), other, "k", o)
		awaitWaiters(t, r, "k", 1)
		here.wantErr(fetchonce.ErrFetchTimeout)
		if cause := context.Cause(c.ctx); !errors.Is(cause, fetchonce.ErrFetchTimeout) {
			t.Errorf("the fetch was cancelled because of %v", cause)
		}
		there.wantErr(fetchonce.ErrFetchTimeout)
		o.want(1)
		c.returns("too late")
		g := get(t, t.Context(), l, "k", o)
		o.next().returns("v")
		g.want("v")
	})
}

func TestLeaseIsRenewedWhileTheFetchRuns(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		rdb := r.Client()
		g := get(t, t.Context(), loaderOf(t, rdb, shortLease(r)), "k", o)
		c := o.next()
		before := scripts(rdb)
		r.Until("three renewals", func() bool { return scripts(rdb) >= before+4 })
		if c.ctx.Err() != nil {
			t.Error("the fetch was cancelled:", context.Cause(c.ctx))
		}
		waiter := get(t, t.Context(), newLoader(t, r), "k", o)
		awaitWaiters(t, r, "k", 1)
		c.returns("v")
		g.want("v")
		waiter.want("v")
		o.want(1)
	})
}

func TestMaxFetches(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, other := newLoader(t, r, func(opt *options) { opt.MaxFetches = 1 }), newLoader(t, r)
		first := get(t, t.Context(), l, "a", o)
		c := o.next()
		second, third := get(t, t.Context(), l, "b", o), get(t, t.Context(), l, "c", o)
		r.Until("all have looked", func() bool { return gets(r) >= 3 })
		// Those who wait their turn hold no lease: another process can fetch, and
		// what it stores ends the wait.
		elsewhere := get(t, t.Context(), other, "b", o)
		o.next().returns("b")
		elsewhere.want("b")
		second.want("b")
		o.want(2)
		c.returns("a")
		first.want("a")
		o.next().returns("c")
		third.want("c")
	})
}

// A fetch that Gets another key waits for a turn too. It lends its own.
func TestNestedGetsWithMaxFetches(t *testing.T) {
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
			return inner(ctx, key) // we have a turn again
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

func TestLoadTellsTheSource(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, other := newLoader(t, r), newLoader(t, r)
		var fences []int64
		fetch := func(_ context.Context, f *fetchonce.Fetch[string]) (string, error) {
			if r.Fake() {
				time.Sleep(time.Millisecond) // a fence is a time: that of a bubble has to be moved
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
		seen := map[time.Duration]bool{}
		for i := range 20 {
			key := strings.Repeat("k", i+1)
			if err := l.Set(t.Context(), key, "v"); err != nil {
				t.Fatal(err)
			}
			left := admin.PTTL(t.Context(), "test:v:{"+key+"}").Val()
			if left > time.Hour || left < 30*time.Minute-time.Minute {
				t.Errorf("kept for %v, want half an hour to an hour", left)
			}
			seen[left.Round(time.Minute)] = true
		}
		if len(seen) < 5 {
			t.Errorf("20 values are kept for %d different times", len(seen))
		}
	})
}

func TestTooLargeIsReturnedAndNotKept(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, func(opt *options) { opt.MaxBytes = 1000 })
		o := newOrigin(t)
		long := strings.Repeat("x", 2000)
		for n := 1; n <= 2; n++ {
			g := get(t, t.Context(), l, "k", o)
			o.next().returns(long)
			g.want(long)
			o.want(n)
		}
		err := l.Set(t.Context(), "k", long)
		if e, ok := errors.AsType[*fetchonce.Error](err); !ok || e.Op != "encode" {
			t.Errorf("Set = %v, want an *Error", err)
		}
	})
}

func TestLargeValueTravels(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		large := strings.Repeat("large ", 20_000)
		g := get(t, t.Context(), l, "k", o)
		c := o.next()
		waiter := get(t, t.Context(), other, "k", o)
		awaitWaiters(t, r, "k", 1)
		c.returns(large)
		g.want(large)
		waiter.want(large)
		get(t, t.Context(), other, "k", o).want(large)
		if err := other.Set(t.Context(), "k", large+"!"); err != nil {
			t.Fatal(err)
		}
		get(t, t.Context(), l, "k", o).want(large + "!")
		o.want(1)
		wantNoKeyForEver(t, r)
	})
}

func TestCloneForEachCaller(t *testing.T) {
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
				(*v)[0]++ // a race, if it were shared
				results <- v
			}()
		}
		<-began
		r.Settle()
		close(answer)
		for range 10 {
			if v := <-results; (*v)[0] != 2 {
				t.Errorf("a caller has %v, which another has changed", *v)
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
			t.Errorf("Get = %v, want an *Error that says so", err)
		}
		got, err := l.Get(t.Context(), "k", func(ctx context.Context, key string) (string, error) {
			return l.Get(ctx, "another key", func(context.Context, string) (string, error) { return "inner", nil })
		})
		if got != "inner" || err != nil {
			t.Errorf("Get of another key = %q, %v", got, err)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, other := newLoader(t, r, func(opt *options) { opt.Lease = time.Minute }), newLoader(t, r)
		var all []*getter
		for range 20 {
			all = append(all, get(t, t.Context(), l, "k", o))
		}
		c := o.next()
		waiter := get(t, t.Context(), other, "k", o)
		awaitWaiters(t, r, "k", 1)
		r.Settle()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if cause := context.Cause(c.ctx); !errors.Is(cause, fetchonce.ErrClosed) {
			t.Errorf("the fetch was cancelled because of %v", cause)
		}
		for _, g := range all {
			g.wantErr(fetchonce.ErrClosed)
		}
		o.next().returns("v") // the lease was given back
		waiter.want("v")

		if err := l.Close(); err != nil {
			t.Error("closing again:", err)
		}
		_, peekErr := l.Peek(t.Context(), "k")
		_, getErr := l.Get(t.Context(), "k", o.fetch)
		for _, err := range []error{peekErr, getErr, l.Set(t.Context(), "k", "v"), l.Delete(t.Context(), "k")} {
			if err != fetchonce.ErrClosed {
				t.Errorf("after Close: %v, want ErrClosed", err)
			}
		}
	})
}

func TestBadCallsAreRefusedBeforeAnythingIsSent(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l := loaderOf(t, rdb)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, noFetch := l.Get(t.Context(), "k", nil)
		_, noFetchLoad := l.Load(t.Context(), "k", nil)
		_, noCtx := l.Get(nil, "k", newOrigin(t).fetch) //nolint:staticcheck // a nil context is the point
		for _, err := range []error{noFetch, noFetchLoad, noCtx} {
			if _, ok := errors.AsType[*fetchonce.Error](err); !ok {
				t.Errorf("got %v, want an *Error", err)
			}
		}
		if _, err := l.Get(ended, "k", newOrigin(t).fetch); !errors.Is(err, context.Canceled) {
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

// wantNoKeyForEver fails the test if a key would stay.
func wantNoKeyForEver(t *testing.T, r backend) {
	t.Helper()
	for _, key := range keys(t, r) {
		if left := r.Client().PTTL(t.Context(), key).Val(); left < 0 {
			t.Errorf("%q has no end (%v)", key, left)
		}
	}
}
