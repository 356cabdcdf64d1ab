//go:build linux

package systemtest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
)

// A lockCrew is several processes of this test binary that share a lock and a page of memory. Under
// the lock they write to that page, so the page shows whether two held the lock at once.
type lockCrew struct {
	t       testing.TB
	job     lockJob
	board   *board
	members []*lockMember
}

// A lockJob is the work of a member of a crew.
type lockJob struct {
	URL        string
	Board      string
	Member     int // from 0
	Goroutines int
	Total      int           // acquisitions after which the crew stops; 0: the test stops it
	Lease      time.Duration // 0: the default
	Slots      int
	Hold       time.Duration // 0: release at once
	Once       bool          // each goroutine acquires the lock once
	Stop       bool          // the holder stops its process as by SIGSTOP
}

// A board is the page of memory. All its words are used atomically.
type board struct {
	started, stopped atomic.Uint64
	inside           atomic.Uint64 // the only holder: member * 1000 + goroutine + 1
	overlaps         atomic.Uint64
	fence            atomic.Uint64 // of the last holder
	backward         atomic.Uint64 // fences that were not higher
	done             atomic.Uint64 // acquisitions
	order            atomic.Uint64
	holder           atomic.Uint64      // the holder that stops
	resumed          atomic.Uint64      // after the stop, the holder found its context: 1: ended; 2: not ended
	counts           [128]atomic.Uint64 // acquisitions of each goroutine of all members
	trail            [128]atomic.Uint64 // the holders, in order
}

func openBoard(t testing.TB, path string) *board {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int(unsafe.Sizeof(board{}))
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	page, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(page) })
	return (*board)(unsafe.Pointer(&page[0]))
}

// enter records a new holder, and exit its end.
func (b *board) enter(holder uint64, fence int64) {
	if !b.inside.CompareAndSwap(0, holder) {
		b.overlaps.Add(1)
	}
	if last := b.fence.Swap(uint64(fence)); last >= uint64(fence) {
		b.backward.Add(1)
	}
	if place := b.order.Add(1) - 1; place < uint64(len(b.trail)) {
		b.trail[place].Store(holder)
	}
}

func (b *board) exit(holder uint64) {
	if !b.inside.CompareAndSwap(holder, 0) {
		b.overlaps.Add(1)
	}
}

type lockMember struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

type lockReport struct {
	Waits  []int32 // µs
	Errors []string
}

// startLockCrew starts processes, which begin their job when the test sets board.started.
func startLockCrew(t testing.TB, members int, job lockJob) *lockCrew {
	t.Helper()
	job.Board = filepath.Join(t.TempDir(), "board")
	c := &lockCrew{t: t, job: job, board: openBoard(t, job.Board)}
	for i := range members {
		c.start(i)
	}
	return c
}

func (c *lockCrew) start(i int) *lockMember {
	c.t.Helper()
	job := c.job
	job.Member = i
	text, err := json.Marshal(job)
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLockWorker$", "-test.v")
	cmd.Env = append(os.Environ(), "FETCHONCE_LOCK_WORKER="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	m := &lockMember{cmd: cmd, in: in, out: bufio.NewScanner(out)}
	m.out.Buffer(nil, 64<<20)
	c.members = append(c.members, m)
	c.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	m.await(c.t, "ready")
	return m
}

// await waits for a line that begins with word and returns the rest of it.
func (m *lockMember) await(t testing.TB, word string) string {
	t.Helper()
	for m.out.Scan() {
		var rest string
		if line := m.out.Text(); len(line) >= len(word) && line[:len(word)] == word {
			rest = line[len(word):]
			return rest
		}
	}
	t.Fatalf("a member of the crew ended without printing %q", word)
	return ""
}

func (m *lockMember) signal(sig syscall.Signal) { _ = m.cmd.Process.Signal(sig) }

// finish waits for the members to end and returns what they report.
func (c *lockCrew) finish(members ...*lockMember) []lockReport {
	c.t.Helper()
	if members == nil {
		members = c.members
	}
	var reports []lockReport
	for _, m := range members {
		var r lockReport
		if err := json.Unmarshal([]byte(m.await(c.t, "report")), &r); err != nil {
			c.t.Fatal(err)
		}
		for _, e := range r.Errors {
			c.t.Error(e)
		}
		reports = append(reports, r)
	}
	return reports
}

// TestLockWorker runs a member of a crew.
func TestLockWorker(t *testing.T) {
	text := os.Getenv("FETCHONCE_LOCK_WORKER")
	if text == "" {
		t.Skip("it is a part of other tests")
	}
	var job lockJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		t.Fatal(err)
	}
	opt, err := redis.ParseURL(job.URL)
	if err != nil {
		t.Fatal(err)
	}
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	lk, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{
		Prefix: "crew", Lease: job.Lease, Slots: job.Slots, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	b := openBoard(t, job.Board)
	fmt.Println("ready")
	for b.started.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		report lockReport
	)
	for g := range job.Goroutines {
		wg.Go(func() {
			waits, err := job.work(lk, b, g)
			mu.Lock()
			defer mu.Unlock()
			report.Waits = append(report.Waits, waits...)
			if err != nil {
				report.Errors = append(report.Errors, fmt.Sprintf("member %d: %v", job.Member, err))
			}
		})
	}
	wg.Wait()
	if err := lk.Close(); err != nil {
		report.Errors = append(report.Errors, err.Error())
	}
	line, _ := json.Marshal(report)
	fmt.Printf("report%s\n", line)
}

func (job lockJob) work(lk *fetchonce.Locker, b *board, g int) (waits []int32, err error) {
	holder := uint64(job.Member*1000 + g + 1)
	count := &b.counts[job.Member*job.Goroutines+g]
	for b.stopped.Load() == 0 && (job.Total == 0 || b.done.Load() < uint64(job.Total)) {
		began := time.Now()
		ctx, ls, err := lk.Acquire(context.Background(), "the lock")
		if err != nil {
			return waits, err
		}
		waits = append(waits, int32(time.Since(began).Microseconds()))
		if job.Stop {
			b.holder.Store(holder)
			stopHere()
			if ctx.Err() != nil && errors.Is(context.Cause(ctx), fetchonce.ErrLockLost) {
				b.resumed.Store(1)
			} else {
				b.resumed.Store(2)
			}
			if err := ls.Release(); !errors.Is(err, fetchonce.ErrLockLost) {
				return waits, fmt.Errorf("Release after the stop: %w", err)
			}
			break
		}
		b.enter(holder, ls.Fence())
		count.Add(1)
		b.done.Add(1)
		if job.Hold > 0 {
			select {
			case <-time.After(job.Hold):
			case <-ctx.Done():
			}
		}
		b.exit(holder)
		if err := ls.Release(); err != nil {
			return waits, err
		}
		if job.Once {
			break
		}
	}
	return waits, nil
}

// handOffs are the measurements of a crew.
type handOffs struct {
	took               time.Duration
	perSecond          float64
	fairness           float64 // fewest over most acquisitions of a goroutine
	p50, p99, mean, mx time.Duration
}

// measure starts the crew, waits for its end and returns the measurements.
func (c *lockCrew) measure() (h handOffs) {
	c.t.Helper()
	began := time.Now()
	c.board.started.Store(1)
	var waits []int32
	for _, r := range c.finish() {
		waits = append(waits, r.Waits...)
	}
	h.took = time.Since(began)
	slices.Sort(waits)
	h.perSecond = float64(len(waits)) / h.took.Seconds()
	counts := make([]uint64, 0, 32)
	for i := range len(c.members) * c.job.Goroutines {
		counts = append(counts, c.board.counts[i].Load())
	}
	h.fairness = float64(slices.Min(counts)) / float64(slices.Max(counts))
	var sum time.Duration
	for _, w := range waits {
		sum += time.Duration(w) * time.Microsecond
	}
	at := func(q float64) time.Duration {
		return time.Duration(waits[int(q*float64(len(waits)-1))]) * time.Microsecond
	}
	h.mean, h.p50, h.p99, h.mx = sum/time.Duration(len(waits)), at(0.5), at(0.99), at(1)
	if n := c.board.overlaps.Load(); n > 0 {
		c.t.Errorf("%d times there were two holders", n)
	}
	if n := c.board.backward.Load(); n > 0 {
		c.t.Errorf("%d fences were not higher than the one before", n)
	}
	return h
}

func (h handOffs) String() string {
	return fmt.Sprintf("%.0f acquisitions/s, min/max %.3f, wait mean %v p50 %v p99 %v max %v", h.perSecond, h.fairness, h.mean, h.p50, h.p99, h.mx)
}

// stopHere stops this process at this line. A signal to the whole process may arrive later, in
// another thread.
func stopHere() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = syscall.Tgkill(os.Getpid(), syscall.Gettid(), syscall.SIGSTOP)
}
