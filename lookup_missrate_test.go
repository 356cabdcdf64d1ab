package fetchonce_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

var nothings atomic.Int64 // counts the keys of predictMisses, which are all different

// predictMisses has a loader miss so often that it skips its lookups.
func predictMisses(t *testing.T, l loader) {
	t.Helper()
	for range 60 {
		key := "nothing:" + strconv.FormatInt(nothings.Add(1), 10)
		if _, err := l.Get(t.Context(), key, func(context.Context, string) (string, error) { return "v", nil }); err != nil {
			t.Fatal(err)
		}
	}
}

// sends returns what a client sends for a Get.
func sends(t *testing.T, rdb redis.UniversalClient, l loader, key, want string) []string {
	t.Helper()
	wire := redistest.WireOf(rdb)
	wire.Reset()
	got, err := l.Get(t.Context(), key, func(context.Context, string) (string, error) { return "fetched", nil })
	if got != want || err != nil {
		t.Errorf("Get of %s = %q, %v; want %q", key, got, err, want)
	}
	if trips := wire.RoundTrips(); trips != len(wire.Commands()) {
		t.Errorf("%v in %d round trips", wire.Commands(), trips)
	}
	return wire.Commands()
}

func wantSent(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("a Get sends %v, want %v", got, want)
	}
}

// After a run of misses a Get sends ACQUIRE without a lookup. That finds a stored value, too,
// in one round trip. After a few hits, lookups come first again.
func TestAMissAfterManyIsTwoRoundTrips(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, other := testkit.LoaderOf(t, rdb), newLoader(t, r)
		testkit.WarmScripts(t, r, l)
		wantSent(t, sends(t, rdb, l, "first", "fetched"), "GETRANGE", "EVALSHA", "EVALSHA")
		testkit.Set(t, other, "kept", "set")
		testkit.Set(t, other, "large", strings.Repeat("large", 10_000))
		predictMisses(t, l)
		wantSent(t, sends(t, rdb, l, "second", "fetched"), "EVALSHA", "EVALSHA")
		wantSent(t, sends(t, rdb, l, "large", strings.Repeat("large", 10_000)), "EVALSHA", "GETRANGE")
		wantSent(t, sends(t, rdb, l, "kept", "set"), "EVALSHA")
		wantSent(t, sends(t, rdb, l, "kept", "set"), "GETRANGE")
		wantSent(t, sends(t, rdb, l, "third", "fetched"), "GETRANGE", "EVALSHA", "EVALSHA")
	})
}

// A load that needs a permit, and one over a Store without Redis, never skips its lookup.
func TestSomeLookupsAreNeverSkipped(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb, func(opt *options) { opt.MaxFetches = 1 })
		predictMisses(t, l)
		wantSent(t, sends(t, rdb, l, "k", "fetched"), "GETRANGE", "EVALSHA", "EVALSHA")
	})
}

// A value that ACQUIRE finds is judged like one of a lookup: it is returned while it is
// refreshed in the background, or kept as a fallback.
func TestStaleValuesAreFoundWithoutALookup(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		if !r.Fake() {
			return // needs the bubble's clock
		}
		long := func(opt *options) { opt.TTL, opt.Jitter = time.Hour, fetchonce.Off }
		revalidate := newLoader(t, r, long, func(opt *options) { opt.StaleWhileRevalidate = time.Hour })
		ifError := newLoader(t, r, long, func(opt *options) { opt.StaleIfError = time.Hour; opt.Prefix = "other" })
		testkit.Set(t, revalidate, "k", "old")
		testkit.Set(t, ifError, "k", "old")
		time.Sleep(61 * time.Minute)
		predictMisses(t, revalidate)
		predictMisses(t, ifError)

		o := testkit.NewOrigin(t)
		got, err := revalidate.Load(t.Context(), "k", func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) {
			return o.Fetch(ctx, f.Key)
		})
		if got.Value != "old" || !got.Stale || err != nil {
			t.Errorf("Load = %+v, %v; want the old value", got, err)
		}
		o.Next().Returns("new")
		r.Until("the new value is there", func() bool {
			got, err := revalidate.Peek(t.Context(), "k")
			return err == nil && got.Value == "new" && !got.Stale
		})

		for _, fails := range []bool{true, false} {
			o := testkit.NewOrigin(t)
			predictMisses(t, ifError)
			g := testkit.Get(t, t.Context(), ifError, "k", o)
			if fails {
				o.Next().Fails(errors.New("it is down"))
				g.Want("old")
				time.Sleep(time.Minute) // the backoff
			} else {
				o.Next().Returns("new")
				g.Want("new")
			}
		}
	})
}

// Callers that skipped their lookup receive a clone each, or ErrNotFound.
func TestValueFoundByAcquireIsClonedForEachCaller(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		clones := 0
		l, other := testkit.LoaderOf(t, rdb, func(opt *options) {
			opt.Clone = func(s string) string { clones++; return s }
		}), newLoader(t, r)
		testkit.Set(t, other, "k", "set")
		_, err := other.Get(t.Context(), "absent", func(context.Context, string) (string, error) { return "", fetchonce.ErrNotFound })
		if !errors.Is(err, fetchonce.ErrNotFound) {
			t.Fatal(err)
		}
		predictMisses(t, l)
		clones = 0
		wantSent(t, sends(t, rdb, l, "k", "set"), "EVALSHA")
		if clones != 1 {
			t.Errorf("a value that may be shared was cloned %d times", clones)
		}
		predictMisses(t, l)
		o := testkit.NewOrigin(t)
		testkit.Get(t, t.Context(), l, "absent", o).WantErr(fetchonce.ErrNotFound)
		o.Want(0)
	})
}

// A value that ACQUIRE finds enters the near cache.
func TestValueFoundByAcquireEntersTheNearCache(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, other := testkit.LoaderOf(t, rdb, testkit.WithNear), newLoader(t, r)
		testkit.Set(t, other, "warm", "set")
		testkit.WarmNear(t, r, l, "warm", "set")
		testkit.Set(t, other, "k", "set")
		predictMisses(t, l)
		if got, from := testkit.Source(t, l, "k"); got != "set" || from != fetchonce.SourceRedis {
			t.Errorf("%q from %v", got, from)
		}
		if got, from := testkit.Source(t, l, "k"); got != "set" || from != fetchonce.SourceNear {
			t.Errorf("then %q from %v", got, from)
		}
	})
}

// A value is deleted after an ACQUIRE has read it. It does not enter the near cache.
func TestDeleteDuringAcquireKeepsTheValueOutOfTheNearCache(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		codec := slowCodec{fetchonce.JSON, make(chan chan struct{}, 1), make(chan struct{})}
		withCodec := func(opt *options) { opt.Codec = codec }
		rdb := r.Client()
		l, other := testkit.LoaderOf(t, rdb, testkit.WithNear, withCodec), newLoader(t, r, withCodec)
		next := neighbour(t, rdb, "k")
		for _, key := range []string{"k", next} {
			testkit.Set(t, other, key, "old")
		}
		testkit.WarmNear(t, r, l, next, "old")
		predictMisses(t, l)

		on := make(chan struct{})
		codec.stop <- on
		g := testkit.Get(t, t.Context(), l, "k", testkit.NewOrigin(t))
		<-codec.stopped
		if err := errors.Join(other.Delete(t.Context(), "k"), other.Delete(t.Context(), next)); err != nil {
			t.Fatal(err)
		}
		r.Until("the second of the two changes, on the same node, is received", func() bool {
			_, err := l.Peek(t.Context(), next)
			return errors.Is(err, fetchonce.ErrNotFound)
		})
		close(on)
		g.Want("old") // it began before the Delete
		if got, err := l.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek = %+v, %v after the Delete", got, err)
		}
	})
}

// One caller of a key that is predicted absent skips its lookup. Those that arrive during its
// load look the key up and join. One process fetches, once.
func TestCallersOfAPredictedMissShareOneLoad(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, other := testkit.LoaderOf(t, rdb), newLoader(t, r)
		predictMisses(t, l)
		predictMisses(t, other)
		redistest.WireOf(rdb).Reset()
		o := testkit.NewOrigin(t)
		callers := []*testkit.Getter{testkit.Get(t, t.Context(), l, "k", o)}
		c := o.Next()
		if n := lookups(rdb); n != 0 {
			t.Errorf("%d lookups before the load of a predicted miss", n)
		}
		for range 50 {
			callers = append(callers, testkit.Get(t, t.Context(), l, "k", o), testkit.Get(t, t.Context(), other, "k", o))
		}
		r.Until("all wait", func() bool { return l.Callers("k") == 51 && other.Callers("k") == 50 })
		c.Returns("v")
		for _, g := range callers {
			g.Want("v")
		}
		o.Want(1)
	})
}

// A value that ACQUIRE finds is deleted before its load has decoded it. A caller that arrives
// after the Delete joins that load, and does not receive the value.
func TestCallerAfterADeleteReceivesNothingThatAcquireFound(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		codec := slowCodec{fetchonce.JSON, make(chan chan struct{}, 1), make(chan struct{})}
		withCodec := func(opt *options) { opt.Codec = codec }
		o, x := testkit.NewOrigin(t), &traceRecorder{t: t}
		l, other := newLoader(t, r, withCodec, x.with), newLoader(t, r, withCodec)
		testkit.Set(t, other, "k", "old")
		predictMisses(t, l)
		x.gets = nil
		on := make(chan struct{})
		codec.stop <- on
		first := testkit.Get(t, t.Context(), l, "k", o)
		<-codec.stopped
		testkit.Get(t, t.Context(), l, "k", o).Want("old") // by its own lookup
		if err := other.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		last := testkit.Get(t, t.Context(), l, "k", o)
		r.Until("the last caller has joined", func() bool { return l.Callers("k") == 2 })
		close(on)
		first.Want("old") // it began before the Delete
		o.Next().Returns("new")
		last.Want("new")
		o.Want(1)
		x.wantKinds(2, 1, 0, 0)
	})
}

// A key that is predicted absent is set or deleted in another process while its load runs. A
// caller that arrives then receives nothing from before that.
func TestCallerAfterAPredictedMissReceivesNothingOld(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		if !r.Fake() {
			return // the fetch is waited for to the end, although its lease is lost
		}
		for _, set := range []bool{true, false} {
			for _, fails := range []bool{true, false} {
				testCallerAfterAPredictedMiss(t, r, set, fails)
			}
		}
	})
}

func testCallerAfterAPredictedMiss(t *testing.T, r backend, sets, fails bool) {
	t.Helper()
	o := testkit.NewOrigin(t)
	o.Ignore = true // it continues though its lease is lost
	l, other := newLoader(t, r), newLoader(t, r)
	predictMisses(t, l)
	r.Wire().DropMessages(redistest.All) // and no notification says so
	defer r.Wire().Heal()
	first := testkit.Get(t, t.Context(), l, "k", o)
	old := o.Next()
	var err error
	if sets {
		err = other.Set(t.Context(), "k", "new")
	} else {
		err = other.Delete(t.Context(), "k")
	}
	if err != nil {
		t.Fatal(err)
	}
	second := testkit.Get(t, t.Context(), l, "k", o)
	r.Settle()
	failure := errors.New("it failed")
	if fails {
		old.Fails(failure)
		first.WantErr(failure)
	} else {
		old.Returns("old")
		first.Want("old")
	}
	switch {
	case sets:
		second.Want("new")
	case fails:
		second.WantErr(failure) // it is not stale
	default:
		o.Next().Returns("new")
		second.Want("new")
	}
	if err := other.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
}
