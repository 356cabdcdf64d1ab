package fetchonce_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/guard"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// redisCalls returns one call of each method that needs Redis.
func redisCalls(l loader, lk *fetchonce.Locker) map[string]func(ctx context.Context) error {
	fetch := func(context.Context, string) (string, error) { return "v", nil }
	return map[string]func(ctx context.Context) error{
		"Get":    func(ctx context.Context) error { _, err := l.Get(ctx, "k", fetch); return err },
		"Peek":   func(ctx context.Context) error { _, err := l.Peek(ctx, "k"); return err },
		"Set":    func(ctx context.Context) error { return l.Set(ctx, "k", "v") },
		"Delete": func(ctx context.Context) error { return l.Delete(ctx, "k") },
		"Update": func(ctx context.Context) error { return l.Update(ctx, "k", testkit.Nothing) },
		"Do":     func(ctx context.Context) error { return lk.Do(ctx, "k", testkit.Nothing) },
		"TryDo":  func(ctx context.Context) error { return lk.TryDo(ctx, "k", testkit.Nothing) },
		"GetMany": func(ctx context.Context) error {
			_, err := l.GetMany(ctx, []string{"k"}, (&bulk{}).fetch)
			return err
		},
	}
}

func TestErrorOfAnUnavailableRedisSaysSo(t *testing.T) {
	for name, fail := range map[string]func(r backend, w *redistest.Wire){
		"refused": func(r backend, _ *redistest.Wire) { r.Kill() },
		"hung":    func(r backend, _ *redistest.Wire) { r.Pause() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				rdb := r.Client()
				l, lk := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailClosed), func(opt *options) { opt.RedisTimeout = time.Second }), testkit.LockerOf(t, rdb)
				fail(r, redistest.WireOf(rdb))
				for method, call := range redisCalls(l, lk) {
					if err := call(t.Context()); !errors.Is(err, fetchonce.ErrUnavailable) {
						t.Errorf("%s = %v, want ErrUnavailable", method, err)
					}
				}
				if name == "hung" {
					r.Resume()
				}
			})
		})
	}
}

// An error that Redis replies is not ErrUnavailable.
func TestErrorThatRedisAnsweredIsNotUnavailable(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, lk := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailClosed)), testkit.LockerOf(t, rdb)
		redistest.WireOf(rdb).Fail(redistest.All, "NOPERM no", "GETRANGE", "EVALSHA", "EVAL")
		for method, call := range redisCalls(l, lk) {
			if err := call(t.Context()); err == nil || errors.Is(err, fetchonce.ErrUnavailable) {
				t.Errorf("%s = %v, want NOPERM without ErrUnavailable", method, err)
			}
		}
	})
}

// ErrNotInvalidated says that Update's write succeeded. Without it, the write was not called.
func TestErrorOfUpdateSaysWhetherTheWriteWasDone(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, testkit.WithPolicy(fetchonce.FailClosed), func(opt *options) { opt.RedisTimeout = time.Second })
		err := l.Update(t.Context(), "k", func(context.Context) error { r.Kill(); return nil })
		if !errors.Is(err, fetchonce.ErrNotInvalidated) || !errors.Is(err, fetchonce.ErrUnavailable) {
			t.Errorf("Update whose write succeeded = %v, want ErrNotInvalidated and ErrUnavailable", err)
		}
		if err := l.Delete(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotInvalidated) {
			t.Errorf("Delete = %v, want ErrNotInvalidated", err)
		}
		written := false
		err = l.Update(t.Context(), "k", func(context.Context) error { written = true; return nil })
		if err == nil || written || errors.Is(err, fetchonce.ErrNotInvalidated) {
			t.Errorf("Update without Redis = %v, written %v; want an error without ErrNotInvalidated", err, written)
		}
	})
}

func TestErrorQuotesABoundedPrefixOfItsKey(t *testing.T) {
	key := strings.Repeat("\x00", 1<<20)
	own := &fetchonce.Error{Op: "read", Key: key, Err: errors.New("i/o timeout")}
	many := &fetchonce.ManyError{Errors: map[string]error{key: own, key + "a": own, key + "b": own, key + "c": own}}
	for _, err := range []error{own, many} {
		text := err.Error()
		if len(text) > 8000 || !strings.Contains(text, "(1048576 bytes)") || !strings.Contains(text, "i/o timeout") {
			t.Errorf("%T has a text of %d bytes: %.100q...%q", err, len(text), text, text[max(0, len(text)-100):])
		}
	}
	if own.Key != key {
		t.Error("Error.Key is cut")
	}
	if got, want := (&fetchonce.Error{Op: "read", Key: "a\n", Err: errors.New("x")}).Error(), `fetchonce: read "a\n": x`; got != want {
		t.Errorf("the text is %s, want %s", got, want)
	}
}

func TestTextOfAnErrorIsOneLine(t *testing.T) {
	for want, err := range map[string]error{
		`fetchonce: read "a\nb": refused; closed`:                   &fetchonce.Error{Op: "read", Key: "a\nb", Err: errors.Join(errors.New("refused"), errors.New("closed"))},
		"fetchonce: acquire: the Redis client panicked: a bad hook": &fetchonce.Error{Op: "acquire", Err: guard.Panicked("a bad hook")},
	} {
		if got := err.Error(); got != want {
			t.Errorf("the text is %q, want %q", got, want)
		}
	}
}

// Do whose context ended returns one line that names the lock and the cause.
func TestTextOfALockThatIsNotAcquiredIsOneLine(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		lk := testkit.NewLocker(t, r)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("the client left"))
		want := `fetchonce: locked: "daily report" not acquired: the client left`
		if err := lk.Do(ctx, "daily report", testkit.Nothing); err == nil || err.Error() != want || !errors.Is(err, fetchonce.ErrLocked) {
			t.Errorf("Do = %v, want %s", err, want)
		}
	})
}
