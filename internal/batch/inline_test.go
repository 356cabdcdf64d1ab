package batch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/guard"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// senders is a hook that records how each command is sent: inline, or in a pipeline.
type senders struct {
	mu  sync.Mutex
	own []bool
}

func (*senders) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s *senders) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		s.note(cmd)
		return next(ctx, cmd)
	}
}

func (s *senders) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		s.note(cmds[0])
		return next(ctx, cmds)
	}
}

func (s *senders) note(first redis.Cmder) {
	if name := first.Name(); name == "hello" || name == "client" {
		return // it belongs to the setup of a connection
	}
	own := strings.Contains(string(debug.Stack()), "batch.(*Batcher).do(")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own = append(s.own, own)
}

// taken returns the records since its last call.
func (s *senders) taken() []bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.own
	s.own = nil
	return own
}

// afterAPromptReply runs a test with a deadline-aware client whose Redis has just answered.
func afterAPromptReply(t *testing.T, test func(t *testing.T, r redistest.Redis, rdb *redis.Client, s *senders, b *batch.Batcher)) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb, s := r.Client(), &senders{}
		rdb.AddHook(s)
		b := batch.New(rdb, func() {})
		answered(t, b)
		s.taken()
		test(t, r, rdb, s, b)
	})
}

// answered sends a command and waits for its reply.
func answered(t *testing.T, b *batch.Batcher) {
	t.Helper()
	if err := b.Do(t.Context(), within, set("k", "v")); err != nil {
		t.Fatal(err)
	}
	synctest.Wait() // the pipeline has ended
}

func wantSenders(t *testing.T, s *senders, want ...bool) {
	t.Helper()
	if got := s.taken(); !slices.Equal(got, want) {
		t.Errorf("sent by their callers: %v, want %v", got, want)
	}
}

func TestLoneCommandIsSentInline(t *testing.T) {
	afterAPromptReply(t, func(t *testing.T, _ redistest.Redis, _ *redis.Client, s *senders, b *batch.Batcher) {
		cmd := getRange("k", 10)
		if err := b.Read(t.Context(), within, cmd); err != nil || cmd.Val() != "v" {
			t.Errorf("Read = %v, %q; want nil, v", err, cmd.Val())
		}
		if err := b.Do(t.Context(), within, get("k"), get("nothing")); err != redis.Nil {
			t.Errorf("Do = %v, want %v", err, redis.Nil)
		}
		answered(t, b)
		wantSenders(t, s, true, true, true)
	})
}

// Neither before the first reply nor with a client that is not deadline-aware.
func TestNoInlineSendWithoutADeadlineOrAPromptReply(t *testing.T) {
	for name, c := range map[string]struct {
		before int // commands that are answered before
		change func(*redis.Options)
		wrap   bool
	}{
		"the first":           {0, func(*redis.Options) {}, false},
		"wrapped":             {1, func(*redis.Options) {}, true},
		"go-redis' defaults":  {1, func(o *redis.Options) { o.ContextTimeoutEnabled = false }, false},
		"no deadline to read": {1, func(o *redis.Options) { o.ReadTimeout = -2 }, false},
		"no deadline to send": {1, func(o *redis.Options) { o.WriteTimeout = -2 }, false},
		"cached": {1, func(o *redis.Options) {
			o.Protocol, o.ClientSideCacheConfig = 3, &redis.ClientSideCacheConfig{MaxEntries: 10}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			rdb, s := redistest.Server(t).Client(c.change), &senders{}
			rdb.AddHook(s)
			conn := batch.Conn(rdb)
			if c.wrap {
				conn = struct{ batch.Conn }{rdb}
			}
			b := batch.New(conn, func() {})
			for range c.before + 1 {
				s.taken()
				if err := b.Do(t.Context(), within, set("k", "v")); err != nil {
					t.Fatal(err)
				}
			}
			wantSenders(t, s, false)
		})
	}
}

func TestCommandsBehindAnInlineSendGoInAPipeline(t *testing.T) {
	afterAPromptReply(t, func(t *testing.T, r redistest.Redis, _ *redis.Client, s *senders, b *batch.Batcher) {
		r.Pause()
		first := do(t.Context(), b, within, get("k"))
		synctest.Wait()
		wantSenders(t, s, true)
		time.Sleep(10 * time.Millisecond) // the command in flight is not answered promptly
		var rest []<-chan outcome
		for range 3 {
			rest = append(rest, do(t.Context(), b, within, get("k")))
			synctest.Wait()
		}
		wantSenders(t, s, false) // a pipeline sends the second, and the others wait
		r.Resume()
		synctest.Wait()
		wantEnded(t, "the first", first, 10*time.Millisecond, nil)
		for _, ended := range rest {
			wantEnded(t, "another", ended, 0, nil)
		}
		wantSenders(t, s, false)
		answered(t, b) // makes the last reply prompt
		s.taken()
		answered(t, b)
		wantSenders(t, s, true)
	})
}

// A caller does not send the commands of another that waited before it.
func TestCallerSendsOnlyItsOwnCommandInline(t *testing.T) {
	afterAPromptReply(t, func(t *testing.T, r redistest.Redis, _ *redis.Client, s *senders, b *batch.Batcher) {
		r.Pause()
		do(t.Context(), b, within, set("a", "v"), set("b", "v"), set("c", "v"))
		synctest.Wait()
		before, after := get("k"), get("k")
		waits := do(t.Context(), b, within, before) // lingers for the three
		synctest.Wait()
		time.Sleep(time.Millisecond) // the linger ends
		comes := do(t.Context(), b, within/2, after)
		synctest.Wait()
		r.Resume()
		synctest.Wait()
		wantEnded(t, "the one that waited", waits, time.Millisecond, nil)
		wantEnded(t, "the one that arrived later", comes, 0, nil)
		if before.Val() != "v" || after.Val() != "v" {
			t.Errorf("they read %q and %q, want v", before.Val(), after.Val())
		}
		wantSenders(t, s, true, false, false)
	})
}

func TestInlineSendTimesOut(t *testing.T) {
	afterAPromptReply(t, func(t *testing.T, r redistest.Redis, _ *redis.Client, s *senders, b *batch.Batcher) {
		r.Pause()
		late := do(t.Context(), b, 200*time.Millisecond, get("k"))
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		wantEnded(t, "the lone one", late, 200*time.Millisecond, batch.ErrTimeout)
		r.Resume()
		answered(t, b)
		r.Pause()
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		late = do(short, b, 200*time.Millisecond, get("k"))
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		wantEnded(t, "the one with less time", late, 100*time.Millisecond, context.DeadlineExceeded)
		own := s.taken()
		if !own[0] || !slices.Contains(own[1:], true) {
			t.Errorf("sent by their callers: %v; the test needs inline sends", own)
		}
	})
}

// Redis stops answering. Only the callers of inline sends in flight notice their cancellation late.
func TestOnlyInlineCallersNoticeACancellationLate(t *testing.T) {
	afterAPromptReply(t, func(t *testing.T, r redistest.Redis, _ *redis.Client, s *senders, b *batch.Batcher) {
		r.Pause()
		ctx, cancel := context.WithCancel(t.Context())
		inlined := do(ctx, b, 200*time.Millisecond, get("k"))
		time.Sleep(10 * time.Millisecond)
		next := do(ctx, b, 200*time.Millisecond, get("k"))
		time.Sleep(10 * time.Millisecond)
		cancel()
		synctest.Wait()
		wantWaiting(t, "the inline one", inlined)
		wantEnded(t, "the next", next, 10*time.Millisecond, context.Canceled)
		time.Sleep(180 * time.Millisecond)
		synctest.Wait()
		wantEnded(t, "the inline one", inlined, 200*time.Millisecond, context.Canceled)
		ctx, cancel = context.WithCancel(t.Context())
		later := do(ctx, b, 200*time.Millisecond, get("k"))
		synctest.Wait()
		cancel()
		synctest.Wait()
		wantEnded(t, "a later one", later, 0, context.Canceled)
		if own := s.taken(); slices.Contains(own[1:], true) || !own[0] {
			t.Errorf("sent by their callers: %v, want the first only", own)
		}
	})
}

func TestEndedContextSendsNothingInline(t *testing.T) {
	afterAPromptReply(t, func(t *testing.T, r redistest.Redis, _ *redis.Client, _ *senders, b *batch.Batcher) {
		r.Pause()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		gone := do(ctx, b, within, get("k"))
		synctest.Wait()
		wantEnded(t, "the one with an ended context", gone, 0, context.Canceled)
	})
}

func TestCloseWaitsForAnInlineSend(t *testing.T) {
	for _, answers := range []bool{true, false} {
		t.Run(fmt.Sprint("answers ", answers), func(t *testing.T) {
			afterAPromptReply(t, func(t *testing.T, r redistest.Redis, _ *redis.Client, s *senders, b *batch.Batcher) {
				r.Pause()
				sent := do(t.Context(), b, time.Second, get("k"))
				synctest.Wait()
				wantSenders(t, s, true)
				start := time.Now()
				closed := make(chan time.Duration, 1)
				go func() { b.Close(io.EOF); closed <- time.Since(start) }()
				synctest.Wait()
				want, end := time.Second, batch.ErrTimeout
				if answers {
					want, end = 0, nil
					r.Resume()
				}
				if took := <-closed; took != want {
					t.Errorf("Close took %v, want %v", took, want)
				}
				synctest.Wait()
				wantEnded(t, "the one in flight", sent, want, end)
				if err := b.Do(t.Context(), within, get("k")); !errors.Is(err, io.EOF) {
					t.Errorf("Do after Close = %v, want %v", err, io.EOF)
				}
			})
		})
	}
}

// A panic of a hook is the error of its command. Other commands are sent.
func TestPanicOfAHookIsTheCommandsError(t *testing.T) {
	afterAPromptReply(t, func(t *testing.T, r redistest.Redis, rdb *redis.Client, s *senders, b *batch.Batcher) {
		p := &panics{on: true}
		rdb.AddHook(p)
		err := b.Do(t.Context(), within, get("k"))
		if _, ok := errors.AsType[*guard.PanicError](err); !ok {
			t.Errorf("Do = %v, want a PanicError", err)
		}
		p.on = false
		s.taken()
		r.Pause()
		busy(t, b, t.Context(), within)
		time.Sleep(2 * time.Millisecond) // the linger of the third and fourth ends
		synctest.Wait()
		if n := len(s.taken()); n != 3 {
			t.Errorf("%d are in flight, want 3: two lone commands, and two in one pipeline", n)
		}
		r.Resume()
	})
}

type panics struct{ on bool }

func (*panics) DialHook(next redis.DialHook) redis.DialHook { return next }

func (p *panics) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if p.on {
			panic("a hook's")
		}
		return next(ctx, cmd)
	}
}

func (*panics) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
