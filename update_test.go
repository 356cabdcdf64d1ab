package fetchonce_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// An update is one Update under way, whose write waits to be told what to return.
type update struct {
	t       *testing.T
	writing chan context.Context
	answer  chan error
	done    chan error
}

func startUpdate(t *testing.T, l loader) *update {
	t.Helper()
	u := &update{t, make(chan context.Context, 1), make(chan error, 1), make(chan error, 1)}
	go func() {
		u.done <- l.Update(t.Context(), "k", func(ctx context.Context) error {
			u.writing <- ctx
			return <-u.answer
		})
	}()
	return u
}

// began returns when write was called.
func (u *update) began() *update {
	u.t.Helper()
	select {
	case <-u.writing:
	case err := <-u.done:
		u.t.Fatal("Update returned without a write:", err)
	}
	return u
}

func (u *update) returns(err error) error {
	u.answer <- err
	return <-u.done
}

// wantNothingKept fails the test if a value is stored.
func wantNothingKept(t *testing.T, l loader) {
	t.Helper()
	if got, err := l.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
		t.Errorf("%q, %v is stored; want nothing", got.Value, err)
	}
}

func TestUpdateChangesBoth(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		if err := l.Set(t.Context(), "k", "old"); err != nil {
			t.Fatal(err)
		}
		u := startUpdate(t, other).began()
		wantNothingKept(t, l) // the old value is gone before the write

		// Who asks meanwhile goes to the source, and what is there is not stored.
		reader := get(t, t.Context(), l, "k", o)
		c := o.next()
		waiter := get(t, t.Context(), other, "k", o)
		awaitWaiters(t, r, "k", 1)
		c.returns("between")
		reader.want("between")
		waiter.want("between")
		wantNothingKept(t, l)

		if err := u.returns(nil); err != nil {
			t.Error(err)
		}
		g := get(t, t.Context(), l, "k", o)
		o.next().returns("new")
		g.want("new")
		wantKept(t, other, "new")
		o.want(2)
	})
}

// A fetch was running when Update began, another when it ended. Neither's value
// is stored, nor returned to a Get that begins after the Update.
func TestFetchesAroundAnUpdate(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		o.ignore = true
		l, other := newLoader(t, r), newLoader(t, r)
		first := get(t, t.Context(), l, "k", o)
		before := o.next()
		u := startUpdate(t, other).began()
		second := get(t, t.Context(), other, "k", o)
		during := o.next()
		if err := u.returns(nil); err != nil {
			t.Error(err)
		}
		late := []*getter{get(t, t.Context(), l, "k", o), get(t, t.Context(), other, "k", o)}
		after := o.next()
		before.returns("old")
		during.returns("old")
		first.want("old")
		second.want("old")
		r.Settle()
		after.returns("new")
		for _, g := range late {
			g.want("new")
		}
		wantKept(t, l, "new")
		o.want(3)
	})
}

// The writer dies after its write. A fetch that began before the write ends
// long after the mark did.
func TestWriterDies(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		rdb, admin := r.Client(), r.Client()
		writer, l := loaderOf(t, rdb, shortLease(r)), newLoader(t, r)
		u := startUpdate(t, writer).began()
		reader := get(t, t.Context(), l, "k", o)
		c := o.next()
		redistest.WireOf(rdb).Down() // it is as good as dead
		r.Until("the mark has ended", func() bool { return admin.Exists(t.Context(), "test:u:{k}").Val() == 0 })
		c.returns("old")
		reader.want("old")
		wantNothingKept(t, l)

		g := get(t, t.Context(), l, "k", o)
		o.next().returns("new")
		g.want("new")
		wantKept(t, l, "new")
		if err := u.returns(nil); !errors.Is(err, fetchonce.ErrNotInvalidated) {
			t.Errorf("Update without Redis = %v; want ErrNotInvalidated", err)
		}
	})
}

// Two Updates of a key overlap. The end of one does not end the other's mark.
func TestUpdatesKeepTheirOwnMarks(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		first, second := startUpdate(t, l).began(), startUpdate(t, other).began()
		if err := first.returns(nil); err != nil {
			t.Error(err)
		}
		g := get(t, t.Context(), l, "k", o)
		o.next().returns("between")
		g.want("between")
		wantNothingKept(t, l)
		if err := second.returns(nil); err != nil {
			t.Error(err)
		}
		g = get(t, t.Context(), l, "k", o)
		o.next().returns("new")
		g.want("new")
		wantKept(t, l, "new")
	})
}

// The mark lasts as long as the write, also when Redis loses it.
func TestMarkIsRenewed(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		rdb, admin := r.Client(), r.Client()
		writer, l := loaderOf(t, rdb, shortLease(r)), newLoader(t, r, shortLease(r))
		u := startUpdate(t, writer).began()
		before := scripts(rdb)
		r.Until("it is renewed", func() bool { return scripts(rdb) >= before+4 })
		redistest.WireOf(rdb).Pause() // no renewal comes between
		admin.Del(t.Context(), "test:u:{k}")
		if err := l.Set(t.Context(), "k", "old"); err != nil {
			t.Fatal(err)
		}
		redistest.WireOf(rdb).Resume()
		r.Until("the mark is set again", func() bool { return admin.Exists(t.Context(), "test:u:{k}").Val() == 1 })
		wantNothingKept(t, l) // and what came between is gone
		g := get(t, t.Context(), l, "k", o)
		o.next().returns("between")
		g.want("between")
		wantNothingKept(t, l)
		if err := u.returns(nil); err != nil {
			t.Error(err)
		}
		wantNoKeyForEver(t, r)
	})
}

// Redis is away for longer than a lease, and the mark ends. When it is back, the
// mark is set again, though the write has not returned, and what was stored
// meanwhile is gone. So a writer that dies then leaves no old value either.
func TestMarkOutlastsAnOutage(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb, admin := r.Client(), r.Client()
		writer, l := loaderOf(t, rdb, shortLease(r)), newLoader(t, r, shortLease(r))
		u := startUpdate(t, writer).began()
		redistest.WireOf(rdb).Down()
		r.Until("the mark has ended", func() bool { return admin.Exists(t.Context(), "test:u:{k}").Val() == 0 })
		if err := l.Set(t.Context(), "k", "old"); err != nil {
			t.Fatal(err)
		}
		redistest.WireOf(rdb).Up()
		r.Until("the mark is set again", func() bool { return admin.Exists(t.Context(), "test:u:{k}").Val() == 1 })
		wantNothingKept(t, l)
		if err := u.returns(nil); err != nil {
			t.Error(err)
		}
		if keys := keys(t, r); len(keys) > 0 {
			t.Errorf("%v is left", keys)
		}
	})
}

// The write returns while a renewal of its mark is on its way. The mark is taken
// off only when that has arrived: else it would be set again, and nothing stored
// for a lease.
func TestUnmarkComesAfterTheLastRenewal(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		g := newGate(rdb)
		writer := loaderOf(t, rdb, shortLease(r), func(opt *options) { opt.RedisTimeout = time.Minute })
		u := startUpdate(t, writer).began()
		g.shut()
		<-g.stopped // the renewal
		u.answer <- nil
		r.Settle()
		if len(g.stopped) > 0 {
			t.Error("the unmark was sent before the renewal had arrived")
		}
		g.open()
		if err := <-u.done; err != nil {
			t.Error(err)
		}
		if keys := keys(t, r); len(keys) > 0 {
			t.Errorf("%v is left", keys)
		}
	})
}

// A value that is Set while the key is written is kept no longer than the mark.
func TestSetDuringUpdate(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, other, admin := newLoader(t, r), newLoader(t, r), r.Client()
		u := startUpdate(t, l).began()
		for _, value := range []string{"small", strings.Repeat("large", 10_000)} {
			if err := other.Set(t.Context(), "k", value); err != nil {
				t.Fatal(err)
			}
			wantKept(t, other, value)
			if left := admin.PTTL(t.Context(), "test:v:{k}").Val(); left > 5*time.Second {
				t.Errorf("it is kept for %v, longer than the mark", left)
			}
		}
		if err := u.returns(nil); err != nil {
			t.Error(err)
		}
		wantNothingKept(t, l)
	})
}

func TestWritesErrorComesBackAsItIs(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r)
		boom := errors.New("boom")
		u := startUpdate(t, l).began()
		if err := l.Set(t.Context(), "k", "old"); err != nil {
			t.Fatal(err)
		}
		if err := u.returns(boom); err != boom {
			t.Errorf("Update = %v, want write's error", err)
		}
		wantNothingKept(t, l) // it may have been written all the same

		panicked := make(chan any, 1)
		go func() {
			defer func() { panicked <- recover() }()
			_ = l.Update(t.Context(), "k", func(context.Context) error { panic("oh no") })
		}()
		if p := <-panicked; p != "oh no" {
			t.Errorf("Update panicked with %v", p)
		}
		if keys := keys(t, r); len(keys) > 0 {
			t.Errorf("%v is left", keys)
		}
		if e, ok := errors.AsType[*fetchonce.Error](l.Update(t.Context(), "k", nil)); !ok || e.Op != "update" {
			t.Errorf("Update without a write = %v", e)
		}
	})
}

func TestUpdateWithoutRedis(t *testing.T) {
	policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		l := newLoader(t, r, withPolicy(policy))
		r.Kill()
		wrote := false
		err := l.Update(t.Context(), "k", func(context.Context) error { wrote = true; return nil })
		e, ok := errors.AsType[*fetchonce.Error](err)
		if !ok || e.Op != "update" || errors.Is(err, fetchonce.ErrNotInvalidated) != wrote {
			t.Errorf("Update = %v, after a write: %v", err, wrote)
		}
		if wrote != (policy == fetchonce.FailOpen) {
			t.Errorf("write was called: %v", wrote)
		}
		r.Restart()
		r.Until("Redis is found again", func() bool { return l.Set(t.Context(), "k", "old") == nil })
		if err := l.Update(t.Context(), "k", func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
		wantNothingKept(t, l)
	})
}

// That there is nothing is remembered, but not beyond a Set or an Update.
func TestAbsenceEndsWithAnUpdate(t *testing.T) {
	storeForms(t, func(t *testing.T, r backend, s *table, with func(*options)) {
		o := newOrigin(t)
		l := newLoader(t, r, with)
		g := get(t, t.Context(), l, "k", o)
		o.next().fails(fetchonce.ErrNotFound)
		g.wantErr(fetchonce.ErrNotFound)
		err := l.Update(t.Context(), "k", func(ctx context.Context) error {
			_, err := s.Create(ctx, "k", "row")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		get(t, t.Context(), l, "k", o).want("row")
		o.want(1)
	})
}
