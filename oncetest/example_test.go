package oncetest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncetest"
)

// Two processes get one thing, and one fetch runs. In your test, t is its *testing.T. Most
// tests should run in a testing/synctest bubble.
func ExampleRedis() {
	t := newT()
	defer t.end()

	r := oncetest.Redis(t)
	var calls atomic.Int64
	fetch := func(_ context.Context, name string) (string, error) {
		calls.Add(1)
		return "a " + name, nil
	}
	opt := fetchonce.Options[string]{Prefix: "things"}
	one, err := fetchonce.New(r, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	other, err := fetchonce.New(oncetest.NewClient(t, r), opt)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	first, _ := one.Get(t.Context(), "teapot", fetch)
	second, _ := other.Get(t.Context(), "teapot", fetch)
	fmt.Println(first, second, calls.Load())
	// Output: a teapot a teapot 1
}

// With FailClosed, a Get returns an error while Redis fails. The origin receives no calls.
func ExampleFailNext() {
	t := newT()
	defer t.end()

	r := oncetest.Redis(t)
	l, err := fetchonce.New(r, fetchonce.Options[string]{Prefix: "things", OnRedisDown: fetchonce.FailClosed})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	oncetest.FailNext(t, r, 3, "ERR internal error")
	fetch := func(context.Context, string) (string, error) { return "a teapot", nil }
	for range 4 {
		got, err := l.Get(t.Context(), "teapot", fetch)
		if ours, ok := errors.AsType[*fetchonce.Error](err); ok {
			fmt.Println("refused:", ours.Op)
			continue
		}
		fmt.Println(got, err)
	}
	// Output:
	// refused: read
	// refused: read
	// refused: read
	// a teapot <nil>
}

// A test uses the settings of the program's client while Redis refuses connections.
func ExampleNewClientWith() {
	t := newT()
	defer t.end()

	settings := &redis.Options{Addr: "redis.example:6379", MaxRetries: 1, DialerRetries: 2}
	rdb := oncetest.NewClientWith(t, oncetest.Redis(t), settings)
	l, err := fetchonce.New(rdb, fetchonce.Options[string]{Prefix: "things", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	oncetest.Down(t, rdb)
	defer oncetest.Up(t, rdb)
	fetch := func(context.Context, string) (string, error) { return "a teapot", nil }
	got, err := l.Get(t.Context(), "teapot", fetch)
	fmt.Println(got, err)
	err = l.Delete(t.Context(), "teapot")
	fmt.Println(errors.Is(err, fetchonce.ErrUnavailable), errors.Is(err, syscall.ECONNREFUSED))
	// Output:
	// a teapot <nil>
	// true true
}

// exampleT is the testing.TB of an example.
type exampleT struct {
	testing.TB // nil; its other methods are not called
	cleanups   []func()
}

func newT() *exampleT { return new(exampleT) }

func (t *exampleT) Helper()                  {}
func (t *exampleT) Context() context.Context { return context.Background() }
func (t *exampleT) Cleanup(f func())         { t.cleanups = append(t.cleanups, f) }
func (t *exampleT) Fatal(args ...any)        { panic(fmt.Sprint(args...)) }

// end runs the cleanups, as the end of a test does.
func (t *exampleT) end() {
	for len(t.cleanups) > 0 {
		last := len(t.cleanups) - 1
		f := t.cleanups[last]
		t.cleanups = t.cleanups[:last]
		f()
	}
}
