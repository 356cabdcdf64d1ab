package flight_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/flight"
)

type stringFlight = flight.Flight[string]

// An origin has a load that returns when the test sends an answer, or when its context ends.
type origin struct {
	loads  atomic.Int32
	answer chan answer
	ended  chan error // receives the cause when a context ends a load
}

type answer struct {
	v   string
	err error
}

func newOrigin() *origin {
	return &origin{answer: make(chan answer), ended: make(chan error, 10)}
}

func (o *origin) load(ctx context.Context, f *stringFlight) (string, error) {
	o.loads.Add(1)
	f.Advance()
	select {
	case a := <-o.answer:
		return a.v, a.err
	case <-ctx.Done():
		o.ended <- context.Cause(ctx)
		return "", context.Cause(ctx)
	}
}

// A result is what Do returned to a caller.
type result struct {
	v    string
	late bool
	err  error
}

// do calls Do on a new goroutine.
func do(ctx context.Context, g *flight.Group[string], key string, load func(context.Context, *stringFlight) (string, error)) <-chan result {
	got := make(chan result, 1)
	go func() {
		a, err := g.Do(ctx, key, load)
		got <- result{a.Value, a.Late, err}
	}()
	return got
}

func wantResult(t *testing.T, caller string, got <-chan result, want result) {
	t.Helper()
	select {
	case r := <-got:
		if r.v != want.v || r.late != want.late || !errors.Is(r.err, want.err) {
			t.Errorf("%s got %q, late %v, %v; want %q, late %v, %v", caller, r.v, r.late, r.err, want.v, want.late, want.err)
		}
	default:
		t.Errorf("%s still waits, want %+v", caller, want)
	}
}

func wantWaiting(t *testing.T, caller string, got <-chan result) {
	t.Helper()
	select {
	case r := <-got:
		t.Errorf("%s got %+v, want it to wait", caller, r)
	default:
	}
}

func unexpected(t *testing.T) func(context.Context, *stringFlight) (string, error) {
	t.Helper()
	return func(context.Context, *stringFlight) (string, error) {
		t.Error("a second load started")
		return "", nil
	}
}

func TestManyCallersShareOneLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		var callers []<-chan result
		for range 50 {
			callers = append(callers, do(t.Context(), &g, "k", func(ctx context.Context, f *stringFlight) (string, error) {
				v, err := o.load(ctx, f)
				f.Advance()
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

func TestAllCallersReceiveTheFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		failed := errors.New("failed")
		load := func(ctx context.Context, f *stringFlight) (string, error) {
			v, err := o.load(ctx, f)
			f.Advance()
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

func TestNextCallAfterALoadStartsAnother(t *testing.T) {
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

func TestCallerLeavesWhenItsContextEnds(t *testing.T) {
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

		leaveFirst() // the caller that started the load may leave, too
		synctest.Wait()
		wantResult(t, "the cancelled caller", a, result{err: context.Canceled})
		wantWaiting(t, "the caller with a timeout", b)

		time.Sleep(time.Second)
		synctest.Wait()
		wantResult(t, "the caller with a timeout", b, result{err: context.DeadlineExceeded})
		wantWaiting(t, "the remaining caller", c)

		select {
		case cause := <-o.ended:
			t.Fatalf("the load was ended by %v although a caller waits for it", cause)
		default:
		}
		o.answer <- answer{v: "v"}
		synctest.Wait()
		wantResult(t, "the remaining caller", c, result{late: true}) // see TestCallerAfterTheCutoffIsLate
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
			t.Error("the load continues without callers")
		}
		if n := o.loads.Load(); n != 1 {
			t.Errorf("%d loads, want 1", n)
		}
	})
}

func TestNewCallerNeverJoinsACancelledLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		end := make(chan struct{})
		stubborn := func(ctx context.Context, f *stringFlight) (string, error) { // it ignores the end of its context
			f.Advance()
			<-end
			return "", context.Cause(ctx)
		}
		ctx, leave := context.WithCancel(t.Context())
		old := do(ctx, &g, "k", stubborn)
		synctest.Wait()
		leave()
		synctest.Wait()
		wantResult(t, "the caller that left", old, result{err: context.Canceled})

		o := newOrigin()
		newCaller := do(t.Context(), &g, "k", o.load)
		synctest.Wait()
		close(end)
		synctest.Wait()
		wantWaiting(t, "the new caller", newCaller)

		// The end of the old load does not close the new flight.
		joiner := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		o.answer <- answer{v: "v"}
		synctest.Wait()
		wantResult(t, "the new caller", newCaller, result{v: "v"})
		wantResult(t, "its joiner", joiner, result{late: true})
	})
}

func TestCallerWithAnEndedContextDoesNotWait(t *testing.T) {
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

// When its context and the load end at the same moment, the caller receives the result.
func TestCallerReceivesAResultThatComesAsItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		for range 100 { // select may choose either end
			o := newOrigin()
			other := do(t.Context(), &g, "k", func(ctx context.Context, f *stringFlight) (string, error) {
				v, err := o.load(ctx, f)
				f.Advance()
				return v, err
			})
			synctest.Wait()
			ctx := lastMoment{t.Context(), func() {
				o.answer <- answer{v: "v"}
				<-other
			}}
			if a, err := g.Do(ctx, "k", unexpected(t)); a.Value != "v" || a.Late || err != nil {
				t.Fatalf("Do = %+v, %v; want the value", a, err)
			}
		}
	})
}

// A lastMoment is a context that ends when Done is called. It calls before first.
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

func TestLoadContextHasTheValuesOfItsFirstCallerButNotItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		type key struct{}
		first, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "of the first"), time.Second)
		defer cancel()
		seen := make(chan context.Context, 1)
		end := make(chan struct{})
		a := do(first, &g, "k", func(ctx context.Context, f *stringFlight) (string, error) {
			f.Advance()
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
		wantResult(t, "the first caller", a, result{err: context.DeadlineExceeded})
		if err := ctx.Err(); err != nil {
			t.Errorf("the load's context ended with its first caller's: %v", err)
		}
		close(end)
		synctest.Wait()
		wantResult(t, "the second caller", b, result{late: true})
		if ctx.Err() == nil {
			t.Error("the load's context is alive after the load")
		}
	})
}

func TestTicketReportsWhichCallerStartedTheLoad(t *testing.T) {
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
		if a, err := second.Wait(t.Context()); a.Value != "" || !a.Late || err != nil {
			t.Errorf("the second Wait = %+v, %v; want late", a, err)
		}
		if a, err := first.Wait(t.Context()); a.Value != "v" || a.Late || err != nil {
			t.Errorf("the first Wait = %+v, %v; want v", a, err)
		}
		g.Close(errors.New("shutdown"))
		if ticket, err := g.Join(t.Context(), "k", g.Arrive(), unexpected(t)); err != flight.ErrClosed || ticket.Started {
			t.Errorf("Join on a closed group = started %v, %v; want false, %v", ticket.Started, err, flight.ErrClosed)
		}
	})
}

func TestCallerThatDoesNotWaitNeverLeaves(t *testing.T) {
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
		wantResult(t, "the waiting caller", waiting, result{err: context.Canceled})
		select {
		case cause := <-o.ended:
			t.Fatalf("the load was ended by %v although one caller never leaves", cause)
		default:
		}
		shutdown := errors.New("shutdown")
		g.Close(shutdown) // ends the load all the same
		if cause := <-o.ended; cause != shutdown {
			t.Errorf("the load ended with cause %v, want %v", cause, shutdown)
		}
	})
}

// A caller that has made no lookup starts a flight, and never joins one.
func TestStartJoinsNoRunningFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		ticket, started := g.Start(t.Context(), "k", g.Arrive(), o.load)
		if !started || !ticket.Started {
			t.Fatal("the key has no flight, and Start started none")
		}
		synctest.Wait()
		if _, started := g.Start(t.Context(), "k", g.Arrive(), unexpected(t)); started {
			t.Error("Start started a second flight")
		}
		joiner := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		o.answer <- answer{v: "v"}
		if a, err := ticket.Wait(t.Context()); a.Value != "v" || a.Late || err != nil {
			t.Errorf("Wait = %+v, %v; want v", a, err)
		}
		synctest.Wait()
		wantResult(t, "the joiner", joiner, result{late: true}) // it came after the last cutoff
	})
}
