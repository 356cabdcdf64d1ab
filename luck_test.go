package fetchonce_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// runOutOfLuck has a loader find nothing, so often that it does not look first any
// more.
func runOutOfLuck(t *testing.T, l loader) {
	t.Helper()
	for i := range 60 {
		key := "nothing:" + strconv.Itoa(i)
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

// After a run of misses a Get asks for the lease at once. That finds a value, too,
// in one round trip; and after a few such it is looked first again.
func TestAMissAfterManyIsTwoRoundTrips(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, other := loaderOf(t, rdb), newLoader(t, r)
		warmScripts(t, r, l)
		wantSent(t, sends(t, rdb, l, "first", "fetched"), "GETRANGE", "EVALSHA", "EVALSHA")
		set(t, other, "kept", "set")
		set(t, other, "large", strings.Repeat("large", 10_000))
		runOutOfLuck(t, l)
		wantSent(t, sends(t, rdb, l, "second", "fetched"), "EVALSHA", "EVALSHA")
		wantSent(t, sends(t, rdb, l, "large", strings.Repeat("large", 10_000)), "EVALSHA", "GETRANGE")
		wantSent(t, sends(t, rdb, l, "kept", "set"), "EVALSHA")
		wantSent(t, sends(t, rdb, l, "kept", "set"), "GETRANGE")
		wantSent(t, sends(t, rdb, l, "third", "fetched"), "GETRANGE", "EVALSHA", "EVALSHA")
	})
}

// Where a turn is needed for a load, and where it is the Store that is looked at,
// it is looked first.
func TestLuckIsNotForAll(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l := loaderOf(t, rdb, func(opt *options) { opt.MaxFetches = 1 })
		runOutOfLuck(t, l)
		wantSent(t, sends(t, rdb, l, "k", "fetched"), "GETRANGE", "EVALSHA", "EVALSHA")
	})
}

// A value that is found without a look is judged as any other: it is returned
// though it is old, and fetched anew behind it, or kept for when that fails.
func TestOldValuesAreFoundWithoutALook(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		if !r.Fake() {
			return // it is a matter of time
		}
		long := func(opt *options) { opt.TTL, opt.Jitter = time.Hour, fetchonce.Off }
		revalidate := newLoader(t, r, long, func(opt *options) { opt.StaleWhileRevalidate = time.Hour })
		ifError := newLoader(t, r, long, func(opt *options) { opt.StaleIfError = time.Hour; opt.Schema = "e" })
		set(t, revalidate, "k", "old")
		set(t, ifError, "k", "old")
		time.Sleep(61 * time.Minute)
		runOutOfLuck(t, revalidate)
		runOutOfLuck(t, ifError)

		o := newOrigin(t)
		got, err := revalidate.Load(t.Context(), "k", func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) {
			return o.fetch(ctx, f.Key)
		})
		if got.Value != "old" || !got.Stale || err != nil {
			t.Errorf("Load = %+v, %v; want the old value", got, err)
		}
		o.next().returns("new")
		r.Until("the new value is there", func() bool {
			got, err := revalidate.Peek(t.Context(), "k")
			return err == nil && got.Value == "new" && !got.Stale
		})

		for _, fails := range []bool{true, false} {
			o := newOrigin(t)
			runOutOfLuck(t, ifError)
			g := get(t, t.Context(), ifError, "k", o)
			if fails {
				o.next().fails(errors.New("it is down"))
				g.want("old")
				time.Sleep(time.Minute) // the pause
			} else {
				o.next().returns("new")
				g.want("new")
			}
		}
	})
}

// Those who come without a look get a value each, and one of an absence.
func TestFoundWithoutALookIsEachCallersOwn(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		clones := 0
		l, other := loaderOf(t, rdb, func(opt *options) {
			opt.Clone = func(s string) string { clones++; return s }
		}), newLoader(t, r)
		set(t, other, "k", "set")
		_, err := other.Get(t.Context(), "absent", func(context.Context, string) (string, error) { return "", fetchonce.ErrNotFound })
		if !errors.Is(err, fetchonce.ErrNotFound) {
			t.Fatal(err)
		}
		runOutOfLuck(t, l)
		clones = 0
		wantSent(t, sends(t, rdb, l, "k", "set"), "EVALSHA")
		if clones != 1 {
			t.Errorf("a value that may be shared was cloned %d times", clones)
		}
		runOutOfLuck(t, l)
		o := newOrigin(t)
		get(t, t.Context(), l, "absent", o).wantErr(fetchonce.ErrNotFound)
		o.want(0)
	})
}

// What a Get finds without a look becomes a copy like what it has looked at.
func TestFoundWithoutALookIsKeptNear(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, other := loaderOf(t, rdb, withNear), newLoader(t, r)
		set(t, other, "warm", "set")
		warmNear(t, r, l, "warm", "set")
		set(t, other, "k", "set")
		runOutOfLuck(t, l)
		if got, from := source(t, l, "k"); got != "set" || from != fetchonce.SourceRedis {
			t.Errorf("%q from %v", got, from)
		}
		if got, from := source(t, l, "k"); got != "set" || from != fetchonce.SourceNear {
			t.Errorf("then %q from %v", got, from)
		}
	})
}

// A value is deleted after an ACQUIRE has read it. It does not come to be near.
func TestDeleteDuringAGetWithoutALookForbidsTheCopy(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		codec := slowCodec{fetchonce.JSON, make(chan chan struct{}, 1), make(chan struct{})}
		withCodec := func(opt *options) { opt.Codec = codec }
		rdb := r.Client()
		l, other := loaderOf(t, rdb, withNear, withCodec), newLoader(t, r, withCodec)
		next := neighbour(t, rdb, "k")
		for _, key := range []string{"k", next} {
			set(t, other, key, "old")
		}
		warmNear(t, r, l, next, "old")
		runOutOfLuck(t, l)

		on := make(chan struct{})
		codec.stop <- on
		g := get(t, t.Context(), l, "k", newOrigin(t))
		<-codec.at
		if err := errors.Join(other.Delete(t.Context(), "k"), other.Delete(t.Context(), next)); err != nil {
			t.Fatal(err)
		}
		r.Until("the second change of the two is heard of, on the same node", func() bool {
			_, err := l.Peek(t.Context(), next)
			return errors.Is(err, fetchonce.ErrNotFound)
		})
		close(on)
		g.want("old") // it began before the Delete
		if got, err := l.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek = %+v, %v after the Delete", got, err)
		}
	})
}

// A crowd that comes right after a miss was seen does not look itself, nor does
// one that comes where nothing is expected. One process fetches, once.
func TestACrowdDoesNotLook(t *testing.T) {
	for name, unlucky := range map[string]bool{"invited": false, "out of luck": true} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				if !r.Fake() {
					return // the invitation ends
				}
				rdb := r.Client()
				l, other := loaderOf(t, rdb), newLoader(t, r)
				if unlucky {
					runOutOfLuck(t, l)
					runOutOfLuck(t, other)
				}
				redistest.WireOf(rdb).Reset()
				o := newOrigin(t)
				crowd := []*getter{get(t, t.Context(), l, "k", o)}
				c := o.next()
				for range 50 {
					crowd = append(crowd, get(t, t.Context(), l, "k", o), get(t, t.Context(), other, "k", o))
				}
				r.Until("all wait", func() bool { return l.Callers("k") == 51 && other.Callers("k") == 50 })
				looks := asked(rdb)
				if want := 1; !unlucky && looks != want || unlucky && looks != 0 {
					t.Errorf("%d looks", looks)
				}
				c.returns("v")
				for _, g := range crowd {
					g.want("v")
				}
				o.want(1)

				time.Sleep(time.Second) // the invitation is over, and there is no load
				get(t, t.Context(), l, "k", o).want("v")
			})
		})
	}
}

// Who has joined a load without a look, and after a Delete or a Set elsewhere, is
// given nothing from before: neither its value nor its failure.
func TestWhoDidNotLookIsGivenNothingOld(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		if !r.Fake() {
			return // the fetch is waited for to the end, although its lease is lost
		}
		for _, set := range []bool{true, false} {
			for _, fails := range []bool{true, false} {
				for _, unlucky := range []bool{true, false} {
					testWhoDidNotLook(t, r, set, fails, unlucky)
				}
			}
		}
	})
}

func testWhoDidNotLook(t *testing.T, r backend, sets, fails, unlucky bool) {
	t.Helper()
	o := newOrigin(t)
	o.ignore = true // it goes on though its lease is lost
	l, other := newLoader(t, r), newLoader(t, r)
	if unlucky {
		runOutOfLuck(t, l)
	}
	r.Wire().DropMessages(redistest.All) // and does not hear of that
	defer r.Wire().Heal()
	first := get(t, t.Context(), l, "k", o)
	old := o.next()
	var err error
	if sets {
		err = other.Set(t.Context(), "k", "new")
	} else {
		err = other.Delete(t.Context(), "k")
	}
	if err != nil {
		t.Fatal(err)
	}
	second := get(t, t.Context(), l, "k", o)
	r.Settle()
	failure := errors.New("it failed")
	if fails {
		old.fails(failure)
		first.wantErr(failure)
	} else {
		old.returns("old")
		first.want("old")
	}
	switch {
	case sets:
		second.want("new")
	case fails:
		second.wantErr(failure) // it is not stale
	default:
		o.next().returns("new")
		second.want("new")
	}
	if err := other.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
}
