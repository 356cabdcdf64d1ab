package fetchonce_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A slowRead is a hook that holds back the first read until the test opens it.
type slowRead struct {
	first   atomic.Bool
	stopped chan struct{} // closed when the read has been stopped
	open    chan struct{} // closed when it may go on
}

func (s *slowRead) pass(cmd redis.Cmder) {
	if cmd.Name() == "getrange" && s.first.CompareAndSwap(false, true) {
		close(s.stopped)
		<-s.open
	}
}

func (*slowRead) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s *slowRead) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		s.pass(cmd)
		return next(ctx, cmd)
	}
}

func (s *slowRead) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			s.pass(cmd)
		}
		return next(ctx, cmds)
	}
}

// Redis refuses connections, and one caller learns that only after another has begun
// to fetch. It came before the fetch, so it takes what the fetch returns.
func TestSlowFailedLookupDoesNotFetchAgain(t *testing.T) {
	calls := map[string]func(ctx context.Context, l loader, o *testkit.Origin) (string, error){
		"Get": func(ctx context.Context, l loader, o *testkit.Origin) (string, error) {
			return l.Get(ctx, "k", o.Fetch)
		},
		"Load": func(ctx context.Context, l loader, o *testkit.Origin) (string, error) {
			r, err := l.Load(ctx, "k", func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) { return o.Fetch(ctx, f.Key) })
			return r.Value, err
		},
		"GetMany": func(ctx context.Context, l loader, o *testkit.Origin) (string, error) {
			m, err := l.GetMany(ctx, []string{"k"}, func(ctx context.Context, keys []string) (map[string]string, error) {
				v, err := o.Fetch(ctx, keys[0])
				return map[string]string{keys[0]: v}, err
			})
			return m["k"], err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				o := testkit.NewOrigin(t)
				rdb := r.Client()
				s := &slowRead{stopped: make(chan struct{}), open: make(chan struct{})}
				l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailOpen), func(opt *options) { opt.RedisTimeout = time.Minute })
				rdb.AddHook(s)
				r.Kill()
				slow := make(chan testkit.Outcome, 1)
				go func() {
					v, err := call(t.Context(), l, o)
					slow <- testkit.Outcome{Value: v, Err: err}
				}()
				<-s.stopped
				quick := testkit.Get(t, t.Context(), l, "k", o)
				c := o.Next()
				close(s.open)
				synctest.Wait() // its lookup has failed
				late := testkit.Get(t, t.Context(), l, "k", o)
				synctest.Wait()
				c.Returns("v")
				quick.Want("v")
				if out := <-slow; out.Value != "v" || out.Err != nil {
					t.Errorf("%s = %q, %v; want v", name, out.Value, out.Err)
				}
				o.Next().Returns("later") // a caller that is late looks up again
				late.Want("later")
				o.Want(2)
			})
		})
	}
}

// Without Redis, each process fetches by itself, one fetch at a time: callers share one
// fetch, and callers that are late share the next.
func TestWithoutRedisOneFetchAtATime(t *testing.T) {
	const callers = 100
	redistest.Each(t, func(t *testing.T, r backend) {
		l := testkit.NewLoader(t, r)
		r.Kill()
		var running, most, fetches, returned atomic.Int64
		fetch := func(context.Context, string) (string, error) {
			fetches.Add(1)
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer running.Add(-1)
			for int(returned.Load())+l.Callers("k") < callers { // until all the others wait for this one
				time.Sleep(time.Millisecond)
			}
			return "v", nil
		}
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				defer returned.Add(1)
				if got, err := l.Get(t.Context(), "k", fetch); got != "v" || err != nil {
					t.Errorf("Get = %q, %v", got, err)
				}
			})
		}
		all.Wait()
		r.Restart()
		if most.Load() != 1 || fetches.Load() > 2 {
			t.Errorf("%d fetches, %d at once; want two, one after the other", fetches.Load(), most.Load())
		}
	})
}
