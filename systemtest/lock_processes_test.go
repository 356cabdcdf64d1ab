//go:build linux

package systemtest_test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/redistest"
)

// 4 processes with 8 goroutines each acquire one lock 10,000 times. One at a time holds it, and all
// hold it about as often. BenchmarkHandOff does so 10^5 times.
func TestLockHasOneHolderInAllProcesses(t *testing.T) {
	srv := redistest.Server(t)
	c := startLockCrew(t, 4, lockJob{URL: srv.URL(), Goroutines: 8, Total: 10_000})
	h := c.measure()
	t.Log(h)
	if h.fairness < 0.9 {
		t.Errorf("one goroutine held the lock %.2f times as often as another", h.fairness)
	}
	if h.p99 > 10*h.mean {
		t.Errorf("p99 of the waits is %v, the mean %v", h.p99, h.mean)
	}
}

// crewQueue returns how many members wait in Redis.
func crewQueue(t *testing.T, rdb *redis.Client) int {
	t.Helper()
	n, err := rdb.ZCount(t.Context(), "crew:q:{the lock}", "(0", "+inf").Result()
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not reached within 20s: %s", what)
		}
	}
}

// The holder is killed. The next in the queue acquires the lock when its lease ends.
func TestKilledHolderBlocksForItsLease(t *testing.T) {
	const lease = time.Second
	srv := redistest.Server(t)
	rdb := srv.Client()
	c := startLockCrew(t, 1, lockJob{URL: srv.URL(), Goroutines: 1, Total: 1, Lease: lease, Hold: time.Hour})
	c.board.started.Store(1)
	until(t, "the member has the lock", func() bool { return c.board.inside.Load() != 0 })
	c.job.Hold, c.job.Total, c.job.Once = 0, 0, true
	for i := range 3 {
		c.start(1 + i)
	}
	until(t, "the others wait", func() bool { return crewQueue(t, rdb) == 3 })

	killed := time.Now()
	c.members[0].signal(syscall.SIGKILL)
	_ = c.members[0].cmd.Wait()
	c.board.inside.Store(0) // instead of the killed holder
	until(t, "the next process has the lock", func() bool { return c.board.done.Load() > 1 })
	took := time.Since(killed)
	t.Logf("the next process had the lock after %v", took)
	if took > lease+250*time.Millisecond {
		t.Errorf("the next process had the lock %v after the holder was killed", took)
	}
	c.finish(c.members[1:]...)
	if n := c.board.overlaps.Load() + c.board.backward.Load(); n > 0 {
		t.Errorf("%d times there were two holders or a lower fence", n)
	}
}

// A process is stopped for longer than its lease. When it continues, its context has ended. Its
// Release does not end the next holder's lease.
func TestStoppedHolderLosesItsLock(t *testing.T) {
	const lease = 500 * time.Millisecond
	srv := redistest.Server(t)
	c := startLockCrew(t, 1, lockJob{URL: srv.URL(), Goroutines: 1, Lease: lease, Stop: true})
	c.board.started.Store(1)
	until(t, "the member has stopped", func() bool { return c.board.holder.Load() != 0 })
	c.job.Stop = false
	c.job.Total = 1
	c.job.Hold = time.Second
	next := c.start(1)
	until(t, "the next process has the lock", func() bool { return c.board.inside.Load() != 0 })
	c.members[0].signal(syscall.SIGCONT)
	until(t, "the stopped process continues", func() bool { return c.board.resumed.Load() != 0 })
	if c.board.resumed.Load() != 1 {
		t.Error("the context of the stopped process had not ended when the process continued")
	}
	c.finish(c.members[0], next) // the next process's Release succeeds
	if n := c.board.overlaps.Load() + c.board.backward.Load(); n > 0 {
		t.Errorf("%d times there were two holders or a lower fence", n)
	}
}

// 5 processes with 10 waiters each, and 3 more that are killed while they wait.
func TestKilledWaitersDoNotBlockTheQueue(t *testing.T) {
	const lease = time.Second
	srv := redistest.Server(t)
	rdb := srv.Client()
	c := startLockCrew(t, 1, lockJob{URL: srv.URL(), Goroutines: 1, Total: 1, Lease: lease, Hold: 1500 * time.Millisecond})
	c.board.started.Store(1)
	until(t, "the first has the lock", func() bool { return c.board.inside.Load() != 0 })
	c.job.Hold, c.job.Total, c.job.Once, c.job.Goroutines = 0, 0, true, 10
	var alive, dead []*lockMember
	for i := range 8 {
		m := c.start(1 + i)
		until(t, "it is in the queue", func() bool { return crewQueue(t, rdb) == i+1 })
		if i%3 == 1 { // the 2nd, the 5th, the 8th
			dead = append(dead, m)
		} else {
			alive = append(alive, m)
		}
	}
	for _, m := range dead {
		m.signal(syscall.SIGKILL)
		_ = m.cmd.Wait()
	}
	until(t, "the first has left", func() bool { return c.board.inside.Load() == 0 })
	freed := time.Now()
	until(t, "all have held the lock", func() bool { return c.board.done.Load() == 51 })
	took := time.Since(freed)
	t.Logf("all had held the lock after %v", took)
	if took > lease+time.Second {
		t.Errorf("the last process had the lock after %v", took)
	}
	c.finish(append(alive, c.members[0])...)

	// The processes, in the order in which they first held the lock.
	var order []uint64
	for i := range c.board.order.Load() {
		if member := c.board.trail[i].Load() / 1000; !slices.Contains(order, member) {
			order = append(order, member)
		}
	}
	want := []uint64{0, 1, 3, 4, 6, 7}
	if !slices.Equal(order, want) {
		t.Errorf("the processes had the lock in the order %v, want %v", order, want)
	}
	if n := c.board.overlaps.Load() + c.board.backward.Load(); n > 0 {
		t.Errorf("%d times there were two holders or a lower fence", n)
	}
}

// BenchmarkHandOff measures 10^5 acquisitions by 4 processes with 8 goroutines each, and by 4
// processes with one goroutine each, where no local hand-off is possible.
func BenchmarkHandOff(b *testing.B) {
	srv := redistest.Server(b)
	for _, goroutines := range []int{8, 1} {
		b.Run(fmt.Sprintf("4x%d", goroutines), func(b *testing.B) {
			for b.Loop() {
				c := startLockCrew(b, 4, lockJob{URL: srv.URL(), Goroutines: goroutines, Total: 100_000})
				h := c.measure()
				b.Log(h)
				b.ReportMetric(h.perSecond, "handoffs/s")
				b.ReportMetric(h.fairness, "min/max")
				b.ReportMetric(float64(h.p50.Microseconds()), "p50-µs")
				b.ReportMetric(float64(h.p99.Microseconds()), "p99-µs")
			}
		})
	}
}
