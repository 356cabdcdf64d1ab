package flight_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/flight"
)

type call = flight.Call[string]

// An origin has loads that go on until they are told how to end, or until
// their context ends.
type origin struct {
	loads  atomic.Int32
	answer chan answer
	ended  chan error // receives the cause when a context ended a load
}

type answer struct {
	v   string
	err error
}

func newOrigin() *origin {
	return &origin{answer: make(chan answer), ended: make(chan error, 10)}
}

func (o *origin) load(ctx context.Context, c *call) (string, error) {
	o.loads.Add(1)
	c.Mark()
	select {
	case a := <-o.answer:
		return a.v, a.err
	case <-ctx.Done():
		o.ended <- context.Cause(ctx)
		return "", context.Cause(ctx)
	}
}

// A result is what a caller got.
type result struct {
	v    string
	late bool
	err  error
}

// do calls Do on a goroutine of its own.
func do(ctx context.Context, g *flight.Group[string], key string, load func(context.Context, *call) (string, error)) <-chan result {
	got := make(chan result, 1)
	go func() {
		v, late, err := g.Do(ctx, key, load)
		got <- result{v, late, err}
	}()
	return got
}

func wantResult(t *testing.T, who string, got <-chan result, want result) {
	t.Helper()
	select {
	case r := <-got:
		if r.v != want.v || r.late != want.late || !errors.Is(r.err, want.err) {
			t.Errorf("%s got %q, late %v, %v; want %q, late %v, %v", who, r.v, r.late, r.err, want.v, want.late, want.err)
		}
	default:
		t.Errorf("%s still waits, want %+v", who, want)
	}
}

func wantWaiting(t *testing.T, who string, got <-chan result) {
	t.Helper()
	select {
	case r := <-got:
		t.Errorf("%s got %+v, want it to wait", who, r)
	default:
	}
}

func unexpected(t *testing.T) func(context.Context, *call) (string, error) {
	t.Helper()
	return func(context.Context, *call) (string, error) {
		t.Error("a second load began")
		return "", nil
	}
}

func TestManyCallersShareOneLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		var callers []<-chan result
		for range 50 {
			callers = append(callers, do(t.Context(), &g, "k", func(ctx context.Context, c *call) (string, error) {
				v, err := o.load(ctx, c)
				c.Mark()
				return v, err
			}))
		}
		synctest.Wait()
		o.answer <- answer{v: "v"}
		synctest.Wait()
		for i, got := range callers {
			wantResult(t, fmt.Sprint("caller ", i), got, result{v: "v"})
		}
		if n := o.loads.Load(); n != 1 {
			t.Errorf("%d loads, want 1", n)
		}
	})
}

func TestEachKeyHasItsOwnLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		a, b := newOrigin(), newOrigin()
		ofA, ofB := do(t.Context(), &g, "k", a.load), do(t.Context(), &g, "b", b.load)
		synctest.Wait()
		b.answer <- answer{v: "of b"}
		synctest.Wait()
		wantResult(t, "the caller of b", ofB, result{v: "of b"})
		wantWaiting(t, "the caller of a", ofA)
		a.answer <- answer{v: "of a"}
		synctest.Wait()
		wantResult(t, "the caller of a", ofA, result{v: "of a"})
	})
}

func TestFailureIsEverybodys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		failed := errors.New("failed")
		load := func(ctx context.Context, c *call) (string, error) {
			v, err := o.load(ctx, c)
			c.Mark()
			return v, err
		}
		a, b := do(t.Context(), &g, "k", load), do(t.Context(), &g, "k", load)
		synctest.Wait()
		o.answer <- answer{err: failed}
		synctest.Wait()
		wantResult(t, "the first caller", a, result{err: failed})
		wantResult(t, "the second caller", b, result{err: failed})
	})
}

func TestLoadsOneAfterAnotherAreNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		for _, v := range []string{"first", "second"} {
			got := do(t.Context(), &g, "k", o.load)
			synctest.Wait()
			o.answer <- answer{v: v}
			synctest.Wait()
			wantResult(t, "the caller", got, result{v: v})
		}
	})
}

func TestWaiterMayLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		first, leaveFirst := context.WithCancel(t.Context())
		second, leaveSecond := context.WithTimeout(t.Context(), time.Second)
		defer leaveSecond()
		a := do(first, &g, "k", o.load)
		synctest.Wait()
		b := do(second, &g, "k", unexpected(t))
		c := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()

		leaveFirst() // also the one whose load it was
		synctest.Wait()
		wantResult(t, "the one that was canceled", a, result{err: context.Canceled})
		wantWaiting(t, "the one with a timeout", b)

		time.Sleep(time.Second)
		synctest.Wait()
		wantResult(t, "the one with a timeout", b, result{err: context.DeadlineExceeded})
		wantWaiting(t, "the one that stays", c)

		select {
		case cause := <-o.ended:
			t.Fatalf("the load was ended by %v although somebody waits for it", cause)
		default:
		}
		o.answer <- answer{v: "v"}
		synctest.Wait()
		wantResult(t, "the one that stays", c, result{late: true}) // see TestLateCallerIsTold
	})
}

func TestLastCallerToLeaveEndsTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		ctx, leave := context.WithCancel(t.Context())
		a, b := do(ctx, &g, "k", o.load), do(ctx, &g, "k", o.load)
		synctest.Wait()
		leave()
		synctest.Wait()
		wantResult(t, "a", a, result{err: context.Canceled})
		wantResult(t, "b", b, result{err: context.Canceled})
		select {
		case cause := <-o.ended:
			if cause != flight.ErrAbandoned {
				t.Errorf("the load ended with cause %v, want %v", cause, flight.ErrAbandoned)
			}
		default:
			t.Error("nobody waits, and the load goes on")
		}
		if n := o.loads.Load(); n != 1 {
			t.Errorf("%d loads, want 1", n)
		}
	})
}

func TestNewcomerNeverInheritsACancellation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		end := make(chan struct{})
		deaf := func(ctx context.Context, c *call) (string, error) { // it does not listen to its context
			c.Mark()
			<-end
			return "", context.Cause(ctx)
		}
		ctx, leave := context.WithCancel(t.Context())
		old := do(ctx, &g, "k", deaf)
		synctest.Wait()
		leave()
		synctest.Wait()
		wantResult(t, "the one that left", old, result{err: context.Canceled})

		o := newOrigin()
		newcomer := do(t.Context(), &g, "k", o.load)
		synctest.Wait()
		close(end)
		synctest.Wait()
		wantWaiting(t, "the newcomer", newcomer)

		// The end of the old load did not close the new one either.
		joiner := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		o.answer <- answer{v: "v"}
		synctest.Wait()
		wantResult(t, "the newcomer", newcomer, result{v: "v"})
		wantResult(t, "its joiner", joiner, result{late: true})
	})
}

func TestCallerThatHasAlreadyLeftDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		ctx, leave := context.WithCancel(t.Context())
		leave()
		got := do(ctx, &g, "k", o.load)
		synctest.Wait()
		wantResult(t, "the caller", got, result{err: context.Canceled})
		if cause := <-o.ended; cause != flight.ErrAbandoned {
			t.Errorf("the load ended with cause %v, want %v", cause, flight.ErrAbandoned)
		}
	})
}

func TestClosedLoadTakesNobodyIn(t *testing.T) {
	closings := map[string]func(g *flight.Group[string], c *call){
		"by the load":    func(_ *flight.Group[string], c *call) { c.Close() },
		"by its group":   func(g *flight.Group[string], _ *call) { g.Forget("k") },
		"by both, twice": func(g *flight.Group[string], c *call) { c.Close(); g.Forget("k"); c.Close() },
	}
	for name, closing := range closings {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g flight.Group[string]
				o := newOrigin()
				before := do(t.Context(), &g, "k", func(ctx context.Context, c *call) (string, error) {
					c.Mark()
					closing(&g, c)
					return o.load(ctx, c)
				})
				synctest.Wait()
				p := newOrigin()
				after := do(t.Context(), &g, "k", p.load)
				synctest.Wait()

				o.answer <- answer{v: "old"}
				synctest.Wait()
				wantResult(t, "the one that came before", before, result{v: "old"})
				wantWaiting(t, "the one that came after", after)

				joiner := do(t.Context(), &g, "k", unexpected(t)) // the end of the old load did not close the new one
				synctest.Wait()
				p.answer <- answer{v: "new"}
				synctest.Wait()
				wantResult(t, "the one that came after", after, result{v: "new"})
				wantResult(t, "its joiner", joiner, result{late: true})
			})
		})
	}
}

// A closed load must not close, by closing once more, the one that took its place.
func TestClosedLoadDoesNotCloseItsSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		again, end := make(chan struct{}), make(chan struct{})
		old := do(t.Context(), &g, "k", func(_ context.Context, c *call) (string, error) {
			c.Mark()
			c.Close()
			<-again
			c.Close()
			<-end
			return "old", nil
		})
		synctest.Wait()
		o := newOrigin()
		successor := do(t.Context(), &g, "k", o.load)
		synctest.Wait()
		close(again)
		synctest.Wait()
		joiner := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		close(end)
		o.answer <- answer{v: "new"}
		synctest.Wait()
		wantResult(t, "the old caller", old, result{v: "old"})
		wantResult(t, "the successor", successor, result{v: "new"})
		wantResult(t, "its joiner", joiner, result{late: true})
	})
}

// A caller of a closed load that leaves is still counted: the load ends with
// the last of those that wait for it, whoever waits for its successor.
func TestClosedLoadEndsWithItsOwnCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o, p := newOrigin(), newOrigin()
		ctx, leave := context.WithCancel(t.Context())
		old := do(ctx, &g, "k", o.load)
		synctest.Wait()
		g.Forget("k")
		successor := do(t.Context(), &g, "k", p.load)
		synctest.Wait()
		leave()
		synctest.Wait()
		wantResult(t, "the old caller", old, result{err: context.Canceled})
		select {
		case cause := <-o.ended:
			if !errors.Is(cause, flight.ErrAbandoned) {
				t.Errorf("the forgotten load ended because of %v", cause)
			}
		default:
			t.Error("the forgotten load goes on although its callers have left")
		}
		p.answer <- answer{v: "new"}
		synctest.Wait()
		wantResult(t, "the successor", successor, result{v: "new"})
	})
}

func TestLateCallerIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		mark, end := make(chan struct{}), make(chan struct{})
		lates := make(chan bool, 3)
		load := func(_ context.Context, c *call) (string, error) {
			lates <- c.Late() // nothing is marked yet: whoever is here came too late for it
			for range mark {
				c.Mark()
				lates <- c.Late()
			}
			<-end
			lates <- c.Late()
			return "v", nil
		}
		a := do(t.Context(), &g, "k", load)
		synctest.Wait()
		mark <- struct{}{}
		synctest.Wait()
		b := do(t.Context(), &g, "k", unexpected(t)) // after the first mark, and before the second
		synctest.Wait()
		mark <- struct{}{}
		close(mark)
		synctest.Wait()
		c := do(t.Context(), &g, "k", unexpected(t)) // after both
		synctest.Wait()
		if got := []bool{<-lates, <-lates, <-lates}; got[0] != true || got[1] || got[2] {
			t.Errorf("Late before and after the marks = %v, want [true false false]", got)
		}
		close(end)
		synctest.Wait()
		if !<-lates {
			t.Error("Late = false with a caller that came after the last mark, want true")
		}
		wantResult(t, "the first", a, result{v: "v"})
		wantResult(t, "the second", b, result{v: "v"})
		wantResult(t, "the third", c, result{late: true})
	})
}

func TestLateCallerIsNotToldTheFailureEither(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		failed := errors.New("failed")
		a := do(t.Context(), &g, "k", o.load)
		synctest.Wait()
		b := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		o.answer <- answer{err: failed}
		synctest.Wait()
		wantResult(t, "the first", a, result{err: failed})
		wantResult(t, "the late one", b, result{late: true})
	})
}

// Whoever left does not shift the numbers of those that stay.
func TestLeavingMakesNobodyLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		mark, end := make(chan struct{}), make(chan struct{})
		load := func(_ context.Context, c *call) (string, error) {
			<-mark
			c.Mark()
			<-end
			return "v", nil
		}
		ctx, leave := context.WithCancel(t.Context())
		a := do(ctx, &g, "k", load)
		b := do(ctx, &g, "k", load)
		synctest.Wait()
		c := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		leave()
		synctest.Wait()
		wantResult(t, "a", a, result{err: context.Canceled})
		wantResult(t, "b", b, result{err: context.Canceled})
		close(mark)
		synctest.Wait()
		d := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		close(end)
		synctest.Wait()
		wantResult(t, "the one before the mark", c, result{v: "v"})
		wantResult(t, "the one after the mark", d, result{late: true})
	})
}

// When the wait and the load have both ended, the caller gets what is there:
// it is better than nothing.
func TestEndOfTheWaitAndOfTheLoadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		for range 100 { // select is free to see either end first
			o := newOrigin()
			other := do(t.Context(), &g, "k", func(ctx context.Context, c *call) (string, error) {
				v, err := o.load(ctx, c)
				c.Mark()
				return v, err
			})
			synctest.Wait()
			ctx := lastMoment{t.Context(), func() {
				o.answer <- answer{v: "v"}
				<-other
			}}
			v, late, err := g.Do(ctx, "k", unexpected(t))
			if v != "v" || late || err != nil {
				t.Fatalf("Do = %q, late %v, %v; want the value that was there", v, late, err)
			}
		}
	})
}

// A lastMoment is a context that ends as soon as somebody begins to wait for
// it, and before that has something happen.
type lastMoment struct {
	context.Context
	before func()
}

func (l lastMoment) Done() <-chan struct{} {
	l.before()
	done := make(chan struct{})
	close(done)
	return done
}

func (lastMoment) Err() error { return context.Canceled }

func TestPanicReachesEveryCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		end := make(chan struct{})
		a := do(t.Context(), &g, "k", func(_ context.Context, c *call) (string, error) {
			c.Mark()
			<-end
			explode()
			return "never", nil
		})
		synctest.Wait()
		b := do(t.Context(), &g, "k", unexpected(t)) // late, and yet nobody asks again for a panic
		synctest.Wait()
		close(end)
		synctest.Wait()
		for who, got := range map[string]<-chan result{"the first": a, "the late one": b} {
			select {
			case r := <-got:
				p, ok := errors.AsType[*flight.PanicError](r.err)
				if !ok || r.late || r.v != "" {
					t.Fatalf("%s got %+v, want a panic", who, r)
				}
				if p.Value != "boom" || !strings.Contains(string(p.Stack), "flight_test.explode") {
					t.Errorf("%s got a panic %v from\n%s\nwant boom, and a stack with explode in it", who, p.Value, p.Stack)
				}
			default:
				t.Errorf("%s hangs after a panic", who)
			}
		}
		after := do(t.Context(), &g, "k", func(_ context.Context, c *call) (string, error) {
			c.Mark()
			return "v", nil
		})
		synctest.Wait()
		wantResult(t, "the next", after, result{v: "v"})
	})
}

//go:noinline
func explode() { panic("boom") }

func TestGoexitReachesEveryCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		end := make(chan struct{})
		a := do(t.Context(), &g, "k", func(_ context.Context, c *call) (string, error) {
			c.Mark()
			<-end
			runtime.Goexit()
			return "never", nil
		})
		synctest.Wait()
		b := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		close(end)
		synctest.Wait()
		wantResult(t, "the first", a, result{err: flight.ErrGoexit})
		wantResult(t, "the late one", b, result{err: flight.ErrGoexit})
		g.Close(errors.New("shutdown")) // does not wait for a load that ended in this way
	})
}

func TestProtectTellsTheOutcomeOnce(t *testing.T) {
	failed := errors.New("failed")
	for name, c := range map[string]struct {
		f    func() (string, error)
		want error
	}{
		"a value":   {func() (string, error) { return "v", nil }, nil},
		"a failure": {func() (string, error) { return "v", failed }, failed},
		"a Goexit":  {func() (string, error) { runtime.Goexit(); return "v", nil }, flight.ErrGoexit},
	} {
		t.Run(name, func(t *testing.T) {
			calls := make(chan result, 2)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				flight.Protect(c.f, func(v string, err error) { calls <- result{v: v, err: err} })
			}()
			<-ended
			if got := <-calls; got.err != c.want || (got.v == "v") == (c.want == flight.ErrGoexit) {
				t.Errorf("done was told %+v, want error %v", got, c.want)
			}
			if len(calls) > 0 {
				t.Error("done was called twice")
			}
		})
	}
}

func TestLoadHasTheValuesButNotTheEndOfItsFirstCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		type key struct{}
		first, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "of the first"), time.Second)
		defer cancel()
		seen := make(chan context.Context, 1)
		end := make(chan struct{})
		a := do(first, &g, "k", func(ctx context.Context, c *call) (string, error) {
			c.Mark()
			seen <- ctx
			<-end
			return "v", ctx.Err()
		})
		synctest.Wait()
		b := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		ctx := <-seen
		if got := ctx.Value(key{}); got != "of the first" {
			t.Errorf("value in the load's context = %v, want the first caller's", got)
		}
		if end, ok := ctx.Deadline(); ok {
			t.Errorf("the load's context has a deadline, %v", end)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantResult(t, "the first", a, result{err: context.DeadlineExceeded})
		if err := ctx.Err(); err != nil {
			t.Errorf("the load's context ended with its first caller's: %v", err)
		}
		close(end)
		synctest.Wait()
		wantResult(t, "the second", b, result{late: true})
		if ctx.Err() == nil {
			t.Error("the load's context is alive after the load")
		}
	})
}

// Joining and waiting may be two steps.
func TestOneWhoJoinsKnowsWhetherHeStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		first, err := g.Join(t.Context(), "k", g.Arrive(), o.load)
		if err != nil || !first.Started {
			t.Errorf("the first Join = started %v, %v; want true, nil", first.Started, err)
		}
		synctest.Wait()
		second, err := g.Join(t.Context(), "k", g.Arrive(), unexpected(t))
		if err != nil || second.Started {
			t.Errorf("the second Join = started %v, %v; want false, nil", second.Started, err)
		}
		o.answer <- answer{v: "v"}
		synctest.Wait()
		if v, late, err := second.Wait(t.Context()); v != "" || !late || err != nil {
			t.Errorf("the second Wait = %q, late %v, %v; want that it came late", v, late, err)
		}
		if v, late, err := first.Wait(t.Context()); v != "v" || late || err != nil {
			t.Errorf("the first Wait = %q, late %v, %v; want v", v, late, err)
		}
		g.Close(errors.New("shutdown"))
		if ticket, err := g.Join(t.Context(), "k", g.Arrive(), unexpected(t)); err != flight.ErrClosed || ticket.Started {
			t.Errorf("Join on a closed group = started %v, %v; want false, %v", ticket.Started, err, flight.ErrClosed)
		}
	})
}

// A caller that came too late for one load joins the next with its old arrival:
// whatever that one has marked by then was asked for after the caller came.
func TestNobodyIsTooLateTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o, p := newOrigin(), newOrigin()
		do(t.Context(), &g, "k", o.load)
		synctest.Wait()
		came := g.Arrive()
		ticket, err := g.Join(t.Context(), "k", came, unexpected(t))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		o.answer <- answer{v: "old"}
		if _, late, _ := ticket.Wait(t.Context()); !late {
			t.Fatal("the caller came after the mark and is not late")
		}

		next := do(t.Context(), &g, "k", p.load) // somebody else is quicker
		synctest.Wait()                          // and has marked
		ticket, err = g.Join(t.Context(), "k", came, unexpected(t))
		if err != nil || ticket.Started {
			t.Fatalf("Join = started %v, %v; want false, nil", ticket.Started, err)
		}
		newcomer := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		p.answer <- answer{v: "new"}
		if v, late, err := ticket.Wait(t.Context()); v != "new" || late || err != nil {
			t.Errorf("the one that comes again = %q, late %v, %v; want new", v, late, err)
		}
		synctest.Wait()
		wantResult(t, "the quicker one", next, result{v: "new"})
		wantResult(t, "the newcomer", newcomer, result{late: true})
	})
}

// It is when a caller came that counts, not when it joined.
func TestOneWhoCameBeforeTheMarkIsNotLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		mark, end := make(chan struct{}), make(chan struct{})
		lates := make(chan bool, 1)
		first := do(t.Context(), &g, "k", func(_ context.Context, c *call) (string, error) {
			<-mark
			c.Mark()
			<-end
			lates <- c.Late()
			return "v", nil
		})
		synctest.Wait()
		came := g.Arrive()
		close(mark)
		synctest.Wait()
		late := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		ticket, err := g.Join(t.Context(), "k", came, unexpected(t))
		if err != nil {
			t.Fatal(err)
		}
		close(end)
		if v, late, err := ticket.Wait(t.Context()); v != "v" || late || err != nil {
			t.Errorf("the one that came before the mark = %q, late %v, %v; want v", v, late, err)
		}
		synctest.Wait()
		wantResult(t, "the first", first, result{v: "v"})
		wantResult(t, "the one that came after it", late, result{late: true})
		if !<-lates {
			t.Error("Late = false although one is, who joined before one who is not")
		}
	})
}

func TestOneWhoDoesNotWaitNeverLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		ctx, leave := context.WithCancel(t.Context())
		if _, err := g.Join(ctx, "k", g.Arrive(), o.load); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		waiting := do(ctx, &g, "k", unexpected(t))
		synctest.Wait()
		leave()
		synctest.Wait()
		wantResult(t, "the one that waits", waiting, result{err: context.Canceled})
		select {
		case cause := <-o.ended:
			t.Fatalf("the load was ended by %v although one never leaves", cause)
		default:
		}
		shutdown := errors.New("shutdown")
		g.Close(shutdown) // ends it all the same
		if cause := <-o.ended; cause != shutdown {
			t.Errorf("the load ended with cause %v, want %v", cause, shutdown)
		}
	})
}

// A load that is kept goes on without callers, and takes new ones in.
func TestKeptLoadNeedsNoCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		kept := make(chan bool, 1)
		ctx, leave := context.WithCancel(t.Context())
		first := do(ctx, &g, "k", func(ctx context.Context, c *call) (string, error) {
			kept <- c.Keep()
			v, err := o.load(ctx, c)
			c.Mark()
			return v, err
		})
		synctest.Wait()
		for range 2 { // the first caller, and one that has joined without callers
			leave()
			synctest.Wait()
			wantResult(t, "the one that leaves", first, result{err: context.Canceled})
			ctx, leave = context.WithCancel(t.Context())
			first = do(ctx, &g, "k", unexpected(t))
			synctest.Wait()
		}
		leave()
		newcomer := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		o.answer <- answer{v: "v"}
		synctest.Wait()
		wantResult(t, "the newcomer", newcomer, result{v: "v"})
		if !<-kept {
			t.Error("Keep = false for a load with a caller")
		}
	})
}

func TestAbandonedLoadIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		kept := make(chan bool, 2)
		ctx, leave := context.WithCancel(t.Context())
		do(ctx, &g, "k", func(ctx context.Context, c *call) (string, error) {
			<-ctx.Done()
			kept <- c.Keep()
			kept <- c.Kept()
			return "", nil
		})
		synctest.Wait()
		leave()
		if keep, isKept := <-kept, <-kept; keep || isKept {
			t.Error("a load that all callers have left was kept")
		}
	})
}

func TestCloseEndsLoadsAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		shutdown := errors.New("shutdown")
		var tidy sync.WaitGroup
		tidy.Add(3)
		load := func(ctx context.Context, c *call) (string, error) {
			c.Mark()
			<-ctx.Done()
			time.Sleep(time.Second) // tidies up
			tidy.Done()
			return "", context.Cause(ctx)
		}
		a, b := do(t.Context(), &g, "a", load), do(t.Context(), &g, "b", load)
		synctest.Wait()
		g.Forget("b") // it is still waited for
		c := do(t.Context(), &g, "b", load)
		synctest.Wait()

		start := time.Now()
		closed := make(chan struct{})
		go func() {
			g.Close(shutdown)
			close(closed)
		}()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close returned before the loads did")
		default:
		}
		refused := do(t.Context(), &g, "a", unexpected(t))
		synctest.Wait()
		wantResult(t, "a caller of a group that closes", refused, result{err: flight.ErrClosed})

		<-closed
		if took := time.Since(start); took != time.Second {
			t.Errorf("Close took %v, want 1s: as long as the loads", took)
		}
		tidy.Wait()
		synctest.Wait()
		for who, got := range map[string]<-chan result{"a": a, "b": b, "c": c} {
			wantResult(t, who, got, result{err: shutdown})
		}
		g.Close(shutdown) // once more is no harm
	})
}

func TestClosedGroupRefuses(t *testing.T) {
	var g flight.Group[string]
	g.Close(errors.New("shutdown"))
	if _, late, err := g.Do(t.Context(), "k", unexpected(t)); err != flight.ErrClosed || late {
		t.Errorf("Do on a closed group = late %v, %v; want %v", late, err, flight.ErrClosed)
	}
}

// Whoever gets a value gets one that was asked for after the caller came,
// whoever leaves, joins, panics or forgets meanwhile.
func TestNobodyGetsWhatIsOlderThanHisQuestion(t *testing.T) {
	var (
		g       flight.Group[int64]
		version atomic.Int64 // what the origin has
		lates   atomic.Int64
		values  atomic.Int64
	)
	load := func(ctx context.Context, c *flight.Call[int64]) (int64, error) {
		var v int64
		for {
			c.Mark()
			v = version.Load()
			for range rand.IntN(3) {
				runtime.Gosched()
			}
			if !c.Late() || rand.IntN(2) == 0 {
				break
			}
		}
		switch rand.IntN(20) {
		case 0:
			panic("boom")
		case 1:
			runtime.Goexit()
		case 2:
			c.Close()
		}
		runtime.Gosched()
		return v, context.Cause(ctx)
	}
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 2000 {
				ctx, cancel := context.WithCancel(t.Context())
				switch rand.IntN(6) {
				case 0:
					version.Add(1)
					g.Forget("k")
				case 1:
					callers.Go(cancel)
				}
				asked := version.Load()
				v, late, err := g.Do(ctx, "k", load)
				_, panicked := errors.AsType[*flight.PanicError](err)
				switch {
				case late:
					lates.Add(1)
				case err == nil && v < asked:
					t.Errorf("got version %d, which is older than %d", v, asked)
				case err == nil:
					values.Add(1)
				case panicked || errors.Is(err, flight.ErrGoexit) || ctx.Err() != nil:
				default:
					t.Errorf("unexpected: %v", err)
				}
				cancel()
			}
		})
	}
	callers.Wait()
	g.Close(errors.New("shutdown"))
	if values.Load() < 100 {
		t.Errorf("only %d values in 16000 calls; the test has no force", values.Load())
	}
	t.Logf("%d values, %d late", values.Load(), lates.Load())
}

// Who has not looked joins a load that invites, for as long as it does, and starts
// one where there is none.
func TestJoinInvited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		invited := func(load func(context.Context, *call) (string, error)) (flight.Ticket[string], bool) {
			return g.JoinInvited(t.Context(), "k", g.Arrive(), load)
		}
		if _, ok := invited(nil); ok || g.Inviting() {
			t.Error("there is nothing to join")
		}
		inviting := make(chan *call, 1)
		load := func(ctx context.Context, c *call) (string, error) {
			inviting <- c
			return o.load(ctx, c)
		}
		first, ok := invited(load)
		if !ok || !first.Started {
			t.Error("no load was started")
		}
		c := <-inviting
		synctest.Wait()
		if _, ok := invited(load); ok || g.Inviting() {
			t.Error("a load was joined that invites nobody")
		}
		c.Invite(time.Second)
		c.Invite(time.Second)
		second, ok := invited(nil)
		if !ok || second.Started || !g.Inviting() {
			t.Error("an invited caller could not join")
		}
		time.Sleep(time.Second)
		if _, ok := invited(load); ok || g.Inviting() {
			t.Error("an invitation has no end")
		}
		c.Invite(time.Second)
		g.Forget("k")
		if _, ok := invited(nil); ok || g.Inviting() {
			t.Error("a forgotten load invites")
		}
		c.Invite(time.Second)
		if g.Inviting() {
			t.Error("it does so again")
		}
		c.Mark()
		o.answer <- answer{v: "v"}
		for i, ticket := range []flight.Ticket[string]{first, second} {
			if v, late, err := ticket.Wait(t.Context()); v != "v" || late || err != nil {
				t.Errorf("%d: %q, %v, %v", i, v, late, err)
			}
		}
		g.Close(errors.New("closed"))
		if _, ok := invited(load); ok {
			t.Error("a closed group starts loads")
		}
	})
}
