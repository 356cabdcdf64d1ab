package batch_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestManyCallersShareFewRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b, c := newCounted(r.Client())
		r.Pause()
		callers := busy(t, b, t.Context(), within)
		var cmds []*redis.IntCmd
		for range 1000 {
			cmd := redis.NewIntCmd(t.Context(), "incr", "n")
			cmds = append(cmds, cmd)
			callers = append(callers, do(t.Context(), b, within, cmd))
		}
		synctest.Wait()
		if c.alone != 4 || c.pipelines != nil {
			t.Fatalf("%d plain commands and pipelines of %v are in flight, want one in each of 4 pipelines", c.alone, c.pipelines)
		}
		r.Resume()
		wantAllEnded(t, callers, 0, nil)
		if n := r.Wire().RoundTrips(); n > 8 || c.alone != 4 {
			t.Errorf("%d round trips for 1004 commands, %d of them plain; want at most 8 and 4", n, c.alone)
		}
		if longest := slices.Max(c.pipelines); longest > 300 {
			t.Errorf("a pipeline of %d commands, want at most 300", longest)
		}
		seen := map[int64]bool{}
		for _, cmd := range cmds {
			seen[cmd.Val()] = true
		}
		if len(seen) != 1000 || seen[0] {
			t.Errorf("%d different replies to 1000 INCR", len(seen))
		}
	})
}

// The commands of one caller share a pipeline, even if it then exceeds maxCommands.
func TestCommandsOfOneCallerStayTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b, c := newCounted(r.Client())
		r.Pause()
		callers := busy(t, b, t.Context(), within)
		for range 2 {
			var cmds []redis.Cmder
			for range 400 {
				cmds = append(cmds, redis.NewIntCmd(t.Context(), "incr", "n"))
			}
			callers = append(callers, do(t.Context(), b, within, cmds...))
		}
		synctest.Wait()
		r.Resume()
		wantAllEnded(t, callers, 0, nil)
		if !slices.Equal(c.pipelines, []int{400, 400}) {
			t.Errorf("pipelines of %v, want two of 400", c.pipelines)
		}
	})
}

func TestCancelReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, b := newPaused(t)
		ctx, cancel := context.WithCancel(t.Context())
		sent := busy(t, b, ctx, within)
		queued := do(ctx, b, within, get("k"))
		short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancelShort()
		late := do(short, b, within, get("k"))
		time.Sleep(20 * time.Millisecond)
		cancel()
		synctest.Wait()
		wantAllEnded(t, sent, 20*time.Millisecond, context.Canceled)
		wantEnded(t, "the queued one", queued, 20*time.Millisecond, context.Canceled)
		time.Sleep(30 * time.Millisecond)
		synctest.Wait()
		wantEnded(t, "the one with a deadline", late, 50*time.Millisecond, context.DeadlineExceeded)
	})
}

func TestHangingRedisTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, b := newPaused(t)
		sent := busy(t, b, t.Context(), 200*time.Millisecond)
		queued := do(t.Context(), b, 100*time.Millisecond, get("k"))
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		wantEnded(t, "the queued one", queued, 100*time.Millisecond, batch.ErrTimeout)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		wantAllEnded(t, sent, 200*time.Millisecond, batch.ErrTimeout)
	})
}

func TestOtherCallersGetRepliesAfterOneLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b, g := newGated(r.Client())
		if err := r.Set("k", "v"); err != nil {
			t.Fatal(err)
		}
		r.Pause()
		first := busy(t, b, t.Context(), within)
		ctx, cancel := context.WithCancel(t.Context())
		// These share one pipeline. Two of the callers leave while it is in flight.
		cmd := get("k")
		little, cancelLittle := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancelLittle()
		short := do(little, b, within, get("k"))
		synctest.Wait()
		canceled := do(ctx, b, within, get("k"))
		patient := do(t.Context(), b, within, cmd)
		synctest.Wait()
		r.Resume() // the pipelines arrive at the gate
		synctest.Wait()
		cancel()
		time.Sleep(time.Second)
		synctest.Wait()
		wantEnded(t, "the canceled one", canceled, 0, context.Canceled)
		wantEnded(t, "the one with little time", short, 500*time.Millisecond, context.DeadlineExceeded)
		wantAllEnded(t, first, 0, nil)
		close(g.open)
		synctest.Wait()
		wantEnded(t, "the patient one", patient, time.Second, nil)
		if cmd.Val() != "v" {
			t.Errorf("the patient one received %q, want v", cmd.Val())
		}
	})
}

func TestRequestIsNotSentAfterItsCallerLeftTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, b := newPaused(t)
		busy(t, b, t.Context(), within)
		ctx, cancel := context.WithCancel(t.Context())
		a := do(ctx, b, within, set("canceled", "v"))
		c := do(t.Context(), b, 100*time.Millisecond, set("late", "v"))
		d := do(t.Context(), b, within, set("patient", "v"))
		e := do(ctx, b, within, set("canceled too", "v"))
		time.Sleep(100 * time.Millisecond)
		cancel()
		synctest.Wait()
		r.Resume()
		synctest.Wait()
		wantEnded(t, "the canceled one", a, 100*time.Millisecond, context.Canceled)
		wantEnded(t, "the late one", c, 100*time.Millisecond, batch.ErrTimeout)
		wantEnded(t, "the patient one", d, 100*time.Millisecond, nil)
		wantEnded(t, "the second canceled one", e, 100*time.Millisecond, context.Canceled)
		want := []string{"busy0", "busy1", "busy2", "busy3", "patient"}
		if got := r.Keys(); !slices.Equal(got, want) {
			t.Errorf("keys %v were set, want %v", got, want)
		}
	})
}

// The caller leaves after the head of the queue was sent.
func TestLeavingALongQueueRemovesTheRightRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b, g := newGated(r.Client())
		r.Pause()
		busy(t, b, t.Context(), within)
		for i := range 4 * 300 {
			do(t.Context(), b, within, set(fmt.Sprint("head", i), "v"))
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		do(t.Context(), b, within, set("before", "v"))
		synctest.Wait()
		do(ctx, b, within, set("canceled", "v"))
		synctest.Wait()
		do(t.Context(), b, within, set("after", "v"))
		synctest.Wait()
		r.Resume() // four pipelines arrive at the gate
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(g.open)
		synctest.Wait()
		if !r.Exists("head1199") || !r.Exists("before") || r.Exists("canceled") || !r.Exists("after") {
			t.Errorf("of the head, before, canceled and after were set: %v, %v, %v, %v; want true, true, false, true",
				r.Exists("head1199"), r.Exists("before"), r.Exists("canceled"), r.Exists("after"))
		}
	})
}

func TestQueueIsRemovedWhenAllCallersHaveLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, b := newPaused(t)
		busy(t, b, t.Context(), within)
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			for range 10 {
				do(ctx, b, within, set("canceled", "v"))
			}
			synctest.Wait()
			cancel()
			synctest.Wait()
		}
		stays := do(t.Context(), b, within, set("patient", "v"))
		synctest.Wait()
		r.Resume()
		synctest.Wait()
		wantEnded(t, "the later one", stays, 0, nil)
		if r.Exists("canceled") || !r.Exists("patient") {
			t.Errorf("keys %v were set, want those of the callers that stayed", r.Keys())
		}
	})
}

// A small batch lingers while a larger one is in flight.
func TestFewCommandsLingerWhileManyAreInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &tarpit{drain: make(chan struct{})}
		p.on.Store(true)
		rdb := redistest.Bubble(t).Client()
		rdb.AddHook(p)
		b := batch.New(rdb, func() {})
		inFlight := func(want int32, when string) {
			t.Helper()
			synctest.Wait()
			if n := p.taken.Load(); n != want {
				t.Fatalf("%d commands and pipelines are in flight %s, want %d", n, when, want)
			}
		}
		do(t.Context(), b, within, set("a", "v"), set("b", "v"), set("c", "v"), set("d", "v"))
		inFlight(1, "after the four")
		for range 3 {
			do(t.Context(), b, within, get("k"))
		}
		inFlight(1, "while three linger for the four")
		do(t.Context(), b, within, get("k"))
		inFlight(2, "when there are as many as in flight")

		do(t.Context(), b, within, get("k"))
		time.Sleep(200 * time.Microsecond)
		inFlight(2, "while the next lingers, alone")
		do(t.Context(), b, within, get("k"))
		inFlight(3, "when another arrives after the linger")

		do(t.Context(), b, within, get("k"))
		inFlight(3, "while no other arrives")
		time.Sleep(2 * time.Millisecond)
		inFlight(4, "after maxLinger")
		close(p.drain)
	})
}
