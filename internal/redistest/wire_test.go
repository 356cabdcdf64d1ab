package redistest_test

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/programs"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

type ctx = context.Context

// hurried calls do with a context that ends after 100 ms.
func hurried(t *testing.T, do func(ctx) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	return do(ctx)
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

// warm returns a client that is connected to the node of the key, and its Wire after
// a Reset.
func warm(t *testing.T, r redistest.Backend, key string) (redis.UniversalClient, *redistest.Wire) {
	t.Helper()
	rdb := r.Client()
	if err := rdb.Exists(t.Context(), key).Err(); err != nil {
		t.Fatal(err)
	}
	w := redistest.WireOf(rdb)
	w.Reset()
	return rdb, w
}

func wantCommands(t *testing.T, w *redistest.Wire, trips int, commands ...string) {
	t.Helper()
	if got := w.Commands(); !slices.Equal(got, commands) {
		t.Errorf("commands %q, want %q", got, commands)
	}
	if got := w.RoundTrips(); got != trips {
		t.Errorf("%d round trips, want %d", got, trips)
	}
}

func TestCommandsAndRoundTripsAreCounted(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, w := warm(t, r, "k")
		b, bw := warm(t, r, "k")
		r.Wire().Reset()
		a.Set(t.Context(), "k", "v", 0)
		a.Get(t.Context(), "k")
		wantCommands(t, w, 2, "SET", "GET")
		if _, err := a.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Get(t.Context(), "k")
			p.Do(t.Context(), "append", "k", strings.Repeat("more than a buffer", 10_000))
			p.Get(t.Context(), "k")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		wantCommands(t, w, 3, "SET", "GET", "GET", "APPEND", "GET")
		if _, err := a.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Get(t.Context(), "k")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		wantCommands(t, w, 4, "SET", "GET", "GET", "APPEND", "GET", "MULTI", "GET", "EXEC")

		b.Get(t.Context(), "k")
		wantCommands(t, bw, 1, "GET")
		wantCommands(t, r.Wire(), 5, "SET", "GET", "GET", "APPEND", "GET", "MULTI", "GET", "EXEC", "GET")
		w.Reset()
		wantCommands(t, w, 0)
		wantCommands(t, bw, 1, "GET")
	})
}

func TestWhatAClientSendsByItselfIsNotCounted(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		for _, rdb := range []redis.UniversalClient{r.Client(), r.Plain()} {
			if err := rdb.Ping(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			sub := rdb.Subscribe(t.Context(), "c")
			if _, err := sub.Receive(t.Context()); err != nil {
				t.Fatal(err)
			}
			sub.Close()
			wantCommands(t, redistest.WireOf(rdb), 0)
			if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
			wantCommands(t, redistest.WireOf(rdb), 1, "SET")
		}
	})
}

func TestFailedCommandsAreNotDone(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, w := warm(t, r, "n")
		b, _ := warm(t, r, "n")
		const text = "OOM command not allowed when used memory > 'maxmemory'."
		w.Fail(2, text, "incr")
		for range 2 {
			if err := a.Incr(t.Context(), "n").Err(); err == nil || err.Error() != text {
				t.Errorf("Incr = %v, want %s", err, text)
			}
			if err := a.Get(t.Context(), "n").Err(); !errors.Is(err, redis.Nil) {
				t.Errorf("Get = %v, want %v: it was not named", err, redis.Nil)
			}
		}
		w.Fail(1, text) // Fail counts what Commands counts, so not Ping.
		if err := a.Ping(t.Context()).Err(); err != nil {
			t.Errorf("Ping = %v, want nil", err)
		}
		if err := b.Incr(t.Context(), "n").Err(); err != nil {
			t.Errorf("another client's Incr = %v, want nil", err)
		}
		if err := a.Incr(t.Context(), "n").Err(); err == nil {
			t.Error("Incr did not fail")
		}
		if got, err := a.Incr(t.Context(), "n").Result(); got != 2 || err != nil {
			t.Errorf("Incr = %d, %v; want 2, nil", got, err)
		}
	})
}

func TestFailureComesInItsTurn(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, w := warm(t, r, "n")
		w.Fail(1, "LOADING Redis is loading the dataset in memory", "GET")
		var got []error
		cmds, _ := a.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Incr(t.Context(), "n")
			p.Get(t.Context(), "n")
			p.Incr(t.Context(), "n")
			return nil
		})
		for _, cmd := range cmds {
			got = append(got, cmd.Err())
		}
		if len(got) != 3 || got[0] != nil || !redis.HasErrorPrefix(got[1], "LOADING") || got[2] != nil {
			t.Errorf("errors %v, want LOADING for the second only", got)
		}
		wantCommands(t, w, 1, "INCR", "GET", "INCR")
	})
}

func TestFaultOfAllClients(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, _ := warm(t, r, "n")
		b, _ := warm(t, r, "n")
		r.Wire().Fail(redistest.All, "ERR no")
		for range 3 {
			for _, rdb := range []redis.UniversalClient{a, b} {
				if err := rdb.Incr(t.Context(), "n").Err(); err == nil || err.Error() != "ERR no" {
					t.Errorf("Incr = %v, want ERR no", err)
				}
			}
		}
		r.Wire().Heal()
		for i, rdb := range []redis.UniversalClient{a, b} {
			if got, err := rdb.Incr(t.Context(), "n").Result(); got != int64(i+1) || err != nil {
				t.Errorf("Incr = %d, %v; want %d, nil", got, err, i+1)
			}
		}
	})
}

func TestCommandWithLostReplyIsDone(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, w := warm(t, r, "n")
		b, _ := warm(t, r, "n")
		w.LoseReplies(1, "incr")
		if err := a.Exists(t.Context(), "n").Err(); err != nil {
			t.Errorf("Exists = %v, want nil: it was not named", err)
		}
		if err := a.Incr(t.Context(), "n").Err(); err == nil || isRedisError(err) {
			t.Errorf("Incr = %v, want an error of the network", err)
		}
		r.Until("it is done", func() bool { return b.Get(t.Context(), "n").Val() == "1" })
		if got, err := a.Incr(t.Context(), "n").Result(); got != 2 || err != nil {
			t.Errorf("next Incr = %d, %v; want 2, nil", got, err)
		}
		wantCommands(t, w, 3, "EXISTS", "INCR", "INCR")

		// With its defaults, go-redis retries the command, so it runs twice.
		plain := r.Plain()
		redistest.WireOf(plain).LoseReplies(1)
		if got, err := plain.Incr(t.Context(), "n").Result(); got != 4 || err != nil {
			t.Errorf("Incr by default = %d, %v; want 4, nil", got, err)
		}
	})
}

// wantMessage receives a message and checks its text.
func wantMessage(t *testing.T, sub *redis.PubSub, text string) {
	t.Helper()
	select {
	case m := <-sub.Channel():
		if m.Payload != text {
			t.Errorf("message %q, want %q", m.Payload, text)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("no message, want %q", text)
	}
}

func TestDroppedMessages(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, b := r.Client(), r.Client()
		sub := a.Subscribe(t.Context(), "one", "two")
		pat := a.PSubscribe(t.Context(), "t*")
		other := b.Subscribe(t.Context(), "one")
		for _, sub := range []*redis.PubSub{sub, sub, pat, other} { // two channels, two confirmations
			defer sub.Close()
			if _, err := sub.Receive(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		publish := func(channel, text string) {
			t.Helper()
			if err := b.Publish(t.Context(), channel, text).Err(); err != nil {
				t.Fatal(err)
			}
		}
		w := redistest.WireOf(a)
		w.DropMessages(1, "one")
		publish("two", "not named")
		wantMessage(t, sub, "not named")
		wantMessage(t, pat, "not named")
		publish("one", "dropped")
		publish("one", "after it")
		wantMessage(t, sub, "after it")
		wantMessage(t, other, "dropped")
		wantMessage(t, other, "after it")

		w.DropMessages(redistest.All, "t*") // the pattern, not the channel
		publish("two", "to sub only")
		wantMessage(t, sub, "to sub only")
		r.Settle() // pat has not received it either.
		w.Heal()
		w.DropMessages(redistest.All)
		publish("one", "dropped")
		wantMessage(t, other, "dropped")
		publish("two", "dropped")
		publish("one", "the last")
		wantMessage(t, other, "the last")
		r.Settle()
		if !r.Fake() {
			return // No signal shows when they would have arrived.
		}
		w.Heal()
		publish("two", "healed")
		wantMessage(t, sub, "healed")
		wantMessage(t, pat, "healed")
	})
}

func TestDroppedShardMessages(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		if err := rdb.SPublish(t.Context(), "one", "to nobody").Err(); err != nil {
			programs.Lacks(t, "SPUBLISH: "+err.Error())
		}
		sub := rdb.SSubscribe(t.Context(), "one")
		defer sub.Close()
		if _, err := sub.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
		redistest.WireOf(rdb).DropMessages(1, "one")
		for _, text := range []string{"dropped", "after it"} {
			if err := rdb.SPublish(t.Context(), "one", text).Err(); err != nil {
				t.Fatal(err)
			}
		}
		wantMessage(t, sub, "after it")
	})
}

func TestPausedClientAlone(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, w := warm(t, r, "k")
		b, _ := warm(t, r, "k")
		w.Pause()
		if err := hurried(t, func(ctx ctx) error { return a.Set(ctx, "k", "late", 0).Err() }); !isTimeout(err) {
			t.Errorf("Set = %v, want a timeout", err)
		}
		r.Settle()
		if got, err := b.Exists(t.Context(), "k").Result(); got != 0 || err != nil {
			t.Errorf("Exists = %d, %v; want 0, nil", got, err)
		}
		w.Resume()
		r.Until("what was sent in the pause is done", func() bool {
			return b.Get(t.Context(), "k").Val() == "late"
		})
	})
}

func TestReplyWaitsForResume(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, w := warm(t, r, "q")
		b, _ := warm(t, r, "q")
		popped := make(chan error, 1)
		go func() { popped <- a.BLPop(t.Context(), 0, "q").Err() }()
		r.Until("BLPOP was sent", func() bool {
			return slices.Contains(w.Commands(), "BLPOP")
		})
		r.Settle()
		w.Pause()
		if err := b.RPush(t.Context(), "q", "v").Err(); err != nil {
			t.Fatal(err)
		}
		r.Settle()
		select {
		case err := <-popped:
			t.Errorf("BLPop = %v while paused", err)
		default:
		}
		w.Resume()
		if err := <-popped; err != nil {
			t.Errorf("BLPop = %v, want nil", err)
		}
	})
}

// wantTook checks the time since start: to the nanosecond in a bubble, and else with a
// second of tolerance above want.
func wantTook(t *testing.T, r redistest.Backend, start time.Time, want time.Duration) {
	t.Helper()
	took := time.Since(start)
	if took < want || took > want+time.Second || r.Fake() && took != want {
		t.Errorf("took %v, want %v", took, want)
	}
}

const delay = 200 * time.Millisecond

func TestDelayIsThatOfARoundTrip(t *testing.T) {
	t.Parallel()
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, w := warm(t, r, "k")
		b, _ := warm(t, r, "k")
		if err := b.Set(t.Context(), "k", strings.Repeat("v", 1<<20), 0).Err(); err != nil {
			t.Fatal(err)
		}
		w.Delay(delay)
		start := time.Now()
		if got, err := a.Get(t.Context(), "k").Result(); len(got) != 1<<20 || err != nil {
			t.Errorf("Get = %d bytes, %v; want 1 MiB, nil", len(got), err)
		}
		wantTook(t, r, start, delay) // although the value arrives in many packets

		r.Wire().Delay(delay / 2) // adds to the other delay
		start = time.Now()
		if err := a.Exists(t.Context(), "k").Err(); err != nil {
			t.Error(err)
		}
		wantTook(t, r, start, delay+delay/2)

		if err := hurried(t, func(ctx ctx) error { return a.Get(ctx, "k").Err() }); !isTimeout(err) {
			t.Errorf("Get = %v, want a timeout", err)
		}
		r.Wire().Heal()
		w.Heal()
		start = time.Now()
		if err := a.Exists(t.Context(), "k").Err(); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); r.Fake() && took != 0 {
			t.Errorf("healed, it took %v", took)
		}
	})
}

// The second reply of the pipeline arrives long after the first, delayed reply is due.
func TestDelayDoesNotEndTheWaitForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		redistest.WireOf(rdb).Delay(delay)
		time.AfterFunc(2*delay, func() { rdb.RPush(t.Context(), "q", "v") })
		if _, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Exists(t.Context(), "k")
			p.BLPop(t.Context(), 0, "q")
			return nil
		}); err != nil {
			t.Errorf("pipeline: %v, want nil", err)
		}
		time.Sleep(2 * delay) // RPush has its reply.
	})
}

func TestDelayedMessagesComeOneAfterTheOther(t *testing.T) {
	t.Parallel()
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, b := r.Client(), r.Client()
		sub := a.Subscribe(t.Context(), "c")
		defer sub.Close()
		if _, err := sub.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
		messages := sub.Channel()
		r.Settle()
		redistest.WireOf(a).Delay(delay)
		const pause = delay / 20
		var sent []time.Time
		for range 5 {
			sent = append(sent, time.Now())
			if err := b.Publish(t.Context(), "c", "m").Err(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(pause)
		}
		for _, start := range sent {
			<-messages
			wantTook(t, r, start, delay)
		}
	})
}

// As on a network, a dial fails if its context has ended.
func TestDialHeedsItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if c, err := rdb.Options().Dialer(ctx, "tcp", "127.0.0.1:0"); !errors.Is(err, context.Canceled) {
			t.Errorf("dial = %v, %v; want %v", c, err, context.Canceled)
		}
	})
}

func TestCutConnectionsAreMadeAnew(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, w := warm(t, r, "k")
		w.Cut()
		// go-redis detects that the idle connection is closed.
		if err := a.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Errorf("Set after the cut = %v, want nil", err)
		}
		b, bw := warm(t, r, "other")
		popped, other := make(chan error), make(chan error)
		go func() { popped <- a.BLPop(t.Context(), 0, "q").Err() }()
		go func() { other <- b.BLPop(t.Context(), 0, "other").Err() }()
		r.Until("both BLPOPs were sent", func() bool {
			return slices.Contains(w.Commands(), "BLPOP") && slices.Contains(bw.Commands(), "BLPOP")
		})
		w.Cut()
		if err := <-popped; err == nil || isRedisError(err) {
			t.Errorf("BLPop = %v, want an error of the network", err)
		}
		if err := a.Get(t.Context(), "k").Err(); err != nil {
			t.Errorf("Get after the cut = %v, want nil", err)
		}
		if err := a.RPush(t.Context(), "other", "v").Err(); err != nil {
			t.Fatal(err)
		}
		if err := <-other; err != nil {
			t.Errorf("another client's BLPop = %v, want nil", err)
		}
	})
}

func TestDownUntilUp(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, w := warm(t, r, "k")
		b, _ := warm(t, r, "k")
		w.Down()
		for range 3 {
			err := a.Get(t.Context(), "k").Err()
			if _, isNet := errors.AsType[*net.OpError](err); !isNet || !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("Get = %v, want a net.OpError: connection refused", err)
			}
		}
		if err := b.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Errorf("another client's Set = %v, want nil", err)
		}
		w.Up()
		if got, err := a.Get(t.Context(), "k").Result(); got != "v" || err != nil {
			t.Errorf("Get = %q, %v; want v, nil", got, err)
		}
		w.Down()
		w.Heal()
		if err := a.Get(t.Context(), "k").Err(); err != nil {
			t.Errorf("Get, healed = %v, want nil", err)
		}
	})
}

func TestHealLeavesAPausedServer(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, _ := warm(t, r, "k")
		r.Pause()
		r.Wire().Heal()
		if err := hurried(t, func(ctx ctx) error { return a.Exists(ctx, "k").Err() }); !isTimeout(err) {
			t.Errorf("Exists = %v, want a timeout: Heal is of the Wire", err)
		}
		r.Resume()
	})
}
