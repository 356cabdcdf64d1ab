package fetchonce_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
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
	calls := map[string]func(ctx context.Context, l loader, o *origin) (string, error){
		"Get": func(ctx context.Context, l loader, o *origin) (string, error) { return l.Get(ctx, "k", o.fetch) },
		"Load": func(ctx context.Context, l loader, o *origin) (string, error) {
			r, err := l.Load(ctx, "k", func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) { return o.fetch(ctx, f.Key) })
			return r.Value, err
		},
		"GetMany": func(ctx context.Context, l loader, o *origin) (string, error) {
			m, err := l.GetMany(ctx, []string{"k"}, func(ctx context.Context, keys []string) (map[string]string, error) {
				v, err := o.fetch(ctx, keys[0])
				return map[string]string{keys[0]: v}, err
			})
			return m["k"], err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				o := newOrigin(t)
				rdb := r.Client()
				s := &slowRead{stopped: make(chan struct{}), open: make(chan struct{})}
				l := loaderOf(t, rdb, withPolicy(fetchonce.FailOpen), func(opt *options) { opt.RedisTimeout = time.Minute })
				rdb.AddHook(s)
				r.Kill()
				slow := make(chan outcome, 1)
				go func() {
					v, err := call(t.Context(), l, o)
					slow <- outcome{value: v, err: err}
				}()
				<-s.stopped
				quick := get(t, t.Context(), l, "k", o)
				c := o.next()
				close(s.open)
				synctest.Wait() // its lookup has failed
				late := get(t, t.Context(), l, "k", o)
				synctest.Wait()
				c.returns("v")
				quick.want("v")
				if out := <-slow; out.value != "v" || out.err != nil {
					t.Errorf("%s = %q, %v; want v", name, out.value, out.err)
				}
				o.next().returns("later") // one that came after the fetch began looks again
				late.want("later")
				o.want(2)
			})
		})
	}
}
