package batch_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/contexttest"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// The Batcher calls no method of a caller's context while it holds its mutex.
func TestContextMayCallTheBatcher(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		for _, rdb := range []batch.Conn{r.Client(), r.Plain()} {
			b := batch.New(rdb, func() {})
			var calls, held atomic.Int32
			called := func() {
				calls.Add(1)
				if !b.IsFree() {
					held.Add(1)
				}
			}
			timed, cancel := context.WithTimeout(t.Context(), time.Minute)
			ctx := &contexttest.Context{Context: timed, Called: called}
			for range 5 { // a pipeline sends the first, later ones are sent inline
				if err := b.Do(ctx, within, get("k")); err != nil && err.Error() != "redis: nil" {
					t.Error(err)
				}
			}
			cancel()
			_ = b.Do(ctx, within, get("k"))
			if calls.Load() == 0 || held.Load() > 0 {
				t.Errorf("of %d calls of the context's methods, %d were made under the batcher's mutex", calls.Load(), held.Load())
			}
			b.Close(context.Canceled)
		}
	})
}
