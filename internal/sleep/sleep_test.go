package sleep_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/sleep"
)

func TestSleepEndsAfterItsTimeOrWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if !sleep.For(t.Context(), time.Second) || time.Since(start) != time.Second {
			t.Errorf("it ended after %v, want 1s", time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if sleep.For(ctx, time.Hour) || time.Since(start) != time.Second {
			t.Errorf("it ended after %v, want 1s, the end of the context", time.Since(start))
		}
	})
}
