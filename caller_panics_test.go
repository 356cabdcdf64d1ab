package fetchonce_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

type thing struct{ Name string }

// thingLoader returns a loader that keeps near entries and clones them.
func thingLoader(t *testing.T, r backend, clone func(*thing) *thing) *fetchonce.Loader[*thing] {
	t.Helper()
	l, err := fetchonce.New(r.Client(), fetchonce.Options[*thing]{
		Prefix: "test", TTL: time.Hour, Near: fetchonce.Near{Entries: 10}, Clone: clone,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func cloneThing(v *thing) *thing { c := *v; return &c }

func noThings(context.Context, []string) (map[string]*thing, error) { return nil, nil }

// trust waits until the tracking connection of l is up: a value is then kept near.
func trust(t *testing.T, r backend, l *fetchonce.Loader[*thing]) {
	t.Helper()
	r.Until("the process keeps a near entry", func() bool {
		got, err := l.Load(t.Context(), "warm", func(context.Context, *fetchonce.Fetch[*thing]) (*thing, error) { return &thing{}, nil })
		return err == nil && got.Source == fetchonce.SourceNear
	})
}

// panicOf returns what f panics with.
func panicOf(f func()) (value any) {
	defer func() { value = recover() }()
	f()
	return nil
}

// A nil pointer is a value. Clone is not called with it, whatever its source.
func TestNilPointerIsNotCloned(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		writer, reader := thingLoader(t, r, nil), thingLoader(t, r, cloneThing)
		trust(t, r, reader)
		for _, key := range []string{"a", "b"} {
			if err := writer.Set(t.Context(), key, nil); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // from Redis, and from the near cache
			got, err := reader.GetMany(t.Context(), []string{"a", "b"}, noThings)
			if err != nil || len(got) != 2 || got["a"] != nil || got["b"] != nil {
				t.Errorf("GetMany = %v, %v; want two values that are nil", got, err)
			}
		}
		got, err := reader.Get(t.Context(), "fetched", func(context.Context, string) (*thing, error) { return nil, nil })
		if err != nil || got != nil {
			t.Errorf("Get = %v, %v; want nil, nil", got, err)
		}
	})
}

// If Clone panics, the GetMany that called it panics.
func TestPanicOfCloneReachesItsCaller(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		writer := thingLoader(t, r, nil)
		reader := thingLoader(t, r, func(v *thing) *thing {
			if v.Name == "bad" {
				panic("no clone")
			}
			return v
		})
		trust(t, r, reader)
		for _, key := range []string{"a", "b"} {
			if err := writer.Set(t.Context(), key, &thing{Name: "bad"}); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			got := panicOf(func() { _, _ = reader.GetMany(t.Context(), []string{"a", "b"}, noThings) })
			if p, ok := got.(*fetchonce.PanicError); !ok || p.Value != "no clone" || len(p.Stack) == 0 {
				t.Errorf("GetMany panicked with %v; want a *PanicError with the value and stack of Clone", got)
			}
		}
	})
}

// A panickingStore panics at one key and cannot look up many.
type panickingStore struct{}

func (panickingStore) Lookup(_ context.Context, key string) (string, error) {
	if key == "bad" {
		panic("no lookup")
	}
	return "row", nil
}

func (panickingStore) Create(_ context.Context, _, v string) (string, error) { return v, nil }

// If a Store's Lookup panics, the GetMany that called it panics. Another key of the same
// GetMany can still be read.
func TestPanicOfAStoreReachesItsCaller(t *testing.T) {
	for name, change := range map[string]func(*options){
		"with leases in Redis": func(opt *options) { opt.Store = panickingStore{} },
		"without values in Redis": func(opt *options) {
			opt.Store, opt.TTL = panickingStore{}, fetchonce.Off
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				l := newLoader(t, r, change)
				got := panicOf(func() { _, _ = l.GetMany(t.Context(), []string{"good", "bad"}, (&bulk{}).fetch) })
				if p, ok := got.(*fetchonce.PanicError); !ok || p.Value != "no lookup" || len(p.Stack) == 0 {
					t.Errorf("GetMany panicked with %v; want a *PanicError with the value and stack of Lookup", got)
				}
				if v, err := l.Get(t.Context(), "good", testkit.NewOrigin(t).Fetch); v != "row" || err != nil {
					t.Errorf("Get = %q, %v; want the row", v, err)
				}
			})
		})
	}
}

// A panickingHandler panics at each record.
type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool  { return true }
func (panickingHandler) Handle(context.Context, slog.Record) error { panic("no log") }

// If the Logger panics, the call that logs still succeeds.
func TestPanicOfALoggerDoesNotReachTheCaller(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, func(opt *options) { opt.Logger = slog.New(panickingHandler{}) })
		keys := []string{"a", "b"}
		for _, key := range keys {
			if err := r.Client().Set(t.Context(), "test:v:{"+key+"}", "junk", 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := l.GetMany(t.Context(), keys, (&bulk{}).fetch); err != nil || len(got) != 2 {
			t.Errorf("GetMany = %v, %v; want two values", got, err)
		}
	})
}
