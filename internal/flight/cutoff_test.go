package flight_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/fetchonce/fetchonce/internal/flight"
)

func TestCallerAfterTheCutoffIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		advance, end := make(chan struct{}), make(chan struct{})
		lates := make(chan bool, 3)
		load := func(_ context.Context, f *stringFlight) (string, error) {
			lates <- f.HasLate() // there is no cutoff yet, so every caller is late
			for range advance {
				f.Advance()
				lates <- f.HasLate()
			}
			<-end
			lates <- f.HasLate()
			return "v", nil
		}
		a := do(t.Context(), &g, "k", load)
		synctest.Wait()
		advance <- struct{}{}
		synctest.Wait()
		b := do(t.Context(), &g, "k", unexpected(t)) // between the first cutoff and the second
		synctest.Wait()
		advance <- struct{}{}
		close(advance)
		synctest.Wait()
		c := do(t.Context(), &g, "k", unexpected(t)) // after both
		synctest.Wait()
		if got := []bool{<-lates, <-lates, <-lates}; got[0] != true || got[1] || got[2] {
			t.Errorf("HasLate before and after the cutoffs = %v, want [true false false]", got)
		}
		close(end)
		synctest.Wait()
		if !<-lates {
			t.Error("HasLate = false with a caller that came after the last cutoff, want true")
		}
		wantResult(t, "the first caller", a, result{v: "v"})
		wantResult(t, "the second caller", b, result{v: "v"})
		wantResult(t, "the third caller", c, result{late: true})
	})
}

func TestLateCallerDoesNotReceiveTheFailure(t *testing.T) {
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
		wantResult(t, "the first caller", a, result{err: failed})
		wantResult(t, "the late caller", b, result{late: true})
	})
}

// A caller that leaves does not change which of the others are late.
func TestLeavingCallerMakesNoOtherLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		advance, end := make(chan struct{}), make(chan struct{})
		load := func(_ context.Context, f *stringFlight) (string, error) {
			<-advance
			f.Advance()
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
		close(advance)
		synctest.Wait()
		d := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		close(end)
		synctest.Wait()
		wantResult(t, "the caller before the cutoff", c, result{v: "v"})
		wantResult(t, "the caller after the cutoff", d, result{late: true})
	})
}

// A late caller joins the next flight with its old Arrival. That flight started after the
// call, so whatever it reads is new enough.
func TestLateCallerIsNotLateAgain(t *testing.T) {
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
		if a, _ := ticket.Wait(t.Context()); !a.Late {
			t.Fatal("the caller came after the cutoff and is not late")
		}

		next := do(t.Context(), &g, "k", p.load) // another caller is faster
		synctest.Wait()                          // and the load has advanced
		ticket, err = g.Join(t.Context(), "k", came, unexpected(t))
		if err != nil || ticket.Started {
			t.Fatalf("Join = started %v, %v; want false, nil", ticket.Started, err)
		}
		newCaller := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		p.answer <- answer{v: "new"}
		if a, err := ticket.Wait(t.Context()); a.Value != "new" || a.Late || err != nil {
			t.Errorf("the late caller = %+v, %v; want new", a, err)
		}
		synctest.Wait()
		wantResult(t, "the faster caller", next, result{v: "new"})
		wantResult(t, "the new caller", newCaller, result{late: true})
	})
}

// The Arrival decides whether a caller is late, not the time of its Join.
func TestCallerThatCameBeforeTheCutoffIsNotLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		advance, end := make(chan struct{}), make(chan struct{})
		lates := make(chan bool, 1)
		first := do(t.Context(), &g, "k", func(_ context.Context, f *stringFlight) (string, error) {
			<-advance
			f.Advance()
			<-end
			lates <- f.HasLate()
			return "v", nil
		})
		synctest.Wait()
		came := g.Arrive()
		close(advance)
		synctest.Wait()
		late := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		ticket, err := g.Join(t.Context(), "k", came, unexpected(t))
		if err != nil {
			t.Fatal(err)
		}
		close(end)
		if a, err := ticket.Wait(t.Context()); a.Value != "v" || a.Late || err != nil {
			t.Errorf("the caller that came before the cutoff = %+v, %v; want v", a, err)
		}
		synctest.Wait()
		wantResult(t, "the first caller", first, result{v: "v"})
		wantResult(t, "the caller that came after it", late, result{late: true})
		if !<-lates {
			t.Error("HasLate = false although the caller that joined first is late")
		}
	})
}

// A caller receives no value that was read before its call, while other callers leave, join,
// panic and forget.
func TestNoCallerReceivesAValueReadBeforeItsCall(t *testing.T) {
	var (
		g       flight.Group[int64]
		version atomic.Int64 // what the origin has
		lates   atomic.Int64
		values  atomic.Int64
	)
	load := func(ctx context.Context, f *flight.Flight[int64]) (int64, error) {
		var v int64
		for {
			f.Advance()
			v = version.Load()
			for range rand.IntN(3) {
				runtime.Gosched()
			}
			if !f.HasLate() || rand.IntN(2) == 0 {
				break
			}
		}
		switch rand.IntN(20) {
		case 0:
			panic("boom")
		case 1:
			runtime.Goexit()
		case 2:
			f.CloseToJoiners()
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
				a, err := g.Do(ctx, "k", load)
				_, panicked := errors.AsType[*flight.PanicError](err)
				switch {
				case a.Late:
					lates.Add(1)
				case err == nil && a.Value < asked:
					t.Errorf("got version %d, which is older than %d", a.Value, asked)
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
		t.Errorf("only %d values in 16000 calls; the test is too weak", values.Load())
	}
	t.Logf("%d values, %d late", values.Load(), lates.Load())
}
