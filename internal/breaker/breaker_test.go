package breaker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/breaker"
)

var (
	errRefused = errors.New("connection refused")
	probe      = breaker.Probe{Key: "k", Every: time.Second, Timeout: 500 * time.Millisecond}
)

// A node answers probes as a test sets it.
type node struct {
	err    atomic.Pointer[error] // of the next probes; nil: they are answered
	hangs  atomic.Bool           // it does not answer, and ignores the deadline
	resume chan struct{}
	probes atomic.Int32
	atOnce atomic.Int32
	most   atomic.Int32
}

func nothing() {}

func newNode() *node { return &node{resume: make(chan struct{})} }

func (n *node) fail(err error) { n.err.Store(&err) }

func (n *node) ask(context.Context, string) error {
	n.probes.Add(1)
	n.most.Store(max(n.most.Load(), n.atOnce.Add(1)))
	defer n.atOnce.Add(-1)
	if n.hangs.Load() {
		<-n.resume
	}
	if err := n.err.Load(); err != nil {
		return *err
	}
	return nil
}

func wantOpen(t *testing.T, when string, b *breaker.Breaker, cause error) {
	t.Helper()
	e, open := errors.AsType[*breaker.OpenError](b.Err())
	if !open || !errors.Is(e, cause) {
		t.Errorf("%s: %v, want an open breaker with the cause %v", when, b.Err(), cause)
	}
}

func wantClosed(t *testing.T, when string, b *breaker.Breaker) {
	t.Helper()
	if err := b.Err(); err != nil {
		t.Errorf("%s: %v, want a closed breaker", when, err)
	}
}

func TestOpenBreakerRefusesCallsUntilAProbeIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.fail(errRefused)
		closed := 0
		b := breaker.New(n.ask, func() { closed++ })
		wantClosed(t, "new", b)
		b.Trip(errors.New("the first"), probe)
		synctest.Wait()
		wantOpen(t, "after a failure", b, errRefused)
		for range 50 {
			time.Sleep(200 * time.Millisecond)
			wantOpen(t, "while the node is down", b, errRefused)
		}
		if got := n.probes.Load(); got < 9 || got > 14 {
			t.Errorf("%d probes in ten seconds, want one each second", got)
		}
		n.err.Store(nil)
		time.Sleep(1250 * time.Millisecond)
		synctest.Wait()
		wantClosed(t, "1.25 s after the node is back", b)
		if closed != 1 {
			t.Errorf("its end was reported %d times, want once", closed)
		}
		probes := n.probes.Load()
		time.Sleep(time.Minute)
		if n.probes.Load() != probes {
			t.Error("probes are sent to a node that serves")
		}
	})
}

// The first probe follows the failure at once.
func TestBreakerOfANodeThatFailedForAMomentClosesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(newNode().ask, nothing)
		b.Trip(errRefused, probe)
		wantOpen(t, "until the probe is answered", b, errRefused)
		synctest.Wait()
		wantClosed(t, "after it", b)
	})
}

func TestSuspicionOpensABreakerOnlyIfTheProbeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		b := breaker.New(n.ask, nothing)
		defer b.Stop()
		b.Suspect(probe)
		wantClosed(t, "during the probe", b)
		synctest.Wait()
		wantClosed(t, "after an answer", b)
		n.fail(errRefused)
		b.Suspect(probe)
		synctest.Wait()
		if got := n.probes.Load(); got != 1 {
			t.Errorf("%d probes of a node that served a moment ago, want 1", got)
		}
		time.Sleep(time.Second)
		b.Suspect(probe)
		synctest.Wait()
		wantOpen(t, "after a failed probe", b, errRefused)
	})
}

// Many calls fail at once. They cause one probe.
func TestThereIsOneProbeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.hangs.Store(true)
		b := breaker.New(n.ask, nothing)
		for range 100 {
			b.Trip(errRefused, probe)
			b.Suspect(probe)
		}
		synctest.Wait()
		if got := n.probes.Load(); got != 1 {
			t.Errorf("%d probes at once, want 1", got)
		}
		close(n.resume)
		synctest.Wait()
		wantClosed(t, "after the answer", b)
	})
}

// The node hangs, and so does the client: it does not end its commands.
func TestProbesThatHangAreBoundedAndTheirLateAnswersDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.hangs.Store(true)
		b := breaker.New(n.ask, nothing)
		b.Trip(errRefused, probe)
		time.Sleep(time.Minute)
		wantOpen(t, "after a minute", b, breaker.ErrNoAnswer)
		if got := n.most.Load(); got > 4 {
			t.Errorf("%d probes hang in the client, want at most 4", got)
		}
		before := n.probes.Load()
		n.hangs.Store(false)
		n.fail(errRefused) // of the next; those that hang are answered
		close(n.resume)
		synctest.Wait()
		if n.probes.Load() == before {
			wantOpen(t, "after late answers", b, breaker.ErrNoAnswer)
		}
		n.err.Store(nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantClosed(t, "after an answer in time", b)
	})
}

// The bubble fails if a goroutine is left.
func TestStopEndsTheProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.fail(errRefused)
		b := breaker.New(n.ask, nothing)
		b.Trip(errRefused, probe)
		synctest.Wait()
		b.Stop()
		b.Stop()
		b.Trip(errRefused, probe)
		probes := n.probes.Load()
		time.Sleep(time.Minute)
		if n.probes.Load() != probes {
			t.Error("probes are sent after Stop")
		}
	})
}

// A panic of the client is the failure of the probe.
func TestPanicOfAProbeIsItsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(func(context.Context, string) error { panic(errRefused) }, nothing)
		defer b.Stop()
		b.Trip(context.Canceled, probe)
		synctest.Wait()
		wantOpen(t, "after the panic", b, errRefused)
	})
}
