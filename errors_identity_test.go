package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

var (
	errRateLimited = errors.New("rate limited")
	errGone        = errors.New("gone")
	errUnlisted    = errors.New("teapot")
)

// A statusError matches errRateLimited by its method Is.
type statusError struct{ status int }

func (e *statusError) Error() string        { return fmt.Sprintf("status %d", e.status) }
func (e *statusError) Is(target error) bool { return target == errRateLimited && e.status == 429 }

// same checks that err has the text of failure, and whether it is errRateLimited.
func same(t *testing.T, caller string, err, failure error, is bool) {
	t.Helper()
	if err == nil || err.Error() != failure.Error() {
		t.Errorf("%s received %v, want the text %q", caller, err, failure)
	}
	if errors.Is(err, errRateLimited) != is || errors.Is(err, errGone) || errors.Is(err, errUnlisted) {
		t.Errorf("%s received %v: errors.Is is %t, %t and %t, want %t and false", caller, err,
			errors.Is(err, errRateLimited), errors.Is(err, errGone), errors.Is(err, errUnlisted), is)
	}
}

// Every caller of every process receives the failure's text, and errors.Is finds its sentinel:
// waiters, later callers within ErrorTTL, and a GetMany. A process that does not list the
// sentinel receives the text alone.
func TestErrorKeepsItsIdentityInEveryProcess(t *testing.T) {
	listed := func(opt *options) { opt.ErrorTTL, opt.Errors = time.Minute, []error{errGone, errRateLimited} }
	for name, failure := range map[string]error{
		"wrapped": fmt.Errorf("prices: %w, wait", errRateLimited), "bare": errRateLimited,
		"of several": fmt.Errorf("%w: %w", errors.New("prices"), errRateLimited), "by Is": &statusError{429},
	} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) {
				o := testkit.NewOrigin(t)
				l, other := newLoader(t, r, listed), newLoader(t, r, func(opt *options) { opt.ErrorTTL, opt.Errors = time.Minute, []error{errRateLimited} })
				old := newLoader(t, r, func(opt *options) { opt.ErrorTTL = time.Minute })
				here := testkit.Get(t, t.Context(), l, "k", o)
				c := o.Next()
				there, before := testkit.Get(t, t.Context(), other, "k", o), testkit.Get(t, t.Context(), old, "k", o)
				testkit.AwaitWaiters(t, r, "k", 2)
				r.Settle()
				c.Fails(failure)
				same(t, "the fetching process", here.Outcome().Err, failure, true)
				same(t, "a waiter", there.Outcome().Err, failure, true)
				same(t, "a waiter without the sentinel", before.Outcome().Err, failure, false)
				same(t, "a later caller there", testkit.Get(t, t.Context(), other, "k", o).Outcome().Err, failure, true)
				same(t, "a later caller here", testkit.Get(t, t.Context(), l, "k", o).Outcome().Err, failure, true)
				_, err := other.GetMany(t.Context(), []string{"k"}, func(context.Context, []string) (map[string]string, error) { return nil, errUnlisted })
				many, ok := errors.AsType[*fetchonce.ManyError](err)
				if !ok || !errors.Is(err, errRateLimited) {
					t.Fatalf("GetMany = %v, want a *ManyError with the failure", err)
				}
				same(t, "a GetMany", many.Errors["k"], failure, true)
				o.Want(1)
			})
		})
	}
}

// A batch fetch fails. A waiter for one of its keys receives that failure.
func TestFailureOfABatchKeepsItsIdentity(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		listed := func(opt *options) { opt.Errors = []error{errRateLimited} }
		l, other := newLoader(t, r, listed), newLoader(t, r, listed)
		failure := fmt.Errorf("batch: %w", errRateLimited)
		began, end := make(chan struct{}), make(chan struct{})
		done := make(chan error, 1)
		go func() {
			_, err := l.GetMany(t.Context(), []string{"a", "b"}, func(context.Context, []string) (map[string]string, error) {
				close(began)
				<-end
				return nil, failure
			})
			done <- err
		}()
		<-began
		there := testkit.Get(t, t.Context(), other, "a", testkit.NewOrigin(t))
		testkit.AwaitWaiters(t, r, "a", 1)
		r.Settle()
		close(end)
		if many, ok := errors.AsType[*fetchonce.ManyError](<-done); !ok || !errors.Is(many, errRateLimited) {
			t.Errorf("GetMany = %v, want a *ManyError with the failure", many)
		}
		same(t, "a waiter", there.Outcome().Err, failure, true)
	})
}

// A fetch's context.DeadlineExceeded, which Options.Errors lists, is not ErrUnavailable.
func TestFailureOfAPeerIsNotRedisUnavailable(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		listed := func(opt *options) { opt.Errors = []error{context.DeadlineExceeded} }
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r, listed), newLoader(t, r, listed)
		here := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		there := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		r.Settle()
		c.Fails(fmt.Errorf("prices: %w", context.DeadlineExceeded))
		_ = here.Outcome()
		if err := there.Outcome().Err; !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, fetchonce.ErrUnavailable) {
			t.Errorf("a waiter received %v, want context.DeadlineExceeded and not ErrUnavailable", err)
		}
	})
}

// A fetch returns the ErrFetchTimeout of an inner fetch. A waiter receives its text and identity.
func TestTimeoutInAFetchKeepsItsTextAndIdentity(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l, other := newLoader(t, r), newLoader(t, r)
		here := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		there := testkit.Get(t, t.Context(), other, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		r.Settle()
		failure := fmt.Errorf("prices: %w", &fetchonce.Error{Op: "fetch", Key: "inner", Err: fetchonce.ErrFetchTimeout})
		c.Fails(failure)
		_ = here.Outcome()
		if err := there.Outcome().Err; err == nil || err.Error() != failure.Error() || !errors.Is(err, fetchonce.ErrFetchTimeout) {
			t.Errorf("a waiter received %v, want %v", err, failure)
		}
	})
}
