package protocol_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// withoutQueue calls f while the scripts do not reach the queue, as in a half-moved slot: it has more
// waiters than a queue of fetchonce.
func (l *locking) withoutQueue(f func()) {
	l.t.Helper()
	const excess = 5000
	var members []redis.Z
	var names []any
	for i := range excess {
		name := fmt.Sprint("x.", i)
		members, names = append(members, redis.Z{Score: 9e15, Member: name}), append(names, name)
	}
	queue := l.lock.Names()[1]
	if err := l.rdb.ZAdd(l.t.Context(), queue, members...).Err(); err != nil {
		l.t.Fatal(err)
	}
	f()
	if err := l.rdb.ZRem(l.t.Context(), queue, names...).Err(); err != nil {
		l.t.Fatal(err)
	}
}

// A waiter receives a slot while the queue is unreachable, and stays in the queue. Its lease is not
// replaced by that of a hand-off, which is short: others would then receive the slot, too.
func TestHolderThatIsStillQueuedKeepsItsLease(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		l.slots = 2
		l.has("p.0")
		l.has("p.1")
		l.waits("p.2")
		l.withoutQueue(func() {
			l.release("p.0", true)
			l.has("p.2")
		})
		l.release("p.1", true)
		time.Sleep(260 * time.Millisecond) // longer than the lease of a hand-off
		l.has("p.3")
		if a := l.requestLock(l.request("p.4")); a.Held {
			t.Errorf("a lock of two slots has three holders: %q", l.state())
		}
		if ours, err := l.RenewLock(t.Context(), l.lock, l.request("p.2")); !ours || err != nil {
			t.Errorf("p.2 has lost its lease: %v, %v", ours, err)
		}
	})
}

// The lock is not handed back to the owner that releases it, though that is still in the queue.
func TestReleaseHandsTheLockToAnotherOwner(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		l.has("p.1")
		l.waits("p.2")
		l.waits("p.3")
		l.withoutQueue(func() {
			l.release("p.1", true)
			l.has("p.2")
		})
		l.release("p.2", true)
		l.has("p.3")
	})
}
