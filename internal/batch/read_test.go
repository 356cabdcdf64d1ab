package batch_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func getRange(key string, end int) *redis.StringCmd {
	return redis.NewStringCmd(context.Background(), "getrange", key, 0, end)
}

func read(ctx context.Context, b *batch.Batcher, cmd *redis.StringCmd) <-chan outcome {
	ended := make(chan outcome, 1)
	go func() { ended <- outcome{err: b.Read(ctx, within, cmd)} }()
	return ended
}

// A turnstile is a gate that counts the pipelines that arrive at it.
type turnstile struct {
	gate
	held atomic.Int32
}

func (s *turnstile) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	next = s.gate.ProcessPipelineHook(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		s.held.Add(1)
		return next(ctx, cmds)
	}
}

func TestEqualReadsInTheQueueAreOneCommand(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		g := &turnstile{gate: gate{open: make(chan struct{})}}
		rdb.AddHook(g)
		b := batch.NewEager(rdb)
		for _, key := range []string{"{k}", "{k}other"} {
			if err := b.Do(t.Context(), within, set(key, "value of "+key)); err != nil {
				t.Fatal(err)
			}
		}
		var held []<-chan outcome
		for range 4 {
			held = append(held, do(t.Context(), b, within, set("{k}a", "v"), set("{k}b", "v")))
		}
		r.Until("all pipelines are held", func() bool { return g.held.Load() == 4 })
		redistest.WireOf(rdb).Reset()

		first, leave := context.WithCancel(t.Context())
		gone := read(first, b, getRange("{k}", 100))
		r.Until("the first is in the queue", func() bool { return b.Queued() == 1 })
		var (
			cmds []*redis.StringCmd
			ends []<-chan outcome
		)
		for range 50 {
			cmds = append(cmds, getRange("{k}", 100), getRange("{k}other", 100))
		}
		for _, cmd := range cmds {
			ends = append(ends, read(t.Context(), b, cmd))
		}
		r.Until("all are in the queue", func() bool { return b.Queued() == 1+len(cmds) })
		short := getRange("{k}", 4) // it has another range
		cmds = append(cmds, short)
		ends = append(ends, read(t.Context(), b, short))
		r.Until("the short one is in the queue", func() bool { return b.Queued() == 1+len(cmds) })
		leave()
		if got := <-gone; !errors.Is(got.err, context.Canceled) {
			t.Errorf("the caller that leaves: %v", got.err)
		}
		close(g.open)
		for _, ended := range append(held, ends...) {
			if got := <-ended; got.err != nil {
				t.Fatal(got.err)
			}
		}
		for _, cmd := range cmds {
			want := "value of " + cmd.Args()[1].(string)
			if cmd == short {
				want = want[:5]
			}
			if cmd.Val() != want {
				t.Errorf("%v: %q, want %q", cmd.Args(), cmd.Val(), want)
			}
		}
		reads := 0
		for _, name := range redistest.WireOf(rdb).Commands() {
			if name == "GETRANGE" {
				reads++
			}
		}
		if reads != 3 {
			t.Errorf("%d reads were sent for 101 of three kinds, want 3", reads)
		}
	})
}

// Equal reads share an error, too.
func TestEqualReadsShareTheirError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		b := batch.NewEager(rdb)
		if _, err := r.Lpush("k", "no string"); err != nil {
			t.Fatal(err)
		}
		r.Pause()
		busy(t, b, t.Context(), within)
		var ends []<-chan outcome
		for range 3 {
			ends = append(ends, read(t.Context(), b, getRange("k", 100)))
		}
		synctest.Wait()
		r.Resume()
		for _, ended := range ends {
			if got := <-ended; !redis.HasErrorPrefix(got.err, "WRONGTYPE") {
				t.Errorf("a read of a list: %v", got.err)
			}
		}
	})
}

// A read in flight may have read a value that a Delete has removed since. A caller that arrives after
// the Delete does not share it.
func TestReadInFlightIsNotShared(t *testing.T) {
	for later := 1; later <= 3; later++ { // inline, and in pipelines
		t.Run(fmt.Sprint(later), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := redistest.Bubble(t)
				rdb := r.Client()
				b := batch.NewEager(rdb)
				if err := b.Do(t.Context(), within, set("k", "old")); err != nil { // this also connects
					t.Fatal(err)
				}
				redistest.WireOf(rdb).Delay(time.Second)
				before := getRange("k", 100)
				inFlight := read(t.Context(), b, before)
				time.Sleep(time.Second / 2) // the read was executed, and its reply is in flight
				r.Del("k")
				var (
					cmds []*redis.StringCmd
					ends []<-chan outcome
				)
				for range later {
					cmds = append(cmds, getRange("k", 100))
					ends = append(ends, read(t.Context(), b, cmds[len(cmds)-1]))
				}
				for _, ended := range append(ends, inFlight) {
					if got := <-ended; got.err != nil {
						t.Fatal(got.err)
					}
				}
				if before.Val() != "old" {
					t.Fatalf("the read before the deletion = %q; the test needs the old value", before.Val())
				}
				for _, cmd := range cmds {
					if cmd.Val() != "" {
						t.Errorf("one that began after the deletion read %q", cmd.Val())
					}
				}
			})
		})
	}
}
