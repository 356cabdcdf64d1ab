package flight_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/flight"
)

// A caller without a lookup joins a flight within its recent-miss window, or starts a flight
// if there is none.
func TestCallerWithoutALookupJoinsWithinTheRecentMissWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		o := newOrigin()
		join := func(load func(context.Context, *stringFlight) (string, error)) (flight.Ticket[string], bool) {
			return g.JoinWithoutLookup(t.Context(), "k", g.Arrive(), load)
		}
		if _, ok := join(nil); ok || g.AnyMissWindow() {
			t.Error("a caller joined, but there is no flight")
		}
		flights := make(chan *stringFlight, 1)
		load := func(ctx context.Context, f *stringFlight) (string, error) {
			flights <- f
			return o.load(ctx, f)
		}
		first, ok := join(load)
		if !ok || !first.Started {
			t.Error("no load was started")
		}
		f := <-flights
		synctest.Wait()
		if _, ok := join(load); ok || g.AnyMissWindow() {
			t.Error("a caller joined a flight without a window")
		}
		f.OpenMissWindow(time.Second)
		f.OpenMissWindow(time.Second)
		second, ok := join(nil)
		if !ok || second.Started || !g.AnyMissWindow() {
			t.Error("no caller joined within the window")
		}
		time.Sleep(time.Second)
		if _, ok := join(load); ok || g.AnyMissWindow() {
			t.Error("a caller joined after the window")
		}
		f.OpenMissWindow(time.Second)
		g.Forget("k")
		if _, ok := join(nil); ok || g.AnyMissWindow() {
			t.Error("a caller joined a forgotten flight")
		}
		f.OpenMissWindow(time.Second)
		if g.AnyMissWindow() {
			t.Error("a forgotten flight opened its window")
		}
		f.Advance()
		o.answer <- answer{v: "v"}
		for i, ticket := range []flight.Ticket[string]{first, second} {
			if v, late, err := ticket.Wait(t.Context()); v != "v" || late || err != nil {
				t.Errorf("%d: %q, %v, %v", i, v, late, err)
			}
		}
		g.Close(errors.New("closed"))
		if _, ok := join(load); ok {
			t.Error("a closed group started a load")
		}
	})
}
