// Package breaker is a circuit breaker for one node of Redis: after a failure, calls fail at
// once instead of waiting for a node that does not answer.
//
//	closed ──Trip──► open ──► closed
//	   │               ▲        ▲
//	   │               │ fails  │ is answered
//	   └──Suspect──► probe ─────┘
//
// Only an answered probe closes a breaker. The first probe is sent as soon as the breaker opens,
// so a node that failed for a moment is used again after one round trip. There is one probe at a
// time. Callers never probe, so no caller waits for a node that is down.
//
// The term is from M. Nygard, "Release It!", chapter "Stability Patterns". This breaker has no
// half-open state, in which callers would probe.
//
// The package knows nothing of Redis. internal/batch has a Breaker for each node.
package breaker

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce/internal/guard"
)

// An OpenError is the error of a call that an open breaker refuses. Nothing was sent.
type OpenError struct {
	Cause error // the error of the last probe, or the one that opened the breaker
}

func (e *OpenError) Error() string { return "circuit breaker open: " + e.Cause.Error() }

// Unwrap returns the cause.
func (e *OpenError) Unwrap() error { return e.Cause }

// NotSent reports that the call was not sent.
func (e *OpenError) NotSent() bool { return true }

// IsOpen reports whether err is that of an open breaker.
func IsOpen(err error) bool {
	_, open := errors.AsType[*OpenError](err)
	return open
}

// ErrNoAnswer is the cause when a probe is not answered in time.
var ErrNoAnswer = errors.New("no answer to a probe in time")

// maxStuck is how many probes may still run in the client when the next one is sent. Some
// clients do not end a command at its deadline.
const maxStuck = 4

// A Probe says how to probe.
type Probe struct {
	Key     string        // the key of the failed call
	Every   time.Duration // from the end of one probe to the next, with a jitter of a quarter
	Timeout time.Duration // of each probe
}

// A Breaker guards one node. [New] returns one. It must be stopped.
type Breaker struct {
	ask    func(ctx context.Context, key string) error
	closed func()
	open   atomic.Pointer[OpenError] // nil while the breaker is closed
	stuck  chan struct{}             // one element for each running probe

	mu      sync.Mutex
	probing bool
	served  time.Time // when a probe was last answered; zero if none was
	stopped chan struct{}
}

// New returns a closed breaker. ask returns nil if the node serves a key. The breaker calls
// closed each time it closes.
func New(ask func(ctx context.Context, key string) error, closed func()) *Breaker {
	return &Breaker{ask: ask, closed: closed, stuck: make(chan struct{}, maxStuck), stopped: make(chan struct{})}
}

// Err returns an [*OpenError] while the breaker is open, and nil otherwise.
func (b *Breaker) Err() error {
	if e := b.open.Load(); e != nil {
		return e
	}
	return nil
}

// Trip opens the breaker after a failed call. An open breaker keeps its cause.
func (b *Breaker) Trip(cause error, p Probe) { b.start(&OpenError{cause}, p) }

// Suspect sends a probe, and opens the breaker if that fails. It sends none if a probe was
// answered less than p.Every ago, because callers with short deadlines may often leave a healthy
// node.
func (b *Breaker) Suspect(p Probe) { b.start(nil, p) }

func (b *Breaker) start(e *OpenError, p Probe) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.isStopped() {
		return
	}
	if e != nil {
		b.open.CompareAndSwap(nil, e)
	} else if !b.served.IsZero() && time.Since(b.served) < p.Every {
		return
	}
	if !b.probing {
		b.probing = true
		go b.run(p) // ends when a probe is answered, or with Stop
	}
}

// Stop ends the probes. The breaker stays as it is.
func (b *Breaker) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.isStopped() {
		close(b.stopped)
	}
}

func (b *Breaker) isStopped() bool {
	select {
	case <-b.stopped:
		return true
	default:
		return false
	}
}

// run probes until a probe is answered.
func (b *Breaker) run(p Probe) {
	for {
		err := b.probe(p)
		if err == nil {
			b.close()
			return
		}
		if b.isStopped() {
			return
		}
		b.open.Store(&OpenError{err})
		pause := time.NewTimer(p.Every*3/4 + rand.N(p.Every/2+1))
		select {
		case <-pause.C:
		case <-b.stopped:
			pause.Stop()
			return
		}
	}
}

func (b *Breaker) close() {
	b.mu.Lock()
	was := b.open.Swap(nil)
	b.probing, b.served = false, time.Now()
	b.mu.Unlock()
	if was != nil {
		b.closed()
	}
}

// probe sends one probe. An answer that arrives after the timeout does not count.
func (b *Breaker) probe(p Probe) error {
	ctx, cancel := context.WithTimeout(context.Background(), p.Timeout)
	defer cancel()
	select {
	case b.stuck <- struct{}{}:
	case <-ctx.Done():
		return ErrNoAnswer
	case <-b.stopped:
		return ErrNoAnswer
	}
	answer := make(chan error, 1)
	go func() { // ends when the client has ended the command
		defer func() { <-b.stuck }()
		answer <- guard.Call(func() error { return b.ask(ctx, p.Key) })
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ErrNoAnswer
	case <-b.stopped:
		return ErrNoAnswer
	}
}
