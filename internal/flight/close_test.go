package flight_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/flight"
)

func TestNoCallerJoinsAClosedFlight(t *testing.T) {
	closings := map[string]func(g *flight.Group[string], f *stringFlight){
		"by the load":    func(_ *flight.Group[string], f *stringFlight) { f.CloseToJoiners() },
		"by its group":   func(g *flight.Group[string], _ *stringFlight) { g.Forget("k") },
		"by both, twice": func(g *flight.Group[string], f *stringFlight) { f.CloseToJoiners(); g.Forget("k"); f.CloseToJoiners() },
	}
	for name, closing := range closings {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g flight.Group[string]
				o := newOrigin()
				before := do(t.Context(), &g, "k", func(ctx context.Context, f *stringFlight) (string, error) {
					f.Advance()
					closing(&g, f)
					return o.load(ctx, f)
				})
				synctest.Wait()
				p := newOrigin()
				after := do(t.Context(), &g, "k", p.load)
				synctest.Wait()

				o.answer <- answer{v: "old"}
				synctest.Wait()
				wantResult(t, "the caller before the close", before, result{v: "old"})
				wantWaiting(t, "the caller after the close", after)

				joiner := do(t.Context(), &g, "k", unexpected(t)) // the end of the old load does not close the new flight
				synctest.Wait()
				p.answer <- answer{v: "new"}
				synctest.Wait()
				wantResult(t, "the caller after the close", after, result{v: "new"})
				wantResult(t, "its joiner", joiner, result{late: true})
			})
		})
	}
}

// A second Close of a flight does not close the flight that replaced it.
func TestSecondCloseDoesNotCloseTheNextFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		again, end := make(chan struct{}), make(chan struct{})
		old := do(t.Context(), &g, "k", func(_ context.Context, f *stringFlight) (string, error) {
			f.Advance()
			f.CloseToJoiners()
			<-again
			f.CloseToJoiners()
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
		wantResult(t, "the caller of the next flight", successor, result{v: "new"})
		wantResult(t, "its joiner", joiner, result{late: true})
	})
}

// A closed flight still counts its callers: its load ends with the last of them, although
// others wait for the next flight.
func TestClosedFlightEndsWithItsOwnCallers(t *testing.T) {
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
			t.Error("the forgotten load continues although its callers have left")
		}
		p.answer <- answer{v: "new"}
		synctest.Wait()
		wantResult(t, "the caller of the next flight", successor, result{v: "new"})
	})
}

func (lastMoment) Err() error { return context.Canceled }

// A kept flight continues without callers, and new callers join it.
func TestKeptFlightNeedsNoCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		kept := make(chan bool, 1)
		ctx, leave := context.WithCancel(t.Context())
		first := do(ctx, &g, "k", func(ctx context.Context, f *stringFlight) (string, error) {
			kept <- f.Keep()
			v, err := o.load(ctx, f)
			f.Advance()
			return v, err
		})
		synctest.Wait()
		for range 2 { // the first caller, and one that has joined when there was none
			leave()
			synctest.Wait()
			wantResult(t, "the leaving caller", first, result{err: context.Canceled})
			ctx, leave = context.WithCancel(t.Context())
			first = do(ctx, &g, "k", unexpected(t))
			synctest.Wait()
		}
		leave()
		newCaller := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		o.answer <- answer{v: "v"}
		synctest.Wait()
		wantResult(t, "the new caller", newCaller, result{v: "v"})
		if !<-kept {
			t.Error("Keep = false for a flight with a caller")
		}
	})
}

func TestAbandonedFlightCannotBeKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		kept := make(chan bool, 2)
		ctx, leave := context.WithCancel(t.Context())
		do(ctx, &g, "k", func(ctx context.Context, f *stringFlight) (string, error) {
			<-ctx.Done()
			kept <- f.Keep()
			kept <- f.Kept()
			return "", nil
		})
		synctest.Wait()
		leave()
		if keep, isKept := <-kept, <-kept; keep || isKept {
			t.Error("a flight that all callers have left was kept")
		}
	})
}

func TestCloseEndsLoadsAndWaitsForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		shutdown := errors.New("shutdown")
		var tidy sync.WaitGroup
		tidy.Add(3)
		load := func(ctx context.Context, f *stringFlight) (string, error) {
			f.Advance()
			<-ctx.Done()
			time.Sleep(time.Second) // tidies up
			tidy.Done()
			return "", context.Cause(ctx)
		}
		a, b := do(t.Context(), &g, "a", load), do(t.Context(), &g, "b", load)
		synctest.Wait()
		g.Forget("b") // its caller still waits
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
		wantResult(t, "a caller of a closing group", refused, result{err: flight.ErrClosed})

		<-closed
		if took := time.Since(start); took != time.Second {
			t.Errorf("Close took %v, want 1s: as long as the loads", took)
		}
		tidy.Wait()
		synctest.Wait()
		for caller, got := range map[string]<-chan result{"a": a, "b": b, "c": c} {
			wantResult(t, caller, got, result{err: shutdown})
		}
		g.Close(shutdown) // a second Close does nothing
	})
}

func TestClosedGroupStartsNoLoad(t *testing.T) {
	var g flight.Group[string]
	g.Close(errors.New("shutdown"))
	if a, err := g.Do(t.Context(), "k", unexpected(t)); err != flight.ErrClosed || a.Late {
		t.Errorf("Do on a closed group = late %v, %v; want %v", a.Late, err, flight.ErrClosed)
	}
	if _, started := g.Start(t.Context(), "k", g.Arrive(), unexpected(t)); started {
		t.Error("Start on a closed group started a flight")
	}
}
