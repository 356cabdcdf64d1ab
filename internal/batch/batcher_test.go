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

func TestLoneCommandIsNoPipeline(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		b, c := newCounted(r.Client())
		for i := range 5 {
			cmd := set("k", fmt.Sprint(i))
			if err := b.Do(t.Context(), within, cmd); err != nil || cmd.Val() != "OK" {
				t.Fatalf("Do(set) = %v, reply %q; want nil, OK", err, cmd.Val())
			}
		}
		if c.alone != 5 || c.pipelines != nil {
			t.Errorf("%d plain commands and pipelines of %v, want 5 and none", c.alone, c.pipelines)
		}
		if n := r.Wire().RoundTrips(); n != 5 {
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
			t.Errorf("they arrived as %v", got)
		}
	})
}

func TestClientReceivesTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		var h deadlines
		rdb.AddHook(&h)
		b := batch.NewEager(rdb)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // only the caller has this deadline
		defer cancel()
		if err := b.Do(ctx, 3*time.Second, get("k")); err != redis.Nil {
			t.Fatal(err)
		}
		if h.left != 3*time.Second {
			t.Errorf("the command has a limit of %v, want 3s", h.left)
		}
	})
}

// ErrTimeout does not match the caller's deadline, whether the Batcher or the client notices the end
// of the time limit first.
func TestTimeoutIsNotTheCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		r.Pause()
		for range 50 { // both notice it at the same moment
			b := batch.NewEager(r.Client())
			err := b.Do(t.Context(), 100*time.Millisecond, get("k"))
			if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("Do = %v; want an os.ErrDeadlineExceeded and no context.DeadlineExceeded", err)
			}
		}
		// The client times out on its own: it waits for a free connection.
		b := batch.NewEager(failing{context.DeadlineExceeded})
		if err := b.Do(t.Context(), within, get("k")); !errors.Is(err, batch.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do = %v; want %v and no context.DeadlineExceeded", err, batch.ErrTimeout)
		}
	})
}

func (failing) Pipeline() redis.Pipeliner { panic("not for one command") }

func TestNothingIsSentWithoutTime(t *testing.T) {
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

func (gate) DialHook(next redis.DialHook) redis.DialHook { return next }

func (gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// Queued requests fail; those in flight get their replies.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, b := newPaused(t)
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
			t.Error("Close returned before those in flight were answered")
		default:
		}
		r.Resume()
		synctest.Wait()
		wantAllEnded(t, sent, 0, nil)
		<-closed
	})
}

func TestErrorOfOneCommandIsNotThatOfOthers(t *testing.T) {
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
		wantAllEnded(t, good, 0, nil)
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
			t.Errorf("%d round trips: the commands did not share pipelines", n)
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
			t.Errorf("the command after the errors = %q, %v; want v, nil", got, err)
		}
	})
}

func TestCutConnectionFailsOnlyWhatIsInFlight(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		b := batch.NewEager(r.Client())
		r.Wire().LoseReplies(1)
		err := b.Do(t.Context(), within, set("k", "v"), get("k"))
		if err == nil || errors.Is(err, batch.ErrTimeout) {
			t.Errorf("Do over a cut connection = %v, want the cause", err)
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
			t.Errorf("Do without a Redis = %v, want the cause", err)
		}
		r.Restart()
		r.Until("Redis answers again", func() bool { return b.Do(t.Context(), within, set("k", "v")) == nil })
	})
}

// Each caller receives the reply to its own command, and each SET without an error is stored, while
// other callers leave.
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
					read := get(key)
					switch err := b.Do(ctx, within, set(key, key), read); {
					case err == nil && read.Val() == key:
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
			t.Errorf("%d answered, %d gone; too few for the test", n, gone.Load())
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
