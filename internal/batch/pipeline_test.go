package batch_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/batch"
)

// A network loses all packets, and then none. go-redis still waits on its old connections. Later
// callers do not wait for those.
func TestStuckPipelinesDoNotBlockRecovery(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, b *batch.Batcher) <-chan outcome{
		"their callers waited until the time limit": func(t *testing.T, b *batch.Batcher) <-chan outcome {
			return do(t.Context(), b, time.Second, get("k"))
		},
		"their callers had less time": func(t *testing.T, b *batch.Batcher) <-chan outcome {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			t.Cleanup(cancel)
			return do(ctx, b, time.Second, get("k"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, b := newTarpit(t)
				for range 4 {
					leave(t, b)
					synctest.Wait()
				}
				p.on.Store(false)
				time.Sleep(500 * time.Millisecond)
				synctest.Wait()
				patient := do(t.Context(), b, within, get("k"))
				synctest.Wait()
				wantWaiting(t, "the next, while the four may still be answered", patient)
				time.Sleep(700 * time.Millisecond)
				synctest.Wait()
				if n := p.taken.Load(); n != 5 {
					t.Errorf("%d commands were sent, want 5: the next is sent when the time of the others is over", n)
				}
				select {
				case <-patient:
				default:
					t.Error("the next is stuck behind the others although Redis answers again")
				}
				at := time.Now()
				if err := b.Do(t.Context(), within, get("k")); err != nil || time.Since(at) > 0 {
					t.Errorf("another took %v, %v; want none, nil", time.Since(at), err)
				}
				close(p.drain)
			})
		})
	}
}

// While Redis does not answer, the number of pipelines is bounded. When it answers, there
// are as many as before.
func TestStuckPipelinesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, b := newTarpit(t)
		for range 3 {
			p.taken.Store(0)
			for range 100 {
				do(t.Context(), b, time.Second, get("k"))
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := p.taken.Load(); n != 12 {
				t.Errorf("%d commands are in flight, want 4, and 8 that are stuck", n)
			}
			close(p.drain)
			synctest.Wait()

			p.drain = make(chan struct{})
			p.taken.Store(0)
			for range 20 {
				do(t.Context(), b, time.Minute, get("k"))
				synctest.Wait()
			}
			if n := p.taken.Load(); n != 4 {
				t.Fatalf("%d commands are in flight at once, want 4 again", n)
			}
			close(p.drain)
			synctest.Wait()
			p.drain = make(chan struct{})
		}
	})
}

// A reply may arrive after its caller has left. The pipeline still counts as in flight.
func TestSlowPipelineIsNotStuckLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, b := newTarpit(t)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		for range 4 {
			do(ctx, b, time.Second, get("k"))
			synctest.Wait()
		}
		for range 2 { // these share one of the four pipelines
			do(t.Context(), b, time.Minute, get("k"))
		}
		time.Sleep(200 * time.Millisecond) // the callers of the first four have left
		drain := p.drain
		p.drain = make(chan struct{})
		close(drain)
		time.Sleep(2 * time.Second) // their time would be over, had they not been answered
		for range 10 {
			do(t.Context(), b, time.Minute, get("k"))
			synctest.Wait()
		}
		if n := p.taken.Load(); n != 8 {
			t.Errorf("%d commands and pipelines are in flight, want 4", n-4)
		}
		close(p.drain)
	})
}

// Close does not wait for a request that timed out.
func TestCloseWhileRedisHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, b := newTarpit(t)
		sent := do(t.Context(), b, time.Second, get("k"))
		synctest.Wait()
		start := time.Now()
		b.Close(io.EOF)
		if took := time.Since(start); took != time.Second {
			t.Errorf("Close took %v, want 1s, the limit of the command", took)
		}
		synctest.Wait()
		wantEnded(t, "the one in flight", sent, time.Second, batch.ErrTimeout)
		close(p.drain)
	})
}
