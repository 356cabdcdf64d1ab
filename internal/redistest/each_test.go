package redistest_test

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/programs"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestEachRunsOnAllKinds(t *testing.T) {
	var ran, real []string
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		ran = append(ran, path.Base(t.Name()))
		if fake := path.Base(t.Name()) == "miniredis"; r.Fake() != fake {
			t.Errorf("Fake() = %v, want %v", r.Fake(), fake)
		}
		_, isCluster := r.Client().(*redis.ClusterClient)
		if want := path.Base(t.Name()) == "cluster"; isCluster != want {
			t.Errorf("is the client one of a cluster: %v, want %v", isCluster, want)
		}
	})
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		real = append(real, path.Base(t.Name()))
	})
	all := []string{"miniredis", "server", "cluster"}
	if _, err := programs.Redis(); err != nil {
		all = all[:1]
	}
	if !slices.Equal(ran, all) {
		t.Errorf("Each ran %q, want %q", ran, all)
	}
	if strings.HasPrefix(strings.Join(real, ""), "mini") || len(real) != len(all)-1 {
		t.Errorf("EachReal ran %q, want %q", real, all[1:])
	}
}

func TestUntilWaits(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, b := r.Client(), r.Client()
		go func() {
			time.Sleep(5 * time.Millisecond)
			a.Set(t.Context(), "k", "v", 0)
		}()
		r.Until("b sees a's value", func() bool {
			return b.Get(t.Context(), "k").Val() == "v"
		})
	})
}

func TestUntilGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		got := judge(t, func(t testing.TB) {
			redistest.Until(t, "pigs fly", func() bool { return false })
		})
		if !got.failed || !strings.Contains(got.said, "pigs fly") {
			t.Errorf("verdict = %+v, want a failure that names pigs fly", got)
		}
		if took := time.Since(start).Round(time.Second); took != 20*time.Second {
			t.Errorf("took %v, want 20s", took)
		}
	})
}

func TestSettleWaitsForTheBubble(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 10 {
				rdb.Incr(t.Context(), "n")
			}
		}()
		r.Settle()
		select {
		case <-done:
		default:
			if r.Fake() {
				t.Error("it did not wait for what takes no time")
			}
		}
		<-done
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		go func() { <-ctx.Done() }()
		r.Settle()
		if took := time.Since(start); r.Fake() && took != 0 {
			t.Errorf("it took %v of the bubble's time", took)
		}
	})
}

func TestClientsShareOneRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, b, c := r.Client(), r.Client(), r.Plain()
		for i, rdb := range []redis.UniversalClient{a, b, c} {
			if got, err := rdb.Incr(t.Context(), "n").Result(); got != int64(i+1) || err != nil {
				t.Errorf("client %d: Incr = %d, %v; want %d, nil", i, got, err, i+1)
			}
		}
	})
}

func TestEachBeginsEmpty(t *testing.T) {
	for range 2 {
		redistest.Each(t, func(t *testing.T, r redistest.Backend) {
			rdb := r.Client()
			for key := range strings.SplitSeq("abcdefghijklmnopqrstuvwxyz", "") {
				if got, err := rdb.Incr(t.Context(), key).Result(); got != 1 || err != nil {
					t.Fatalf("Incr(%q) = %d, %v; want 1, nil", key, got, err)
				}
			}
			if ran := claim.EvalSha(t.Context(), rdb, []string{"{k}"}, "a", 1000).Err(); !redis.HasErrorPrefix(ran, "NOSCRIPT") {
				t.Errorf("EvalSha = %v, want NOSCRIPT", ran)
			}
			if err := claim.Load(t.Context(), rdb).Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMessageOfAnotherClient(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, b := r.Client(), r.Client()
		sub := a.Subscribe(t.Context(), "done")
		defer sub.Close()
		if _, err := sub.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Publish with both clients: in a cluster they may use different nodes.
		for _, rdb := range []redis.UniversalClient{a, b} {
			if err := rdb.Publish(t.Context(), "done", "k").Err(); err != nil {
				t.Fatal(err)
			}
			wantMessage(t, sub, "k")
		}
	})
}

// TestKillAndRestart checks many rules in one test, because a cluster takes two
// seconds to start again.
func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, b := r.Client(), r.Plain()
		sub := b.Subscribe(t.Context(), "done")
		defer sub.Close()
		if _, err := sub.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
		messages := sub.Channel()
		if err := a.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if err := claim.Load(t.Context(), a).Err(); err != nil {
			t.Fatal(err)
		}
		popped := make(chan error)
		go func() { popped <- a.BLPop(t.Context(), 0, "empty").Err() }()
		r.Until("BLPOP was sent", func() bool {
			return slices.Contains(redistest.WireOf(a).Commands(), "BLPOP")
		})

		// Kill ends a Redis that hangs.
		r.Pause()
		r.Kill()
		if err := <-popped; err == nil || isRedisError(err) {
			t.Errorf("BLPop while it was killed = %v, want an error of the network", err)
		}
		if err := a.Get(t.Context(), "k").Err(); err == nil || isRedisError(err) {
			t.Errorf("Get while it is dead = %v, want an error of the network", err)
		}

		r.Restart()
		if got, err := a.Exists(t.Context(), "k").Result(); got != 0 || err != nil {
			t.Errorf("Exists = %v, %v; want 0, nil", got, err)
		}
		if err := claim.EvalSha(t.Context(), a, []string{"k"}, "a", 1000).Err(); !redis.HasErrorPrefix(err, "NOSCRIPT") {
			t.Errorf("EvalSha = %v, want NOSCRIPT", err)
		}
		r.Until("the subscription was made again", func() bool {
			a.Publish(t.Context(), "done", "k")
			select {
			case <-messages:
				return true
			default:
				return false
			}
		})
	})
}

func TestRestartOfARunningOneEmptiesIt(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Plain()
		if _, isCluster := rdb.(*redis.ClusterClient); isCluster {
			return // TestNodesOfACluster covers this.
		}
		if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
		r.Restart()
		if got, err := rdb.Exists(t.Context(), "k").Result(); got != 0 || err != nil {
			t.Errorf("Exists = %v, %v; want 0, nil", got, err)
		}
	})
}

// isRedisError reports whether err is an error reply of Redis.
func isRedisError(err error) bool {
	var said redis.Error
	return errors.As(err, &said)
}

func TestPauseHoldsEverythingBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		a, b := r.Client(), r.Client()
		if err := a.Set(t.Context(), "k", "old", 0).Err(); err != nil {
			t.Fatal(err)
		}
		r.Pause()
		if err := hurried(t, func(ctx ctx) error { return a.Set(ctx, "k", "new", 0).Err() }); !isTimeout(err) {
			t.Errorf("Set = %v, want a timeout", err)
		}
		// The server accepts a new connection, but does not reply.
		if err := hurried(t, func(ctx ctx) error { return r.Client().Get(ctx, "k").Err() }); !isTimeout(err) {
			t.Errorf("Get on a new connection = %v, want a timeout", err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if got, err := a.Get(t.Context(), "k").Result(); err != nil {
				t.Errorf("Get = %q, %v; want no error", got, err)
			}
		})
		r.Settle()
		r.Resume()
		wg.Wait()
		r.Until("what was sent in the pause is done", func() bool {
			return b.Get(t.Context(), "k").Val() == "new"
		})
		for key := range strings.SplitSeq("abcdefghi", "") { // on all nodes
			if err := b.Exists(t.Context(), key).Err(); err != nil {
				t.Errorf("Exists(%q) after the pause = %v, want nil", key, err)
			}
		}
	})
}

func TestClientEndsWithItsTest(t *testing.T) {
	var rdb []redis.UniversalClient
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		rdb = append(rdb, r.Client(), r.Plain())
		for _, rdb := range rdb[len(rdb)-2:] {
			if err := rdb.Ping(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, rdb := range rdb {
		if err := rdb.Ping(t.Context()).Err(); !errors.Is(err, redis.ErrClosed) {
			t.Errorf("Ping = %v, want %v", err, redis.ErrClosed)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("WireOf did not panic")
				}
			}()
			redistest.WireOf(rdb)
		}()
	}
}
