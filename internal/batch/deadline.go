package batch

import (
	"context"
	"slices"
	"time"
)

// maxStuck is how many pipelines may be stuck beside the others.
const maxStuck = 8

// epoch is the zero of this room's clock, which is monotonic and read in one step.
var epoch = time.Now()

func now() time.Duration { return time.Since(epoch) }

// never is before every other time, also in a synctest bubble, which begins in 2000.
const never time.Duration = -1 << 62

// An alarm is one timer for the time limits of all requests. A timer for each would cost
// more than everything else in this room. The Batcher's mu guards it.
type alarm struct {
	timer *time.Timer
	at    time.Duration // when it rings, since epoch; 0 if it is off
}

// A limit is the context of a batch that is sent. It does not end with a caller's context:
// that would cut the connection on which the others wait.
type limit struct {
	until time.Time
	over  chan struct{} // closed once the time is over
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

// ringAt sets the alarm, if it would ring later. The caller holds b.mu.
func (b *Batcher) ringAt(t time.Duration) {
	if b.alarm.at == 0 || t < b.alarm.at {
		b.alarm.at = t
		b.alarm.timer.Reset(t - now())
	}
}

// ring refuses the requests whose time is over, sets the alarm for the next, and ends the
// lingering of the queue.
func (b *Batcher) ring() {
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

// timesOut returns when a request's time is over. In the queue its limit counts from the
// last reply of Redis at the earliest: a Redis that works off a long queue is not down.
// Once it is sent, no other reply prolongs it. The caller holds b.mu.
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
			b.ringAt(b.timesOut(f, r))
			return
		case f.isSent():
			b.giveUp(f)
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

// giveUp gives the place of a batch's pipeline to another: it may be stuck for as long as
// the client's timeouts and retries allow, and no other caller must wait behind it once
// Redis answers again. The caller holds b.mu.
func (b *Batcher) giveUp(f *batch) {
	if !f.stuck && b.stuck < maxStuck {
		f.stuck = true
		b.stuck++
		b.pipelines--
		b.checkIdle()
		b.flush()
	}
}
