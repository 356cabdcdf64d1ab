package flight_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/fetchonce/fetchonce/internal/flight"
)

func TestPanicReachesEveryCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		end := make(chan struct{})
		a := do(t.Context(), &g, "k", func(_ context.Context, f *stringFlight) (string, error) {
			f.Advance()
			<-end
			explode()
			return "never", nil
		})
		synctest.Wait()
		b := do(t.Context(), &g, "k", unexpected(t)) // late, but it receives the panic
		synctest.Wait()
		close(end)
		synctest.Wait()
		for caller, got := range map[string]<-chan result{"the first caller": a, "the late caller": b} {
			select {
			case r := <-got:
				p, ok := errors.AsType[*flight.PanicError](r.err)
				if !ok || r.late || r.v != "" {
					t.Fatalf("%s got %+v, want a panic", caller, r)
				}
				if p.Value != "boom" || !strings.Contains(string(p.Stack), "flight_test.explode") {
					t.Errorf("%s got a panic %v from\n%s\nwant boom, and a stack with explode in it", caller, p.Value, p.Stack)
				}
			default:
				t.Errorf("%s hangs after a panic", caller)
			}
		}
		after := do(t.Context(), &g, "k", func(_ context.Context, f *stringFlight) (string, error) {
			f.Advance()
			return "v", nil
		})
		synctest.Wait()
		wantResult(t, "the next caller", after, result{v: "v"})
	})
}

//go:noinline
func explode() { panic("boom") }

func TestGoexitReachesEveryCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string]
		end := make(chan struct{})
		a := do(t.Context(), &g, "k", func(_ context.Context, f *stringFlight) (string, error) {
			f.Advance()
			<-end
			runtime.Goexit()
			return "never", nil
		})
		synctest.Wait()
		b := do(t.Context(), &g, "k", unexpected(t))
		synctest.Wait()
		close(end)
		synctest.Wait()
		wantResult(t, "the first caller", a, result{err: flight.ErrGoexit})
		wantResult(t, "the late caller", b, result{err: flight.ErrGoexit})
		g.Close(errors.New("shutdown")) // it does not wait for that load
	})
}

func TestProtectCallsDoneOnce(t *testing.T) {
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
				t.Errorf("done received %+v, want error %v", got, c.want)
			}
			if len(calls) > 0 {
				t.Error("done was called twice")
			}
		})
	}
}
