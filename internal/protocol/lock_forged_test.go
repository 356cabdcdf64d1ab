package protocol_test

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

const year = 365 * 24 * time.Hour

// mayBeRefused sends a request. The script may refuse a forged key of the lock.
func (l *locking) mayBeRefused(owner string) protocol.LockAnswer {
	l.t.Helper()
	a, err := l.AcquireLock(l.t.Context(), l.lock, l.request(owner))
	if err != nil && !strings.Contains(err.Error(), "WRONGTYPE") {
		l.t.Errorf("AcquireLock of %s: %v", owner, err)
	}
	return a
}

func TestForgedLockEndsWithinALease(t *testing.T) {
	far := time.Now().Add(10 * year).UnixMilli()
	for name, state := range map[string]string{
		"a far end":         fmt.Sprintf("lock 1 x.1 1 %d", far),
		"an end of 300":     "lock 1 x.1 1 " + strings.Repeat("9", 300),
		"one owner twice":   fmt.Sprintf("lock 1 x.1 1 %d x.1 1 %d", far, far),
		"many owners":       "lock 1" + strings.Repeat(fmt.Sprintf(" x.1 1 %d", far), 2000),
		"a far fence":       fmt.Sprintf("lock %s x.1 1 %d", strings.Repeat("9", 300), far),
		"a long text":       "lock 1" + strings.Repeat(" x.1 1 1", 20000),
		"junk":              "mine",
		"no fence":          "lock",
		"a fence, and junk": "lock 1 2",
		"something binary":  "lock \x00\xff 1 2",
		"an empty string":   "",
	} {
		for _, ttl := range []time.Duration{0, time.Millisecond, year} {
			t.Run(fmt.Sprintf("%s, ending in %v", name, ttl), func(t *testing.T) {
				inLock(t, func(t *testing.T, l *locking) {
					l.rdb.Set(t.Context(), l.lock.Names()[0], state, ttl)
					l.mayBeRefused("p.1")
					time.Sleep(lockLease + time.Millisecond)
					l.has("p.1")
					l.release("p.1", true)
				})
			})
		}
	}
}

func TestLockOfAnotherTypeEndsWithinALease(t *testing.T) {
	inLock(t, func(t *testing.T, l *locking) {
		l.rdb.RPush(t.Context(), l.lock.Names()[0], "x")
		if _, err := l.AcquireLock(t.Context(), l.lock, l.request("p.1")); !protocol.IsFinal(err) {
			t.Errorf("AcquireLock with a list there: %v", err)
		}
		time.Sleep(lockLease + time.Millisecond)
		l.has("p.1")
	})
}

func TestReleaseAndRenewalOfAForeignKeyGiveItATTL(t *testing.T) {
	for name, do := range map[string]func(l *locking) (bool, error){
		"release": func(l *locking) (bool, error) { return l.ReleaseLock(l.t.Context(), l.lock, l.request("p.1")) },
		"renew":   func(l *locking) (bool, error) { return l.RenewLock(l.t.Context(), l.lock, l.request("p.1")) },
	} {
		t.Run(name, func(t *testing.T) {
			inLock(t, func(t *testing.T, l *locking) {
				l.rdb.Set(t.Context(), l.lock.Names()[0], "junk", 0)
				if ours, err := do(l); ours || err == nil {
					t.Errorf("%v, %v with junk there", ours, err)
				}
				if left := l.rdb.PTTL(t.Context(), l.lock.Names()[0]).Val(); left != lockLease {
					t.Errorf("junk ends in %v", left)
				}
			})
		})
	}
}

func TestLockOfALongerLeaseDoesNotEndEarly(t *testing.T) {
	for _, lease := range []time.Duration{time.Minute, time.Hour} {
		inLock(t, func(t *testing.T, l *locking) {
			long := l.request("p.1")
			long.Lease = lease
			l.requestLock(long)
			for at := time.Duration(0); at < lease; at += lease / 30 {
				l.waits("p.2")
				time.Sleep(lease / 30)
			}
			l.has("p.2")
		})
	}
}

// A dead holder blocks the lock for its lease, even if the server's clock is set back.
func TestLockEndsThoughTheClockWasSetBack(t *testing.T) {
	inLock(t, func(_ *testing.T, l *locking) {
		l.has("p.1")
		l.fake.SetTime(time.Now().Add(-time.Hour))
		l.waits("p.2")
		l.fake.SetTime(time.Now().Add(lockLease - time.Hour))
		l.has("p.2")
	})
}

func TestForgedFenceIsIgnored(t *testing.T) {
	for _, ahead := range []time.Duration{0, time.Second / 2, 998 * time.Millisecond, time.Second, time.Minute, 23 * time.Hour, 10 * year} {
		for _, waiting := range []bool{false, true} {
			t.Run(fmt.Sprint(ahead, waiting), func(t *testing.T) {
				inLock(t, func(t *testing.T, l *locking) {
					l.rdb.Set(t.Context(), l.lock.Names()[0], fmt.Sprint("lock ", time.Now().Add(ahead).UnixMicro()), 0)
					if waiting {
						l.rdb.ZAdd(t.Context(), l.lock.Names()[1], redis.Z{Score: 1, Member: "x.1"})
					}
					a := l.has("p.1")
					if most := time.Now().Add(time.Second).UnixMicro(); a.Fence > most {
						t.Errorf("the next fence is %v ahead", time.Duration(a.Fence-time.Now().UnixMicro())*time.Microsecond)
					}
					l.release("p.1", true)
					time.Sleep(time.Second + time.Millisecond) // the lock is forgotten
					l.rises(a, l.has("p.2"))
				})
			})
		}
	}
}

// The forged lease belongs to an owner that waits. The owner receives it, with a new fence.
func TestForgedLeaseOfAWaiterGetsANewFence(t *testing.T) {
	for _, fence := range []int64{1, 1 << 62} {
		inLock(t, func(t *testing.T, l *locking) {
			a := l.has("p.1")
			l.waits("p.2")
			end := time.Now().Add(time.Second).UnixMilli()
			l.rdb.Set(t.Context(), l.lock.Names()[0], fmt.Sprintf("lock %d p.2 %d %d", a.Fence, fence, end), time.Minute)
			b := l.has("p.2")
			l.rises(a, b)
			if b.Fence > time.Now().Add(time.Second).UnixMicro() {
				t.Errorf("a fence of %d", b.Fence)
			}
		})
	}
}

// Between a hand-off in a semaphore and its confirmation, another process receives a slot.
func TestConfirmationOfAHandOffHasANewFence(t *testing.T) {
	inLock(t, func(_ *testing.T, l *locking) {
		l.slots = 2
		l.has("p.1")
		l.has("p.2")
		l.waits("p.3")
		l.release("p.1", true) // to p.3, which is stopped
		l.release("p.2", true)
		other := l.has("p.4")
		l.rises(other, l.has("p.3"))
	})
}

func TestForgedQueueBlocksNoLock(t *testing.T) {
	for name, forge := range map[string]func(l *locking, queue string){
		"a string":               func(l *locking, queue string) { l.rdb.Set(l.t.Context(), queue, "x", 0) },
		"a string that stays on": func(l *locking, queue string) { l.rdb.Set(l.t.Context(), queue, "x", year) },
		"too many": func(l *locking, queue string) {
			var many []redis.Z
			for i := range 5000 {
				many = append(many, redis.Z{Score: float64(i), Member: fmt.Sprint("x.", i)})
			}
			l.rdb.ZAdd(l.t.Context(), queue, many...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inLock(t, func(t *testing.T, l *locking) {
				names := l.lock.Names()
				forge(l, names[1])
				a := l.has("p.1")
				b := l.requestLock(l.request("p.2"))
				if b.Held || b.Left > 50*time.Millisecond {
					t.Errorf("a waiter has %+v, want a poll", b)
				}
				l.release("p.1", true)
				l.rises(a, l.has("p.2"))
				l.release("p.2", true)
				time.Sleep(3*time.Second + time.Millisecond)
				if n := l.rdb.Exists(t.Context(), names...).Val(); n != 0 {
					t.Errorf("%d names are still there", n)
				}
			})
		})
	}
}

// forgeWaiters puts waiters into the queue, which count as waiting until a time in ms, or have no such time.
func (l *locking) forgeWaiters(score, until float64, waiters ...string) {
	l.t.Helper()
	for _, w := range waiters {
		l.rdb.ZAdd(l.t.Context(), l.lock.Names()[1], redis.Z{Score: score, Member: w})
		if until != 0 {
			l.rdb.ZAdd(l.t.Context(), l.lock.Names()[1], redis.Z{Score: -until, Member: "+" + w})
		}
	}
}

// The queue has a forged member without a ticket, and no waiters. The lock is free, and the member expires.
func TestForgedQueueWithoutWaitersExpires(t *testing.T) {
	for _, ttl := range []time.Duration{0, time.Second, year} {
		inLock(t, func(t *testing.T, l *locking) {
			queue := l.lock.Names()[1]
			l.forgeWaiters(-1, 1, "x.1")
			if ttl > 0 {
				l.rdb.PExpire(t.Context(), queue, ttl)
			}
			for at := time.Duration(0); at <= 3*time.Second; at += 500 * time.Millisecond {
				l.has("p.1")
				l.release("p.1", true)
				time.Sleep(500 * time.Millisecond)
			}
			if l.rdb.Exists(t.Context(), queue).Val() != 0 {
				t.Errorf("with a TTL of %v, the queue is still there", ttl)
			}
		})
	}
}

func TestForgedWaitersEnd(t *testing.T) {
	names := make([]string, 50)
	for i := range names {
		names[i] = fmt.Sprint("x.", i)
	}
	long := []string{strings.Repeat("x", 300) + ".1", strings.Repeat("x", 100) + ".1", "x.1 1 1 y", "x", "", "x.1\n"}
	for name, c := range map[string]struct {
		score   float64
		until   float64
		waiters []string
	}{
		"for ten years":    {1, float64(time.Now().Add(10 * year).UnixMilli()), names},
		"for ever":         {1, math.Inf(1), names},
		"until long ago":   {1, math.Inf(-1), names},
		"far":              {1, 1e300, names},
		"names, odd":       {1, float64(time.Date(2000, 1, 1, 0, 0, 2, 0, time.UTC).UnixMilli()), long},
		"at the far end":   {math.Inf(1), 0, names},
		"before all":       {math.Inf(-1), 0, names},
		"at an odd ticket": {1e300, 0, names},
	} {
		t.Run(name, func(t *testing.T) {
			inLock(t, func(t *testing.T, l *locking) {
				l.has("p.1")
				l.forgeWaiters(c.score, c.until, c.waiters...)
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
}

// The queue has a forged ticket for an owner that waits.
func TestForgedTicketIsReplaced(t *testing.T) {
	for _, score := range []float64{math.Inf(1), math.Inf(-1), -1, 1e300} {
		inLock(t, func(t *testing.T, l *locking) {
			l.has("p.1")
			l.forgeWaiters(score, 0, "p.2")
			a := l.waits("p.2")
			if ticket, _ := strconv.ParseInt(a.Ticket, 10, 64); ticket <= 0 || ticket > time.Now().UnixMicro() {
				t.Errorf("with the score %v, the ticket is %s", score, a.Ticket)
			}
		})
	}
}

// The test counts the commands of a real server: times would not be reliable.
func TestForgedLockDoesNotBlockTheServer(t *testing.T) {
	r := redistest.Server(t).Backend()
	p := lockProcess{newClient(t, r, "p"), ns.Lock(t.Name())}
	names := p.lock.Names()
	info := func(section, field string) int64 {
		t.Helper()
		text := p.rdb.Info(t.Context(), section).Val()
		_, rest, found := strings.Cut(text, "\r\n"+field)
		digits := rest[:max(0, strings.IndexFunc(rest, func(c rune) bool { return c < '0' || c > '9' }))]
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil && found {
			t.Fatal(err)
		}
		return n
	}
	t.Run("a long number", func(t *testing.T) {
		p.must(p.rdb.Set(t.Context(), names[0], "lock ", 0).Err())
		for range 64 {
			p.must(p.rdb.Append(t.Context(), names[0], strings.Repeat("1", 256<<10)).Err())
		}
		before := info("memory", "used_memory_lua:")
		ours, err := p.RenewLock(t.Context(), p.lock, p.request("p.1"))
		if ours || !protocol.IsFinal(err) {
			t.Errorf("RenewLock = %v, %v", ours, err)
		}
		if left := p.rdb.PTTL(t.Context(), names[0]).Val(); left < 0 || left > lease {
			t.Errorf("the number ends in %v", left)
		}
		p.wantHeld(p.request("p.1")) // no lease is in it
		if grown := info("memory", "used_memory_lua:") - before; grown > 4<<20 {
			t.Errorf("the scripts have read %d bytes", grown)
		}
		p.must(p.rdb.Del(t.Context(), names[0]).Err())
	})
	for _, n := range []int{4000, 20000} {
		t.Run(fmt.Sprint(n, " waiters"), func(t *testing.T) {
			forge := `for i = 1, ARGV[1] do redis.call("ZADD", KEYS[1], i, "x." .. i) end return 1`
			p.must(p.rdb.Eval(t.Context(), forge, names[1:2], n).Err())
			p.must(p.rdb.ConfigResetStat(t.Context()).Err())
			p.wantHeld(p.request("p.1"))
			p.requestLock(p.request("p.2"))
			p.wantReleased("p.1")
			if calls := info("commandstats", "cmdstat_zrem:calls="); calls > 4097 {
				t.Errorf("the scripts have called ZREM %d times", calls)
			}
			p.must(p.rdb.Del(t.Context(), names...).Err())
		})
	}
	t.Run("other types", func(t *testing.T) {
		for i := range names {
			p.must(p.rdb.RPush(t.Context(), names[i], "x").Err())
		}
		_, err := p.AcquireLock(t.Context(), p.lock, p.request("p.1"))
		_, errOfRelease := p.ReleaseLock(t.Context(), p.lock, p.request("p.1"))
		if !protocol.IsFinal(err) || !protocol.IsFinal(errOfRelease) {
			t.Errorf("AcquireLock: %v; ReleaseLock: %v", err, errOfRelease)
		}
		p.must(p.rdb.Del(t.Context(), names[0]).Err())
		p.wantHeld(p.request("p.1"))
		p.wantReleased("p.1")
	})
}
