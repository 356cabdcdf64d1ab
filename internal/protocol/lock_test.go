package protocol_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// A locking is a lock in a bubble, where time passes only in a sleep.
type locking struct {
	*protocol.Client
	t     *testing.T
	fake  redistest.Redis
	rdb   *redis.Client
	lock  protocol.Lock
	slots int
}

const lockLease = 10 * time.Second

func inLock(t *testing.T, f func(t *testing.T, l *locking)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		f(t, &locking{
			Client: protocol.NewClient(batch.NewRouter(r.Client()).Link(0, 0), ns, "p", timeout, false),
			t:      t, fake: r, rdb: r.Client(), lock: ns.Lock("it"), slots: 1,
		})
	})
}

func (l *locking) request(owner string) protocol.LockRequest {
	return protocol.LockRequest{Owner: owner, Lease: lockLease, Slots: l.slots}
}

func (l *locking) requestLock(w protocol.LockRequest) protocol.LockAnswer {
	l.t.Helper()
	a, err := l.AcquireLock(l.t.Context(), l.lock, w)
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

func (l *locking) has(owner string) protocol.LockAnswer {
	l.t.Helper()
	a := l.requestLock(l.request(owner))
	if !a.Held || a.Fence == 0 {
		l.t.Fatalf("AcquireLock of %s = %+v, want the lease", owner, a)
	}
	return a
}

func (l *locking) waits(owner string) protocol.LockAnswer {
	l.t.Helper()
	a := l.requestLock(l.request(owner))
	if a.Held || a.Ticket == "0" {
		l.t.Fatalf("AcquireLock of %s = %+v, want a place in the queue", owner, a)
	}
	return a
}

func (l *locking) release(owner string, want bool) {
	l.t.Helper()
	ours, err := l.ReleaseLock(l.t.Context(), l.lock, l.request(owner))
	if err != nil || ours != want {
		l.t.Errorf("ReleaseLock of %s = %v, %v; want %v", owner, ours, err, want)
	}
}

func (l *locking) rises(before, after protocol.LockAnswer) {
	l.t.Helper()
	if after.Fence < before.Fence+protocol.LockFences {
		l.t.Errorf("the fences are %d and then %d; each lease has %d", before.Fence, after.Fence, protocol.LockFences)
	}
}

// state returns the words of the lock's string: 2, and 3 more for each holder.
func (l *locking) state() []string {
	return strings.Fields(l.rdb.Get(l.t.Context(), l.lock.Names()[0]).Val())
}

func TestFreeLockSentTwice(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		for round := range 2 { // the second time, the key of the lock is still there
			a := l.has("p.1")
			time.Sleep(time.Second)
			again := l.has("p.1")
			if again.Fence <= a.Fence || a.Handed || !again.Handed {
				t.Errorf("round %d: AcquireLock = %+v, and sent again %+v", round, a, again)
			}
			if left := l.rdb.PTTL(t.Context(), l.lock.Names()[0]).Val(); left != lockLease+time.Second {
				t.Errorf("a lease that was requested again lasts %v", left)
			}
			l.release("p.1", true)
			if round > 0 {
				l.release("p.1", false) // sent twice
			}
			if left := l.rdb.PTTL(t.Context(), l.lock.Names()[0]).Val(); left != time.Second {
				t.Errorf("the key of a free lock lasts %v", left)
			}
		}
	})
}

func TestFencesOfALockRiseWhileTheClockStandsStillOrStepsBack(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		a := l.has("p.1")
		l.release("p.1", true)
		for _, step := range []time.Duration{0, -time.Second / 2, -900 * time.Millisecond} {
			l.fake.SetTime(time.Now().Add(step))
			b := l.has("p.2") // the fast path
			l.rises(a, b)
			l.waits("p.3")
			l.release("p.2", true)
			a = l.has("p.3") // and the slow one
			l.rises(b, a)
			l.release("p.3", true)
		}
		back := time.Now().Add(-time.Hour)
		l.fake.SetTime(back)
		if b := l.has("p.4"); b.Fence != back.UnixMicro() {
			t.Errorf("with a fence that is an hour ahead, the next is %d", b.Fence)
		}
	})
}

// The holder is dead. Its lease has ended, and is still in the string of the lock.
func TestEndedLeaseIsReplaced(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		a := l.has("p.1")
		time.Sleep(lockLease)
		if n := len(l.state()); n != 5 {
			t.Fatalf("the lock has %d words", n)
		}
		b := l.has("p.2")
		l.rises(a, b)
		if ours, err := l.RenewLock(t.Context(), l.lock, l.request("p.1")); ours || err != nil {
			t.Errorf("RenewLock of a lease that has ended = %v, %v", ours, err)
		}
		l.release("p.1", false)
		if n := len(l.state()); n != 5 {
			t.Errorf("a late release has left %v", l.state())
		}
		if ours, err := l.RenewLock(t.Context(), l.lock, l.request("p.2")); !ours || err != nil {
			t.Errorf("RenewLock = %v, %v", ours, err)
		}
	})
}

// No other owner had the lock since, so the late release succeeds.
func TestLateReleaseOfTheOnlyLease(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		a := l.has("p.1")
		time.Sleep(lockLease + time.Second/2)
		l.release("p.1", true)
		if n := len(l.state()); n != 2 {
			t.Errorf("it has left %v", l.state())
		}
		l.rises(a, l.has("p.2"))
	})
}

func TestReleaseOfALockThatWasDeleted(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		l.has("p.1")
		l.rdb.Del(t.Context(), l.lock.Names()[0])
		l.release("p.1", false)
		l.has("p.2")
		l.release("p.1", false)
		l.release("p.2", true)
		l.release("p.1", false)
	})
}

// The key of the lock is gone, and the queue is not.
func TestWaitersGetAFreeLockBeforeNewRequests(t *testing.T) {
	for name, free := range map[string]func(l *locking){
		"deleted": func(l *locking) { l.rdb.Del(l.t.Context(), l.lock.Names()[0]) },
		"released": func(l *locking) {
			l.release("p.1", true)
			l.release("p.2", true) // it was handed the lease, and passes it on
		},
	} {
		t.Run(name, func(t *testing.T) {
			inLock(t, func(_ *testing.T, l *locking) {
				l.has("p.1")
				l.waits("p.2")
				l.waits("p.3")
				free(l)
				l.waits("p.4")
				w := l.request("p.5")
				w.Try = true
				if a := l.requestLock(w); a.Held {
					l.t.Errorf("a try has overtaken the queue: %+v", a)
				}
			})
		})
	}
}

// The waiters are dead. Their queue is still there, or has just ended.
func TestQueueOfDeadWaitersDoesNotBlockAFreeLock(t *testing.T) {
	for _, since := range []time.Duration{0, 2999 * time.Millisecond, 3001 * time.Millisecond} {
		inLock(t, func(t *testing.T, l *locking) {
			a := l.has("p.1")
			l.waits("p.2")
			time.Sleep(since)
			l.release("p.1", true)
			if since < 3*time.Second {
				l.waits("p.3")                     // the dead one is handed the lease,
				time.Sleep(250 * time.Millisecond) // and has not confirmed it
			}
			l.rises(a, l.has("p.3"))
		})
	}
}

// A waiter has died in a queue that another one keeps. The release costs the other one no unconfirmed hand-off.
func TestWaiterThatDiedIsPassedOver(t *testing.T) {
	inLock(t, func(_ *testing.T, l *locking) {
		l.has("p.1")
		l.waits("p.2")
		for range 4 {
			l.waits("p.3")
			time.Sleep(750 * time.Millisecond)
		}
		l.release("p.1", true)
		if a := l.has("p.3"); !a.Handed {
			l.t.Error("the release did not hand the lock to the waiter behind")
		}
	})
}

func TestLastReleaseOfASemaphore(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		l.slots = 2
		a, b := l.has("p.1"), l.has("p.2")
		l.rises(a, b)
		l.release("p.1", true)
		if left := l.rdb.PTTL(t.Context(), l.lock.Names()[0]).Val(); left != lockLease+time.Second {
			t.Errorf("the lock ends in %v, and a lease in %v", left, lockLease)
		}
		l.release("p.2", true)
		l.release("p.1", false)
		l.rises(b, l.has("p.3"))
	})
}

func TestStringThatIsNoLock(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		for _, text := range []string{"mine", "1 2", "lock", "lock x", "unlock 1 2", `{"lock": 1}`, "mine 1 2 p.1 3 4"} {
			l.rdb.Set(t.Context(), l.lock.Names()[0], text, 0)
			if a, err := l.AcquireLock(t.Context(), l.lock, l.request("p.1")); err == nil {
				t.Errorf("AcquireLock with %q there = %+v", text, a)
			}
			if ours, err := l.ReleaseLock(t.Context(), l.lock, l.request("p.1")); err == nil {
				t.Errorf("ReleaseLock with %q there = %v", text, ours)
			}
			if ours, err := l.RenewLock(t.Context(), l.lock, l.request("p.1")); err == nil {
				t.Errorf("RenewLock with %q there = %v", text, ours)
			}
			if got := l.rdb.Get(t.Context(), l.lock.Names()[0]).Val(); got != text {
				t.Errorf("%q was made %q", text, got)
			}
		}
	})
}

// The releasing process has a short lease.
func TestHandOffOfAShortLeaseLeavesTimeToConfirm(t *testing.T) {
	inLock(t, func(_ *testing.T, l *locking) {
		short := l.request("p.1")
		short.Lease = 20 * time.Millisecond
		if a := l.requestLock(short); !a.Held {
			l.t.Fatalf("AcquireLock = %+v, want the lease", a)
		}
		l.waits("p.2")
		l.waits("p.3")
		if ours, err := l.ReleaseLock(l.t.Context(), l.lock, short); !ours || err != nil {
			l.t.Errorf("ReleaseLock = %v, %v", ours, err)
		}
		time.Sleep(249 * time.Millisecond)
		l.waits("p.3")
		if a := l.has("p.2"); !a.Handed {
			l.t.Error("the hand-off did not last until it was confirmed")
		}
	})
}
