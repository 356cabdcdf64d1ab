package fetchonce_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// An update is one Update that has started. The test decides what its write returns.
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

func TestUpdateDeletesTheCachedValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		if err := l.Set(t.Context(), "k", "old"); err != nil {
			t.Fatal(err)
		}
		u := startUpdate(t, other).began()
		wantNothingKept(t, l) // the earlier value is deleted before the write

		// A Get meanwhile fetches, and the value that it fetches is not stored.
		reader := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		waiter := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		c.Returns("between")
		reader.Want("between")
		waiter.Want("between")
		wantNothingKept(t, l)

		if err := u.returns(nil); err != nil {
			t.Error(err)
		}
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("new")
		g.Want("new")
		testkit.WantKept(t, other, "new")
		o.Want(2)
	})
}

// One fetch runs when Update begins, another when it ends. Neither value
// is stored, nor returned to a Get that begins after the Update.
func TestUpdateDiscardsTheValuesOfRunningFetches(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		o.Ignore = true
		l, other := newLoader(t, r), newLoader(t, r)
		first := testkit.Get(t, t.Context(), l, "k", o)
		before := o.Next()
		u := startUpdate(t, other).began()
		second := testkit.Get(t, t.Context(), other, "k", o)
		during := o.Next()
		if err := u.returns(nil); err != nil {
			t.Error(err)
		}
		late := []*testkit.Getter{testkit.Get(t, t.Context(), l, "k", o), testkit.Get(t, t.Context(), other, "k", o)}
		after := o.Next()
		before.Returns("old")
		during.Returns("old")
		first.Want("old")
		second.Want("old")
		r.Settle()
		after.Returns("new")
		for _, g := range late {
			g.Want("new")
		}
		testkit.WantKept(t, l, "new")
		o.Want(3)
	})
}

// The writer dies after its write. A fetch that began before the write returns after the mark has
// ended, and its value is not stored.
func TestMarkOfADeadWriterEnds(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		rdb, admin := r.Client(), r.Client()
		writer, l := testkit.LoaderOf(t, rdb, testkit.ShortLease(r)), newLoader(t, r)
		u := startUpdate(t, writer).began()
		reader := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		redistest.WireOf(rdb).Down() // as if the writer had died
		r.Until("the mark has ended", func() bool { return admin.Exists(t.Context(), "test:u:{k}").Val() == 0 })
		c.Returns("old")
		reader.Want("old")
		wantNothingKept(t, l)

		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("new")
		g.Want("new")
		testkit.WantKept(t, l, "new")
		if err := u.returns(nil); !errors.Is(err, fetchonce.ErrNotInvalidated) {
			t.Errorf("Update without Redis = %v; want ErrNotInvalidated", err)
		}
	})
}

// Two Updates of a key overlap. The end of one does not end the other's mark.
func TestUpdatesKeepTheirOwnMarks(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		first, second := startUpdate(t, l).began(), startUpdate(t, other).began()
		if err := first.returns(nil); err != nil {
			t.Error(err)
		}
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("between")
		g.Want("between")
		wantNothingKept(t, l)
		if err := second.returns(nil); err != nil {
			t.Error(err)
		}
		g = testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("new")
		g.Want("new")
		testkit.WantKept(t, l, "new")
	})
}

// The mark lasts as long as the write. If Redis loses it, the next renewal sets it again.
func TestMarkLastsAsLongAsTheWrite(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		rdb, admin := r.Client(), r.Client()
		writer, l := testkit.LoaderOf(t, rdb, testkit.ShortLease(r)), newLoader(t, r, testkit.ShortLease(r))
		u := startUpdate(t, writer).began()
		before := testkit.Scripts(rdb)
		r.Until("it is renewed", func() bool { return testkit.Scripts(rdb) >= before+4 })
		redistest.WireOf(rdb).Pause() // no renewal until the Set
		admin.Del(t.Context(), "test:u:{k}")
		if err := l.Set(t.Context(), "k", "old"); err != nil {
			t.Fatal(err)
		}
		redistest.WireOf(rdb).Resume()
		r.Until("the mark is set again", func() bool { return admin.Exists(t.Context(), "test:u:{k}").Val() == 1 })
		wantNothingKept(t, l) // the renewal deleted the value
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("between")
		g.Want("between")
		wantNothingKept(t, l)
		if err := u.returns(nil); err != nil {
			t.Error(err)
		}
		testkit.WantNoKeyForEver(t, r)
	})
}

// Redis is unreachable for longer than a lease, so the mark ends and a value is stored. The next
// renewal sets the mark again and deletes that value, before the write returns.
func TestMarkOutlastsAnOutage(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb, admin := r.Client(), r.Client()
		writer, l := testkit.LoaderOf(t, rdb, testkit.ShortLease(r)), newLoader(t, r, testkit.ShortLease(r))
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
		if keys := testkit.Keys(t, r); len(keys) > 0 {
			t.Errorf("%v is left", keys)
		}
	})
}

// The write returns while a renewal of its mark is in flight. Update removes the mark only after
// the renewal's reply: an earlier removal would be undone, and no value stored for a lease.
func TestUnmarkComesAfterTheLastRenewal(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		g := testkit.NewGate(rdb)
		writer := testkit.LoaderOf(t, rdb, testkit.ShortLease(r), func(opt *options) { opt.RedisTimeout = time.Minute })
		u := startUpdate(t, writer).began()
		g.Shut()
		<-g.Stopped // the renewal
		u.answer <- nil
		r.Settle()
		if len(g.Stopped) > 0 {
			t.Error("the unmark was sent before the renewal had arrived")
		}
		g.Open()
		if err := <-u.done; err != nil {
			t.Error(err)
		}
		if keys := testkit.Keys(t, r); len(keys) > 0 {
			t.Errorf("%v is left", keys)
		}
	})
}

// A value that Set stores during an Update is kept no longer than the mark.
func TestValueSetDuringAnUpdateEndsWithTheMark(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, other, admin := newLoader(t, r), newLoader(t, r), r.Client()
		u := startUpdate(t, l).began()
		for _, value := range []string{"small", strings.Repeat("large", 10_000)} {
			if err := other.Set(t.Context(), "k", value); err != nil {
				t.Fatal(err)
			}
			testkit.WantKept(t, other, value)
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

func TestErrorOfTheWriteIsReturnedUnchanged(t *testing.T) {
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
		wantNothingKept(t, l) // a failed write may have changed the database

		panicked := make(chan any, 1)
		go func() {
			defer func() { panicked <- recover() }()
			_ = l.Update(t.Context(), "k", func(context.Context) error { panic("oh no") })
		}()
		if p := <-panicked; p != "oh no" {
			t.Errorf("Update panicked with %v", p)
		}
		if keys := testkit.Keys(t, r); len(keys) > 0 {
			t.Errorf("%v is left", keys)
		}
		if e, ok := errors.AsType[*fetchonce.Error](l.Update(t.Context(), "k", nil)); !ok || e.Op != "update" {
			t.Errorf("Update without a write = %v", e)
		}
	})
}

func TestUpdateWithoutRedis(t *testing.T) {
	testkit.Policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		l := newLoader(t, r, testkit.WithPolicy(policy))
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
		r.Until("Redis works again", func() bool { return l.Set(t.Context(), "k", "old") == nil })
		if err := l.Update(t.Context(), "k", func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
		wantNothingKept(t, l)
	})
}

// A cached absence ends with an Update.
func TestAbsenceEndsWithAnUpdate(t *testing.T) {
	storeForms(t, func(t *testing.T, r backend, s *table, with func(*options)) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, with)
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Fails(fetchonce.ErrNotFound)
		g.WantErr(fetchonce.ErrNotFound)
		err := l.Update(t.Context(), "k", func(ctx context.Context) error {
			_, err := s.Create(ctx, "k", "row")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		testkit.Get(t, t.Context(), l, "k", o).Want("row")
		o.Want(1)
	})
}
