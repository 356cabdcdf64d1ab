package batch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// within is more than enough for a Redis that answers.
const within = 10 * time.Second

// A counter is a hook that counts what goes through a client.
type counter struct {
	mu        sync.Mutex
	alone     int
	pipelines []int // their lengths
}

func (c *counter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() != "hello" {
			c.mu.Lock()
			c.alone++
			c.mu.Unlock()
		}
		return next(ctx, cmd)
	}
}

func (c *counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.mu.Lock()
		c.pipelines = append(c.pipelines, len(cmds))
		c.mu.Unlock()
		return next(ctx, cmds)
	}
}

// An outcome is how a Do ended, and after how long.
type outcome struct {
	err  error
	took time.Duration
}

// do calls Do on a goroutine of its own.
func do(ctx context.Context, b *batch.Batcher, within time.Duration, cmds ...redis.Cmder) <-chan outcome {
	ended := make(chan outcome, 1)
	go func() {
		start := time.Now()
		err := b.Do(ctx, within, cmds...)
		ended <- outcome{err, time.Since(start)}
	}()
	return ended
}

func wantEnded(t *testing.T, who string, ended <-chan outcome, after time.Duration, want error) {
	t.Helper()
	select {
	case got := <-ended:
		if !errors.Is(got.err, want) || got.took != after {
			t.Errorf("%s: %v after %v; want %v after %v", who, got.err, got.took, want, after)
		}
	default:
		t.Errorf("%s still waits", who)
	}
}

func wantWaiting(t *testing.T, who string, ended <-chan outcome) {
	t.Helper()
	select {
	case got := <-ended:
		t.Errorf("%s does not wait any more: %v", who, got.err)
	default:
	}
}

func get(key string) *redis.StringCmd { return redis.NewStringCmd(context.Background(), "get", key) }

func set(key, value string) *redis.StatusCmd {
	return redis.NewStatusCmd(context.Background(), "set", key, value)
}

func TestLoneCommandIsNoPipeline(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		var c counter
		rdb.AddHook(&c)
		b := batch.NewEager(rdb)
		for i := range 5 {
			cmd := set("k", fmt.Sprint(i))
			if err := b.Do(t.Context(), within, cmd); err != nil || cmd.Val() != "OK" {
				t.Fatalf("Do(set) = %v, reply %q; want nil, OK", err, cmd.Val())
			}
		}
		if c.alone != 5 || c.pipelines != nil {
			t.Errorf("%d plain commands and pipelines of %v, want 5 and none", c.alone, c.pipelines)
		}
		if n := redistest.WireOf(rdb).RoundTrips(); n != 5 {
			t.Errorf("%d round trips, want 5", n)
		}
	})
}

func TestCommandsOfOneCallerShareARoundTripInOrder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		b := batch.NewEager(rdb)
		var cmds []redis.Cmder
		for i := range 20 {
			cmds = append(cmds, redis.NewIntCmd(t.Context(), "rpush", "list", i))
		}
		if err := b.Do(t.Context(), within, cmds...); err != nil {
			t.Fatal(err)
		}
		if n := redistest.WireOf(rdb).RoundTrips(); n != 1 {
			t.Errorf("%d round trips, want 1", n)
		}
		for i, cmd := range cmds {
			if got := cmd.(*redis.IntCmd).Val(); got != int64(i+1) {
				t.Errorf("command %d made the list %d long, want %d", i, got, i+1)
			}
		}
		var want []string
		for i := range 20 {
			want = append(want, fmt.Sprint(i))
		}
		if got := rdb.LRange(t.Context(), "list", 0, -1).Val(); !slices.Equal(got, want) {
			t.Errorf("they came as %v", got)
		}
	})
}

// busy has maxInFlight pipelines of one command each in flight, to a Redis that is paused.
func busy(t *testing.T, b *batch.Batcher, ctx context.Context, within time.Duration) []<-chan outcome { //nolint:revive // a helper of tests
	t.Helper()
	var ended []<-chan outcome
	for i := range 4 {
		ended = append(ended, do(ctx, b, within, set(fmt.Sprint("busy", i), "v")))
		synctest.Wait()
	}
	return ended
}

func TestManyCallersShareFewRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		var c counter
		rdb.AddHook(&c)
		b := batch.NewEager(rdb)
		r.Pause()
		first := busy(t, b, t.Context(), within)
		var rest []<-chan outcome
		var cmds []*redis.IntCmd
		for range 1000 {
			cmd := redis.NewIntCmd(t.Context(), "incr", "n")
			cmds = append(cmds, cmd)
			rest = append(rest, do(t.Context(), b, within, cmd))
		}
		synctest.Wait()
		if c.alone != 4 || c.pipelines != nil {
			t.Fatalf("%d plain commands and pipelines of %v are under way, want one in each of 4 pipelines", c.alone, c.pipelines)
		}
		r.Resume()
		synctest.Wait()
		for _, ended := range slices.Concat(first, rest) {
			wantEnded(t, "a caller", ended, 0, nil)
		}
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

// The commands of one caller share a pipeline, even if that makes it too long.
func TestCommandsOfOneCallerStayTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		var c counter
		rdb.AddHook(&c)
		b := batch.NewEager(rdb)
		r.Pause()
		first := busy(t, b, t.Context(), within)
		var rest []<-chan outcome
		for range 2 {
			var cmds []redis.Cmder
			for range 400 {
				cmds = append(cmds, redis.NewIntCmd(t.Context(), "incr", "n"))
			}
			rest = append(rest, do(t.Context(), b, within, cmds...))
		}
		synctest.Wait()
		r.Resume()
		synctest.Wait()
		for _, ended := range slices.Concat(first, rest) {
			wantEnded(t, "a caller", ended, 0, nil)
		}
		if !slices.Equal(c.pipelines, []int{400, 400}) {
			t.Errorf("pipelines of %v, want two of 400", c.pipelines)
		}
	})
}

func TestCancelReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b := batch.NewEager(r.Client())
		r.Pause()
		ctx, cancel := context.WithCancel(t.Context())
		sent := busy(t, b, ctx, within)
		queued := do(ctx, b, within, get("k"))
		short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancelShort()
		late := do(short, b, within, get("k"))
		time.Sleep(20 * time.Millisecond)
		cancel()
		synctest.Wait()
		for i, ended := range sent {
			wantEnded(t, fmt.Sprint("the one in hand ", i), ended, 20*time.Millisecond, context.Canceled)
		}
		wantEnded(t, "the queued one", queued, 20*time.Millisecond, context.Canceled)
		time.Sleep(30 * time.Millisecond)
		synctest.Wait()
		wantEnded(t, "the one with a deadline", late, 50*time.Millisecond, context.DeadlineExceeded)
	})
}

func TestHangingRedisTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b := batch.NewEager(r.Client())
		r.Pause()
		sent := busy(t, b, t.Context(), 200*time.Millisecond)
		queued := do(t.Context(), b, 100*time.Millisecond, get("k"))
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		wantEnded(t, "the queued one", queued, 100*time.Millisecond, batch.ErrTimeout)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		for i, ended := range sent {
			wantEnded(t, fmt.Sprint("the one in hand ", i), ended, 200*time.Millisecond, batch.ErrTimeout)
		}
	})
}

func TestClientReceivesTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		var h deadlines
		rdb.AddHook(&h)
		b := batch.NewEager(rdb)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // stays with its caller
		defer cancel()
		if err := b.Do(ctx, 3*time.Second, get("k")); err != redis.Nil {
			t.Fatal(err)
		}
		if h.left != 3*time.Second {
			t.Errorf("the client was given %v, want 3s", h.left)
		}
	})
}

// deadlines is a hook that notes how much time the last command was given.
type deadlines struct{ left time.Duration }

func (*deadlines) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d *deadlines) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		end, _ := ctx.Deadline()
		d.left = time.Until(end)
		return err
	}
}

func (*deadlines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The time limit is not the caller's deadline, whether the Batcher or the client notices
// first that it is over.
func TestTimeoutIsNotTheCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		r.Pause()
		for range 50 { // both happen in the same moment
			b := batch.NewEager(r.Client())
			err := b.Do(t.Context(), 100*time.Millisecond, get("k"))
			if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("Do = %v; want an os.ErrDeadlineExceeded and no context.DeadlineExceeded", err)
			}
		}
		// The client gives up alone: it waits for a connection to be free.
		b := batch.NewEager(failing{context.DeadlineExceeded})
		if err := b.Do(t.Context(), within, get("k")); !errors.Is(err, batch.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do = %v; want %v and no context.DeadlineExceeded", err, batch.ErrTimeout)
		}
	})
}

// failing is a connection on which every command fails.
type failing struct{ err error }

func (f failing) Process(_ context.Context, cmd redis.Cmder) error {
	cmd.SetErr(f.err)
	return f.err
}

func (failing) Pipeline() redis.Pipeliner { panic("not for one command") }

func TestWithoutTimeNothingIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b := batch.NewEager(r.Client())
		for i := range 2000 {
			go func() {
				if err := b.Do(t.Context(), -time.Duration(i%2), set("k", "v")); !errors.Is(err, batch.ErrTimeout) {
					t.Errorf("Do without time = %v, want %v", err, batch.ErrTimeout)
				}
			}()
		}
		synctest.Wait()
		if sent := r.Wire().Commands(); len(sent) > 0 {
			t.Errorf("sent %v, want nothing", sent)
		}
	})
}

func TestCallerThatLeavesHarmsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		g := gate{open: make(chan struct{})}
		rdb.AddHook(g)
		b := batch.NewEager(rdb)
		if err := r.Set("k", "v"); err != nil {
			t.Fatal(err)
		}
		r.Pause()
		first := busy(t, b, t.Context(), within)
		ctx, cancel := context.WithCancel(t.Context())
		// These go together in one pipeline, and two of them leave then.
		cmd := get("k")
		little, cancelLittle := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancelLittle()
		short := do(little, b, within, get("k"))
		synctest.Wait()
		canceled := do(ctx, b, within, get("k"))
		patient := do(t.Context(), b, within, cmd)
		synctest.Wait()
		r.Resume() // as far as the gate
		synctest.Wait()
		cancel()
		time.Sleep(time.Second)
		synctest.Wait()
		wantEnded(t, "the canceled one", canceled, 0, context.Canceled)
		wantEnded(t, "the one with little time", short, 500*time.Millisecond, context.DeadlineExceeded)
		for _, ended := range first {
			wantEnded(t, "one of the first", ended, 0, nil)
		}
		close(g.open)
		synctest.Wait()
		wantEnded(t, "the patient one", patient, time.Second, nil)
		if cmd.Val() != "v" {
			t.Errorf("the patient one got %q, want v", cmd.Val())
		}
	})
}

// A gate is a hook that holds up pipelines until it is open.
type gate struct{ open chan struct{} }

func (gate) DialHook(next redis.DialHook) redis.DialHook { return next }

func (gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (g gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		<-g.open
		return next(ctx, cmds)
	}
}

func TestCallerThatLeftInTheQueueIsNeverSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b := batch.NewEager(r.Client())
		r.Pause()
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

// Also after the head of the queue was sent.
func TestLeavingALongQueueRemovesTheRightRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		g := gate{open: make(chan struct{})}
		rdb.AddHook(g)
		b := batch.NewEager(rdb)
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
		r.Resume() // four pipelines, as far as the gate
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

// A queue that all callers left is removed.
func TestQueueFromWhichAllHaveLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b := batch.NewEager(r.Client())
		r.Pause()
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
		wantEnded(t, "the one that came after them", stays, 0, nil)
		if r.Exists("canceled") || !r.Exists("patient") {
			t.Errorf("keys %v were set, want those of the callers that stayed", r.Keys())
		}
	})
}

// A tarpit is a hook that takes commands in the place of Redis, and does not
// answer those that it took while it was on, until it is drained.
type tarpit struct {
	on    atomic.Bool
	taken atomic.Int32 // commands and pipelines
	drain chan struct{}
}

// newTarpit returns a batcher over nothing but a tarpit that is on.
func newTarpit(t *testing.T) (*tarpit, *batch.Batcher) {
	t.Helper()
	p := &tarpit{drain: make(chan struct{})}
	p.on.Store(true)
	rdb := redistest.Bubble(t).Client()
	rdb.AddHook(p)
	return p, batch.NewEager(rdb)
}

func (p *tarpit) take() {
	p.taken.Add(1)
	if p.on.Load() {
		<-p.drain
	}
}

func (*tarpit) DialHook(next redis.DialHook) redis.DialHook { return next }

func (p *tarpit) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { p.take(); return nil }
}

func (p *tarpit) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { p.take(); return nil }
}

// A network loses all packets, and then none. go-redis is still stuck on its old
// connections; callers that come now are not.
func TestStuckPipelinesDoNotBlockRecovery(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, b *batch.Batcher) <-chan outcome{
		"their callers waited for all the time they had": func(t *testing.T, b *batch.Batcher) <-chan outcome {
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
					t.Errorf("%d commands were sent, want 5: the next goes out when the time of the others is over", n)
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
				t.Errorf("%d commands are under way, want 4 and 8 that are given up", n)
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
				t.Fatalf("%d commands are under way at once, want 4 again", n)
			}
			close(p.drain)
			synctest.Wait()
			p.drain = make(chan struct{})
		}
	})
}

// A pipeline that answered callers that had left counts as any other.
func TestPipelineThatWasSlowOnceIsNotGivenUpLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, b := newTarpit(t)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		for range 4 {
			do(ctx, b, time.Second, get("k"))
			synctest.Wait()
		}
		for range 2 { // these go together, in one of the four pipelines
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
			t.Errorf("%d commands and pipelines under way, want 4 as always", n-4)
		}
		close(p.drain)
	})
}

// Few commands that come while many are in flight wait for those, but not for long.
func TestFewCommandsLingerWhileManyAreInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &tarpit{drain: make(chan struct{})}
		p.on.Store(true)
		rdb := redistest.Bubble(t).Client()
		rdb.AddHook(p)
		b := batch.New(rdb, func() {})
		underway := func(want int32, when string) {
			t.Helper()
			synctest.Wait()
			if n := p.taken.Load(); n != want {
				t.Fatalf("%d commands and pipelines are under way %s, want %d", n, when, want)
			}
		}
		do(t.Context(), b, within, set("a", "v"), set("b", "v"), set("c", "v"), set("d", "v"))
		underway(1, "after the four")
		for range 3 {
			do(t.Context(), b, within, get("k"))
		}
		underway(1, "while three wait to go with the four")
		do(t.Context(), b, within, get("k"))
		underway(2, "when there are as many as those on their way")

		do(t.Context(), b, within, get("k"))
		time.Sleep(200 * time.Microsecond)
		underway(2, "while the next waits, alone")
		do(t.Context(), b, within, get("k"))
		underway(3, "when another comes, and it has waited enough")

		do(t.Context(), b, within, get("k"))
		underway(3, "while nobody else comes")
		time.Sleep(2 * time.Millisecond)
		underway(4, "when it has waited for 2 ms")
		close(p.drain)
	})
}

// Queued requests fail; those in flight get their replies.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b := batch.NewEager(r.Client())
		r.Pause()
		sent := busy(t, b, t.Context(), within)
		queued := do(t.Context(), b, within, get("k"))
		synctest.Wait()
		closed := make(chan struct{})
		go func() { b.Close(io.EOF); b.Close(io.EOF); close(closed) }()
		synctest.Wait()
		wantEnded(t, "the queued one", queued, 0, io.EOF)
		if err := b.Do(t.Context(), within, get("k")); !errors.Is(err, io.EOF) {
			t.Errorf("Do after Close = %v, want %v", err, io.EOF)
		}
		select {
		case <-closed:
			t.Error("Close returned before those on their way were answered")
		default:
		}
		r.Resume()
		synctest.Wait()
		for _, ended := range sent {
			wantEnded(t, "one on its way", ended, 0, nil)
		}
		<-closed
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
			t.Errorf("Close took %v, want the 1s that the command was given", took)
		}
		synctest.Wait()
		wantEnded(t, "the one on its way", sent, time.Second, batch.ErrTimeout)
		close(p.drain)
	})
}

func TestErrorOfOneCommandHarmsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		b := batch.NewEager(r.Client())
		if _, err := r.Push("list", "x"); err != nil {
			t.Fatal(err)
		}
		r.Pause()
		busy(t, b, t.Context(), within)
		var good, bad []<-chan outcome
		for i := range 10 {
			good = append(good, do(t.Context(), b, within, set(fmt.Sprint("k", i), "v")))
			bad = append(bad, do(t.Context(), b, within, get("list")))
		}
		both := do(t.Context(), b, within, set("k10", "v"), get("list"), get("nothing"))
		synctest.Wait()
		r.Resume()
		synctest.Wait()
		for _, ended := range good {
			wantEnded(t, "one without an error", ended, 0, nil)
		}
		for _, ended := range append(bad, both) {
			select {
			case got := <-ended:
				if !redis.HasErrorPrefix(got.err, "WRONGTYPE") {
					t.Errorf("the error of a list that is not a string = %v", got.err)
				}
			default:
				t.Error("one with an error still waits")
			}
		}
		if n := r.Wire().RoundTrips(); n > 8 {
			t.Errorf("%d round trips; they did not share pipelines", n)
		}
	})
}

func TestFirstErrorIsReturned(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		b := batch.NewEager(r.Client())
		cmds := []redis.Cmder{
			set("k", "v"),
			get("{k}nothing"),
			redis.NewIntCmd(t.Context(), "llen", "k"),
			get("k"),
		}
		if err := b.Do(t.Context(), within, cmds...); err != redis.Nil {
			t.Errorf("Do = %v, want the first error, %v", err, redis.Nil)
		}
		if err := cmds[2].Err(); !redis.HasErrorPrefix(err, "WRONGTYPE") {
			t.Errorf("the second error = %v, want WRONGTYPE", err)
		}
		if got, err := cmds[3].(*redis.StringCmd).Result(); got != "v" || err != nil {
			t.Errorf("what came after the errors = %q, %v; want v, nil", got, err)
		}
	})
}

func TestCutConnectionFailsOnlyWhatIsInFlight(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		b := batch.NewEager(r.Client())
		r.Wire().LoseReplies(1)
		err := b.Do(t.Context(), within, set("k", "v"), get("k"))
		if err == nil || errors.Is(err, batch.ErrTimeout) {
			t.Errorf("Do over a connection that is cut = %v, want the reason", err)
		}
		cmd := get("k")
		if err := b.Do(t.Context(), within, cmd); err != nil || cmd.Val() != "v" {
			t.Errorf("the next = %q, %v; want v, nil", cmd.Val(), err)
		}
	})
}

func TestRefusedConnectionIsAnErrorAtOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		b := batch.NewEager(r.Client())
		if err := b.Do(t.Context(), within, set("k", "v")); err != nil {
			t.Fatal(err)
		}
		r.Kill()
		if err := b.Do(t.Context(), within, get("k")); err == nil || errors.Is(err, batch.ErrTimeout) {
			t.Errorf("Do without a Redis = %v, want the reason", err)
		}
		r.Restart()
		r.Until("it works again", func() bool { return b.Do(t.Context(), within, set("k", "v")) == nil })
	})
}

// Callers come and leave. Each receives the reply to its own command, and each SET without
// an error is stored.
func TestEachCallerGetsItsOwnReply(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		b := batch.NewEager(rdb)
		var callers sync.WaitGroup
		var answered, gone atomic.Int32
		for i := range 32 {
			callers.Go(func() {
				for n := range 100 {
					ctx, cancel := context.WithCancel(t.Context())
					if rand.IntN(5) == 0 {
						go cancel()
					}
					key := fmt.Sprintf("{%d}%d", i, n)
					asked := get(key)
					switch err := b.Do(ctx, within, set(key, key), asked); {
					case err == nil && asked.Val() == key:
						answered.Add(1)
					case errors.Is(err, context.Canceled):
						gone.Add(1)
					default:
						t.Errorf("get %q = %v", key, err)
					}
					cancel()
				}
			})
		}
		callers.Wait()
		if n := answered.Load(); n < 1000 {
			t.Errorf("%d answered, %d gone; the test has no force", n, gone.Load())
		}
		t.Logf("%d answered, %d gone, %d round trips", answered.Load(), gone.Load(), redistest.WireOf(rdb).RoundTrips())
	})
}

func BenchmarkLoneCommand(b *testing.B) {
	batcher := batch.New(failing{nil}, func() {})
	cmd := get("k")
	b.ReportAllocs()
	for b.Loop() {
		if err := batcher.Do(b.Context(), within, cmd); err != nil {
			b.Fatal(err)
		}
	}
}
