package batch

import (
	"context"
	"slices"
	"time"
)

// maxStuck is how many stuck pipelines do not count as in flight; see markStuck.
const maxStuck = 8

// epoch is the zero of this package's clock, which is monotonic.
var epoch = time.Now()

func now() time.Duration { return time.Since(epoch) }

// never is before every other time, also in a synctest bubble, which begins in 2000.
const never time.Duration = -1 << 62

// An alarm is one timer for the time limits of all requests, and for the linger. A timer for each
// request would cost more than the rest of this package. The Batcher's mu guards it.
type alarm struct {
	timer *time.Timer
	at    time.Duration // when it fires, since epoch; 0 if it is off
}

// A limit is the context of a batch in flight. It does not end with the context of one caller:
// go-redis would close the connection, and the other requests of the batch would fail.
type limit struct {
	until time.Time
	over  chan struct{} // closed when the time is over
}

func (l *limit) Deadline() (time.Time, bool) { return l.until, true }
func (l *limit) Done() <-chan struct{}       { return l.over }
func (l *limit) Value(any) any               { return nil }

func (l *limit) Err() error {
	select {
	case <-l.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// end ends the context. The caller holds the Batcher's mu.
func (l *limit) end() {
	if l.Err() == nil {
		close(l.over)
	}
}

// setAlarm sets the alarm to a time, unless it fires sooner. The caller holds b.mu.
func (b *Batcher) setAlarm(t time.Duration) {
	if b.alarm.at == 0 || t < b.alarm.at {
		b.alarm.at = t
		b.alarm.timer.Reset(t - now())
	}
}

// onAlarm refuses the requests whose time is over, sets the alarm for the next one, and sends
// batches that have lingered.
func (b *Batcher) onAlarm() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.alarm.at = 0
	t := now()
	for _, f := range slices.Clone(b.queue) { // expire removes some
		b.expire(f, t)
	}
	for _, f := range b.inFlight {
		b.expire(f, t)
	}
	b.flush()
}

// timesOut returns when a request times out. In the queue, each reply of Redis restarts its time:
// a Redis that works through a long queue is not down. In flight, no reply to another pipeline
// does. The caller holds b.mu.
func (b *Batcher) timesOut(f *batch, r *request) time.Duration {
	if f.isSent() {
		return max(r.until, f.floor)
	}
	return max(r.until, b.replied+f.within)
}

// expire refuses the requests of one batch whose time is over. The caller holds b.mu.
func (b *Batcher) expire(f *batch, t time.Duration) {
	for ; f.expired < len(f.requests); f.expired++ {
		r := f.requests[f.expired]
		switch {
		case r == nil:
			continue
		case b.timesOut(f, r) > t:
			b.setAlarm(b.timesOut(f, r))
			return
		case f.isSent():
			b.markStuck(f)
		}
		if r.state == queued {
			if b.unqueue(r) {
				r.refuse(unsent{ErrTimeout})
			} else {
				r.refuse(ErrTimeout)
			}
		}
	}
	if f.isSent() {
		f.limit.end()
	}
}

// markStuck stops counting a batch as in flight, so that another pipeline may start. The batch may
// stay in go-redis for all its timeouts and retries. Other callers must not wait for that once
// Redis answers again. The caller holds b.mu.
func (b *Batcher) markStuck(f *batch) {
	if !f.stuck && b.stuck < maxStuck {
		f.stuck = true
		b.stuck++
		b.pipelines--
		b.checkIdle()
		b.flush()
	}
}
