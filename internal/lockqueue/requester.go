package lockqueue

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// The pauses of a requester between its requests.
const (
	longestRecheck = time.Second           // covers a lost notification; the length of a lease if that is shorter
	recheckJitter  = 50 * time.Millisecond // at most, after the end of a lease

	// While the mailbox is unsubscribed.
	firstPoll   = 10 * time.Millisecond
	longestPoll = 100 * time.Millisecond
)

// A requester requests a lock with one owner token, and so has one place in the queue in Redis.
type requester struct {
	q        *Queue
	state    *lockState
	request  protocol.LockRequest
	slot     *wake.Slot
	sent     time.Time
	answered bool // Redis has answered a request of this owner
}

// startRequester starts a requester if one is needed. The caller holds q.mu.
func (q *Queue) startRequester(s *lockState) {
	if !q.needsRequester(s) {
		return
	}
	s.requesting = true
	q.start(func() { // ends when no caller waits
		r := q.newRequester(s)
		r.run(r.send())
	})
}

// needsRequester reports whether callers wait, a slot may be free in Redis, and no requester
// exists. The caller holds q.mu.
func (q *Queue) needsRequester(s *lockState) bool {
	return s.waiters.Len() > 0 && !s.requesting && len(s.grants) < q.Slots && !q.closed
}

func (q *Queue) newRequester(s *lockState) *requester {
	owner := q.Mailbox.Owner()
	return &requester{
		q: q, state: s, request: q.request(owner),
		slot: q.Mailbox.OpenSlot(owner), // before the request: the notification may arrive before the answer
	}
}

func (q *Queue) request(owner string) protocol.LockRequest {
	return protocol.LockRequest{Owner: owner, Lease: q.Lease, Slots: q.Slots}
}

// run handles the answer to the first request, and sends others until no caller waits or this
// process has all slots.
func (r *requester) run(answer protocol.LockAnswer, err error) {
	for r.untilGranted(answer, err) {
		r = r.q.newRequester(r.state)
		answer, err = r.send()
	}
}

// send sends the request and waits for the answer for at most RedisTimeout, even if all callers
// leave. If a release overtook the request, no process would have the lock until the lease ends.
func (r *requester) send() (protocol.LockAnswer, error) { return r.sendIn(r.firstContext()) }

func (r *requester) sendIn(ctx context.Context) (protocol.LockAnswer, error) {
	r.sent = time.Now()
	answer, err := r.q.Redis.AcquireLock(ctx, r.state.lock, r.request)
	r.answered = r.answered || err == nil
	r.request.Ticket = answer.Ticket
	r.request.Release = ""
	return answer, err
}

// firstContext returns the context of the first waiter, without its cancellation.
func (r *requester) firstContext() context.Context {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	if w := r.state.first(); w != nil {
		return w.ctx
	}
	return context.Background()
}

// untilGranted waits in the queue in Redis until the lock is granted, and gives it to the first
// waiter. It reports whether to request another slot for the other waiters.
func (r *requester) untilGranted(answer protocol.LockAnswer, err error) (more bool) {
	defer r.slot.Close()
	q := r.q
	timedOut := false
	for poll := firstPoll; ; {
		switch {
		case err != nil:
			r.failed(err)
			return false
		case answer.Held:
			if answer.Handed && timedOut {
				q.Mailbox.CheckConnection(q.channel) // the notification should have arrived before the timer fired
			}
			return r.granted(answer)
		}
		longest := min(longestRecheck, q.Lease)
		pause := min(answer.Left+rand.N(recheckJitter), longest-rand.N(longest/4))
		if !q.Mailbox.Subscribed(q.channel) {
			q.Mailbox.Subscribe(q.ctx, q.channel)
			pause = min(pause, poll/2+rand.N(poll/2))
			poll = min(2*poll, longestPoll)
		}
		w := r.pause(pause)
		if w == abandoned {
			r.withdraw(nil)
			return false
		}
		timedOut = w == byTimer
		answer, err = r.send()
	}
}

// A wakeup says what ended a requester's pause.
type wakeup int

const (
	byNotification wakeup = iota
	byTimer
	abandoned // no caller waits any more
)

// pause waits for a notification, for the recheck timer, or until the last waiter leaves.
func (r *requester) pause(d time.Duration) wakeup {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		if r.abandon() {
			return abandoned
		}
		select {
		case <-r.slot.Ready():
			r.slot.Take(0) // empties the slot: a forged notification with a high fence would keep out the next one
			return byNotification
		case <-timer.C:
			return byTimer
		case <-r.state.emptied: // other callers may have come since: abandon decides
		case <-r.q.ctx.Done(): // Close has failed all waiters
		}
	}
}

// abandon ends the requester if no caller waits.
func (r *requester) abandon() bool {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	if r.state.waiters.Len() > 0 {
		return false
	}
	r.state.requesting = false
	r.q.drop(r.state)
	return true
}

// failed ends the requester and fails all waiters with the error of Redis.
func (r *requester) failed(err error) {
	r.q.mu.Lock()
	r.state.fail(err)
	r.state.requesting = false
	r.q.drop(r.state)
	r.q.mu.Unlock()
	r.withdraw(err)
}

// granted gives the lock to the first waiter. It reports whether to request another slot. Local
// hand-offs serve as many callers as wait now. Callers that come later wait for another grant,
// behind the other processes.
func (r *requester) granted(answer protocol.LockAnswer) (more bool) {
	q, s := r.q, r.state
	q.mu.Lock()
	s.requesting = false
	w := s.first()
	if w == nil {
		q.drop(s)
		q.mu.Unlock()
		r.withdraw(nil)
		return false
	}
	q.addGrant(w, r.grant(answer), min(s.waiters.Len(), q.holds())-1)
	more = q.needsRequester(s)
	s.requesting = more
	q.mu.Unlock()
	return more
}

// grant returns the grant of an answer.
func (r *requester) grant(answer protocol.LockAnswer) *grant {
	return &grant{owner: r.request.Owner, granted: time.Now(), sent: r.sent, fence: answer.Fence}
}

// holds returns for how many holds a grant may be used. The grant of a lock comes with a fence for
// each. The grant of a semaphore is for one hold: a later hold of it would have a lower fence than
// the grant of another slot.
func (q *Queue) holds() int {
	if q.Slots > 1 {
		return 1
	}
	return protocol.LockFences
}
