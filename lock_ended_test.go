package fetchonce_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

func wantEndedError(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, fetchonce.ErrLocked) || !errors.Is(err, errMine) {
		t.Errorf("%s = %v, want ErrLocked and the cause of the end of the context", what, err)
	} else if text := err.Error(); strings.Contains(text, "\n") || !strings.Contains(text, `"it"`) {
		t.Errorf("%s = %q, want one line that names the lock", what, text)
	}
}

func TestEndedContextIsAnErrorThatSaysBoth(t *testing.T) {
	calls := map[string]func(ctx context.Context, lk *fetchonce.Locker) error{
		"Do":    func(ctx context.Context, lk *fetchonce.Locker) error { return lk.Do(ctx, "it", testkit.Nothing) },
		"TryDo": func(ctx context.Context, lk *fetchonce.Locker) error { return lk.TryDo(ctx, "it", testkit.Nothing) },
		"Acquire": func(ctx context.Context, lk *fetchonce.Locker) error {
			_, _, err := lk.Acquire(ctx, "it")
			return err
		},
		"TryAcquire": func(ctx context.Context, lk *fetchonce.Locker) error {
			_, _, err := lk.TryAcquire(ctx, "it")
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				lk := testkit.NewLocker(t, r)
				ctx, cancel := context.WithCancelCause(t.Context())
				cancel(errMine)
				wantEndedError(t, name+" with a context that has ended", call(ctx, lk))
			})
			redistest.Each(t, func(t *testing.T, r backend) {
				rdb := r.Client()
				g := testkit.NewGate(rdb)
				lk := testkit.LockerOf(t, rdb)
				g.Shut()
				ctx, cancel := context.WithCancelCause(t.Context())
				var err error
				done := returns(t, name, func() { err = call(ctx, lk) })
				<-g.Stopped
				cancel(errMine)
				<-done
				g.Open()
				wantEndedError(t, name+" with a context that ends", err)
			})
		})
	}
}
