package protocol_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// FuzzForgedLock writes anything to the key of a lock. The lock is free within a lease, or within an
// hour if a longer lease was written. Its fences then rise, and are near the clock.
func FuzzForgedLock(f *testing.F) {
	for _, state := range []string{
		"", "lock", "lock 1", "lock 1 x.1 1 99999999999999", "lock 9999999999999999999 x.1 1 99999999999999/99999999999999",
		"lock 946684800500000 p.1 1 946684801000 p.1 1 946684802000/5000", "lock 1 x.1 1 946684805000/", "lock 1  1 1 1", "junk", "lock x",
		"lock 1 x.1 1 946684800001/1 y", "lock 1" + strings.Repeat(" 1", 100),
	} {
		f.Add(state, true)
		f.Add(state, false)
	}
	f.Fuzz(func(t *testing.T, state string, ends bool) {
		inLock(t, func(t *testing.T, l *locking) {
			ttl := time.Duration(0)
			if ends {
				ttl = year
			}
			l.rdb.Set(t.Context(), l.lock.Names()[0], state, ttl)
			l.mayBeRefused("p.1")
			time.Sleep(lockLease + time.Millisecond)
			a := l.mayBeRefused("p.2")
			if !a.Held && strings.Contains(state, "/") {
				time.Sleep(time.Hour)
				a = l.mayBeRefused("p.2")
			}
			if most := time.Now().Add(time.Second).UnixMicro(); !a.Held || a.Fence < time.Now().UnixMicro() || a.Fence > most {
				t.Fatalf("AcquireLock = %+v with %q there", a, state)
			}
			l.release("p.2", true)
			time.Sleep(time.Second + time.Millisecond)
			l.rises(a, l.has("p.3"))
		})
	})
}

// FuzzForgedQueue writes anything to the queue of a lock that is held. After its release, the waiter
// has the lock within 3.25 s: a waiter counts for 3 s without a request, and a hand-off must be
// confirmed within 250 ms.
func FuzzForgedQueue(f *testing.F) {
	for _, member := range []string{"x.1", "", "p.2", "p.1", "x.1 1 9", strings.Repeat("x", 300) + ".1", "x.1/1", "\x00.1"} {
		for _, until := range []float64{0, -1, 99999999999999999, math.Inf(1), math.Inf(-1), 946684802000} {
			f.Add(member, 1.0, until, byte(3))
		}
		f.Add(member, math.Inf(1), 946684802000.0, byte(1))
		f.Add(member, math.Inf(-1), 0.0, byte(0))
		f.Add(member, 946684800.5e6, 946684802000.0, byte(0))
	}
	f.Fuzz(func(t *testing.T, member string, score, until float64, more byte) {
		if math.IsNaN(score) || math.IsNaN(until) {
			return // no score of Redis'
		}
		inLock(t, func(t *testing.T, l *locking) {
			l.has("p.1")
			l.forgeWaiters(score, until, member)
			for i := range more {
				l.forgeWaiters(score, until, fmt.Sprint(member, i))
			}
			l.waits("p.2")
			l.release("p.1", true)
			for range 20 {
				if l.requestLock(l.request("p.2")).Held {
					return
				}
				time.Sleep(250 * time.Millisecond)
			}
			t.Errorf("the lock is blocked: %q", l.state())
		})
	})
}
