package fetchonce_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

func TestACallWaitsForMaxWait(t *testing.T) {
	for name, sameProcess := range map[string]bool{"same process": true, "other process": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := redistest.Bubble(t).Backend()
				const wait = 2 * time.Second
				here := testkit.NewLocker(t, r, func(opt *lockOptions) { opt.MaxWait = wait })
				there := here
				if !sameProcess {
					there = testkit.NewLocker(t, r)
				}
				_, held, err := there.Acquire(t.Context(), "it")
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				err = here.Do(t.Context(), "it", func(context.Context) error { return errors.New("called") })
				if took := time.Since(began); err != fetchonce.ErrLocked || took != wait {
					t.Errorf("Do returned %v after %v, want ErrLocked after %v", err, took, wait)
				}
				ctx, cancel := context.WithTimeout(t.Context(), wait/2)
				defer cancel()
				if _, _, err = here.Acquire(ctx, "it"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, fetchonce.ErrLocked) {
					t.Errorf("a caller whose context ended first got %v", err)
				}
				if err = held.Release(); err != nil {
					t.Error(err)
				}
				// MaxWait does not limit the hold.
				err = here.Do(t.Context(), "it", func(ctx context.Context) error {
					time.Sleep(time.Minute)
					return ctx.Err()
				})
				if err != nil {
					t.Errorf("Do of a free lock returned %v", err)
				}
			})
		})
	}
}
