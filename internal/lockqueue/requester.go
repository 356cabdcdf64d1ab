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
	longestRecheck = time.Second           // covers a lost notification; a lease if that is shorter
	recheckJitter  = 50 * time.Millisecond // at most, after the end of a lease
	firstPoll      = 10 * time.Millisecond // while the mailbox is unsubscribed,
	longestPoll    = 100 * time.Millisecond
)

// A request is one place in the queue in Redis.
type request struct {
	q        *Queue
	n        *name
	wish     protocol.LockWish
	slot     *wake.Slot
	sent     time.Time
	answered bool // at least once
}

// startRequester starts a requester if one is needed. The caller holds q.mu.
func (q *Queue) startRequester(n *name) {
	if !q.needsRequester(n) {
		return
	}
	n.requesting = true
	q.start(func() { // ends when no caller waits
		r := q.newRequest(n)
		r.run(r.send())
	})
}

// needsRequester reports whether callers wait for what Redis may grant, and no requester
// waits there for them. The caller holds q.mu.
func (q *Queue) needsRequester(n *name) bool {
	return n.waiters.Len() > 0 && !n.requesting && len(n.grants) < q.Slots && !q.closed
}

func (q *Queue) newRequest(n *name) *request {
	owner := q.Mailbox.Owner()
	return &request{
		q: q, n: n, wish: q.wish(owner),
		slot: q.Mailbox.Wait(owner), // before the request: the notification may precede the answer
	}
}

func (q *Queue) wish(owner string) protocol.LockWish {
	return protocol.LockWish{Owner: owner, Lease: q.Lease, Slots: q.Slots}
}

// run goes on from the answer to a request until no caller waits, or as many grants are
// here as there are slots.
func (r *request) run(answer protocol.LockAnswer, err error) {
	for r.untilGranted(answer, err) {
		r = r.q.newRequest(r.n)
		answer, err = r.send()
	}
}

// send sends the request and waits for its answer, at most RedisTimeout, whoever leaves:
// a release that overtakes a request leaves the lock to no one for a lease.
func (r *request) send() (protocol.LockAnswer, error) { return r.sendIn(r.firstContext()) }

func (r *request) sendIn(ctx context.Context) (protocol.LockAnswer, error) {
	r.sent = time.Now()
	answer, err := r.q.Redis.AcquireLock(ctx, r.n.lock, r.wish)
	r.answered = r.answered || err == nil
	r.wish.Ticket = answer.Ticket
	r.wish.Return = ""
	return answer, err
}

// firstContext returns the context of the first waiter, without its end.
func (r *request) firstContext() context.Context {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	if w := r.n.first(); w != nil {
		return w.ctx
	}
	return context.Background()
}

// untilGranted waits in the queue in Redis until the lock is granted, and gives it to the
// first waiter. It reports whether to request another for the rest.
func (r *request) untilGranted(answer protocol.LockAnswer, err error) (more bool) {
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
				q.Mailbox.Suspect(q.channel) // its notification should have come first
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
			r.forget(nil)
			return false
		}
		timedOut = w == byTimer
		answer, err = r.send()
	}
}

// What ended a requester's pause.
type wakeup int

const (
	byNotification wakeup = iota
	byTimer
	abandoned // no caller waits any more
)

// pause waits for a notification, a timer, or the last waiter's leaving.
func (r *request) pause(d time.Duration) wakeup {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		if r.abandon() {
			return abandoned
		}
		select {
		case <-r.slot.Ready():
			r.slot.Take(0) // whatever it says, Redis is asked; left there, it would keep the next one out
			return byNotification
		case <-timer.C:
			return byTimer
		case <-r.n.emptied: // maybe long ago
		case <-r.q.ctx.Done(): // then no caller waits
		}
	}
}

// abandon ends the requester if no caller waits.
func (r *request) abandon() bool {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	if r.n.waiters.Len() > 0 {
		return false
	}
	r.n.requesting = false
	r.q.drop(r.n)
	return true
}

// failed ends the requester, and fails the waiters with the error of Redis.
func (r *request) failed(err error) {
	r.q.mu.Lock()
	r.n.fail(err)
	r.n.requesting = false
	r.q.drop(r.n)
	r.q.mu.Unlock()
	r.forget(err)
}

// granted gives the lock to the first waiter. It reports whether to request another.
// Waiters that come later have their turn after the other processes.
func (r *request) granted(answer protocol.LockAnswer) (more bool) {
	q, n := r.q, r.n
	q.mu.Lock()
	n.requesting = false
	w := n.first()
	if w == nil {
		q.drop(n)
		q.mu.Unlock()
		r.forget(nil)
		return false
	}
	q.take(w, r.grant(answer), min(n.waiters.Len(), q.holds())-1)
	more = q.needsRequester(n)
	n.requesting = more
	q.mu.Unlock()
	return more
}

// grant returns what the answer has granted.
func (r *request) grant(answer protocol.LockAnswer) *grant {
	return &grant{owner: r.wish.Owner, granted: time.Now(), sent: r.sent, fence: answer.Fence}
}

// holds returns how many holds a grant may serve: a lock's comes with a fence for each.
// A semaphore's serves one, as a later hold of one grant would have a lower fence than
// another grant.
func (q *Queue) holds() int {
	if q.Slots > 1 {
		return 1
	}
	return protocol.LockFences
}
