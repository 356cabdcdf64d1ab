package fetchonce_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A slowTable is a table whose Create waits for the test, or until its context ends.
type slowTable struct {
	*table
	creating chan *creation // receives each Create when it begins
}

// A creation is one Create that has started.
type creation struct {
	ctx context.Context
	end chan error // nil: insert the row
}

func newSlowTable() *slowTable { return &slowTable{newTable(), make(chan *creation, 100)} }

func (s *slowTable) Create(ctx context.Context, key, v string) (string, error) {
	c := &creation{ctx, make(chan error, 1)}
	s.creating <- c
	select {
	case err := <-c.end:
		if err != nil {
			return "", err
		}
		return s.table.Create(ctx, key, v)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (s *slowTable) next(t *testing.T) *creation {
	t.Helper()
	select {
	case c := <-s.creating:
		return c
	case <-time.After(time.Minute):
		t.Fatal("no Create began")
		return nil
	}
}

// slowStoreForms runs a test with a slowTable behind Redis, and with one alone.
func slowStoreForms(t *testing.T, test func(t *testing.T, r backend, s *slowTable, with func(*options))) {
	t.Helper()
	storeForms(t, func(t *testing.T, r backend, _ *table, with func(*options)) {
		s := newSlowTable()
		test(t, r, s, func(opt *options) { with(opt); opt.Store = s })
	})
}

// All callers leave while the row is created. The Create continues under the lease. Later callers,
// in this process and in another, receive its value without a fetch.
func TestCreateContinuesWithoutCallers(t *testing.T) {
	slowStoreForms(t, func(t *testing.T, r backend, s *slowTable, with func(*options)) {
		o := testkit.NewOrigin(t)
		rdb := r.Client()
		l, other := testkit.LoaderOf(t, rdb, with, testkit.ShortLease(r)), newLoader(t, r, with)
		ctx, cancel := context.WithCancel(t.Context())
		g := testkit.Get(t, ctx, l, "k", o)
		o.Next().Returns("v")
		c := s.next(t)
		cancel()
		g.WantErr(context.Canceled)

		before := testkit.Scripts(rdb)
		r.Until("the lease is renewed", func() bool { return testkit.Scripts(rdb) >= before+4 })
		late := []*testkit.Getter{testkit.Get(t, t.Context(), l, "k", o), testkit.Get(t, t.Context(), other, "k", o)}
		testkit.AwaitWaiters(t, r, "k", 1)
		c.end <- nil
		for _, g := range late {
			g.Want("v")
		}
		o.Want(1)
		if s.row("k") != "v" {
			t.Errorf("the row is %q", s.row("k"))
		}
	})
}

// Five callers arrive and leave during one Create. The value is fetched once.
func TestCallersThatLeaveDuringCreateFetchOnce(t *testing.T) {
	slowStoreForms(t, func(t *testing.T, r backend, s *slowTable, with func(*options)) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, with)
		var c *creation
		for range 5 {
			ctx, cancel := context.WithCancel(t.Context())
			g := testkit.Get(t, ctx, l, "k", o)
			if c == nil {
				o.Next().Returns("v")
				c = s.next(t)
			}
			r.Settle()
			cancel()
			g.WantErr(context.Canceled)
		}
		c.end <- nil
		testkit.Get(t, t.Context(), l, "k", o).Want("v")
		o.Want(1)
	})
}

// A Delete or an Update ends the lease during a Create. A caller from before receives the fetched
// value, which is not stored in Redis. A later caller finds the row.
func TestDeleteDuringCreateDiscardsTheValue(t *testing.T) {
	slowStoreForms(t, func(t *testing.T, r backend, s *slowTable, with func(*options)) {
		for key, deletes := range map[string]func(l loader, key string) error{
			"delete": func(l loader, key string) error { return l.Delete(t.Context(), key) },
			"update": func(l loader, key string) error {
				return l.Update(t.Context(), key, func(context.Context) error { return nil })
			},
		} {
			o := testkit.NewOrigin(t)
			l, other := newLoader(t, r, with), newLoader(t, r, with)
			early := testkit.Get(t, t.Context(), l, key, o)
			o.Next().Returns("v")
			c := s.next(t)
			if err := deletes(other, key); err != nil {
				t.Fatal(err)
			}
			r.Settle() // the holder has received the notification
			if err := c.ctx.Err(); err != nil {
				t.Errorf("the context of Create has ended: %v", context.Cause(c.ctx))
			}
			wantNothingKeptOf(t, r, key)
			c.end <- nil
			early.Want("v")
			wantNothingKeptOf(t, r, key)
			testkit.Get(t, t.Context(), other, key, o).Want("v")
			testkit.Get(t, t.Context(), l, key, o).Want("v")
			o.Want(1)
		}
	})
}

// wantNothingKeptOf fails the test if Redis has a value.
func wantNothingKeptOf(t *testing.T, r backend, key string) {
	t.Helper()
	if n, err := r.Client().Exists(t.Context(), "test:v:{"+key+"}").Result(); n != 0 || err != nil {
		t.Errorf("%d values of %q in Redis, %v; want none", n, key, err)
	}
}

// A Create that fails after its lease was lost is not followed by a second fetch.
func TestFailedCreateAfterADeleteIsNotRepeated(t *testing.T) {
	slowStoreForms(t, func(t *testing.T, r backend, s *slowTable, with func(*options)) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r, with), newLoader(t, r, with)
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("v")
		c := s.next(t)
		if err := other.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		r.Settle()
		boom := errors.New("boom")
		c.end <- boom
		g.WantErr(boom)
		o.Want(1)
	})
}

// A value that was fetched under a lost lease is not created. The load fetches again.
func TestNoCreateAfterALostLease(t *testing.T) {
	slowStoreForms(t, func(t *testing.T, r backend, s *slowTable, with func(*options)) {
		o := testkit.NewOrigin(t)
		o.Ignore = true
		l, other := newLoader(t, r, with), newLoader(t, r, with)
		g := testkit.Get(t, t.Context(), l, "k", o)
		old := o.Next()
		if err := other.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		r.Until("the fetch's context has ended", func() bool { return old.Ctx.Err() != nil })
		old.Returns("old")
		o.Next().Returns("new")
		s.next(t).end <- nil
		g.Want("new")
		if s.row("k") != "new" {
			t.Errorf("the row is %q", s.row("k"))
		}
	})
}

// FetchTimeout ends a Create that no caller waits for. Its lease is released.
func TestFetchTimeoutEndsCreate(t *testing.T) {
	slowStoreForms(t, func(t *testing.T, r backend, s *slowTable, with func(*options)) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, with, func(opt *options) { opt.FetchTimeout = 2 * time.Second })
		ctx, cancel := context.WithCancel(t.Context())
		g := testkit.Get(t, ctx, l, "k", o)
		o.Next().Returns("v")
		c := s.next(t)
		cancel()
		g.WantErr(context.Canceled)
		<-c.ctx.Done()
		if cause := context.Cause(c.ctx); !errors.Is(cause, fetchonce.ErrFetchTimeout) {
			t.Errorf("the context of Create ended with %v", cause)
		}
		r.Until("the lease is released", func() bool { return len(testkit.Keys(t, r)) == 0 })
		r.Settle() // and the load has ended
		g = testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("again")
		s.next(t).end <- nil
		g.Want("again")
	})
}

// Close does not wait for a Create: it ends its context.
func TestCloseEndsCreate(t *testing.T) {
	slowStoreForms(t, func(t *testing.T, r backend, s *slowTable, with func(*options)) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, with)
		ctx, cancel := context.WithCancel(t.Context())
		g := testkit.Get(t, ctx, l, "k", o)
		o.Next().Returns("v")
		c := s.next(t)
		cancel()
		g.WantErr(context.Canceled)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if cause := context.Cause(c.ctx); !errors.Is(cause, fetchonce.ErrClosed) {
			t.Errorf("the context of Create ended with %v", cause)
		}
		if left := testkit.Keys(t, r); len(left) != 0 {
			t.Errorf("left in Redis: %q", left)
		}
	})
}

// Without Redis, a Create continues after its callers have left.
func TestCreateContinuesWithoutRedis(t *testing.T) {
	slowStoreForms(t, func(t *testing.T, r backend, s *slowTable, with func(*options)) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, with)
		r.Kill()
		ctx, cancel := context.WithCancel(t.Context())
		g := testkit.Get(t, ctx, l, "k", o)
		o.Next().Returns("v")
		c := s.next(t)
		cancel()
		g.WantErr(context.Canceled)
		c.end <- nil
		r.Until("the row is there", func() bool { return s.row("k") == "v" })
		testkit.Get(t, t.Context(), l, "k", o).Want("v")
		o.Want(1)
	})
}

// The caller of a GetMany leaves while its rows are created. The Creates continue.
func TestCreatesOfGetManyContinueWithoutCallers(t *testing.T) {
	slowStoreForms(t, func(t *testing.T, r backend, s *slowTable, with func(*options)) {
		b := &bulk{}
		l, other := newLoader(t, r, with), newLoader(t, r, with)
		keys := numbered(0, 3)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := l.GetMany(ctx, keys, b.fetch)
			done <- err
		}()
		var creations []*creation
		for range keys {
			creations = append(creations, s.next(t))
		}
		cancel()
		if _, ok := errors.AsType[*fetchonce.ManyError](<-done); !ok {
			t.Error("GetMany did not fail")
		}
		r.Settle()
		if err := other.Delete(t.Context(), keys[0]); err != nil {
			t.Fatal(err)
		}
		for _, c := range creations {
			c.end <- nil
		}
		r.Until("the rows are there", func() bool { return s.row(keys[0]) != "" && s.row(keys[1]) != "" && s.row(keys[2]) != "" })
		wantMany(t, l, keys, b)
		wantMany(t, other, keys, b)
		if n, _ := b.counts(); n != 1 {
			t.Errorf("%d batches, want 1", n)
		}
	})
}
