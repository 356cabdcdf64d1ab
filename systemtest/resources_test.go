package systemtest_test

import (
	"context"
	"flag"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// The sizes of the tests below. "go test ./systemtest -run 'Callers|Cycles' -callers 100000 -cycles 10000"
// has the sizes of docs/scale.md. The defaults take seconds without -race.
var (
	manyCallers = flag.Int("callers", 20_000, "callers at once of one key")
	manyCycles  = flag.Int("cycles", 1000, "locks acquired and released; a tenth of that, Loaders made and closed")
)

// 20,000 callers in one process wait for one key. The value is fetched once, and each caller costs
// little more memory than its goroutine.
func TestManyCallersOfOneKeyCostLittleMemory(t *testing.T) {
	const most = 8 << 10 // one more frame in Get may double every stack to more than this
	l := testkit.NewLoader(t, redistest.Server(t).Backend(), func(opt *options) { opt.RedisTimeout = time.Minute })
	o := testkit.NewOrigin(t)
	var running sync.WaitGroup
	get := func() {
		running.Go(func() {
			if v, err := l.Get(t.Context(), "k", o.Fetch); v != "v" || err != nil {
				t.Errorf("Get = %q, %v", v, err)
			}
		})
	}
	get() // allocates what is made once
	c := o.Next()
	before, others := inUse(), waiting()
	for range *manyCallers {
		get()
	}
	for waiting() < others+*manyCallers {
		time.Sleep(time.Millisecond)
	}
	each := int(inUse()-before) / *manyCallers
	c.Returns("v")
	running.Wait()
	o.Want(1)
	t.Logf("%d callers, %d bytes each", *manyCallers, each)
	if !raceDetector() && each > most {
		t.Errorf("each of %d callers takes %d bytes, want at most %d", *manyCallers, each, most)
	}
}

// inUse returns the bytes of the heap that are in use, and of the stacks.
func inUse() uint64 {
	runtime.GC()
	runtime.GC() // the first GC leaves what pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// waiting returns how many goroutines are blocked.
func waiting() int {
	sample := []metrics.Sample{{Name: "/sched/goroutines/waiting:goroutines"}}
	metrics.Read(sample)
	return int(sample[0].Value.Uint64())
}

func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// Locks are acquired and released, and Loaders are made, used and closed, over one client that a
// Loader and a Locker keep using. No goroutine, connection or subscription is left.
func TestCyclesOfUseLeaveNothing(t *testing.T) {
	server := redistest.Server(t)
	rdb := server.Client()
	lasting := testkit.LoaderOf(t, rdb)
	locks, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "test", RedisTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer locks.Close()
	cycle := func(i int) {
		err := locks.Do(t.Context(), strconv.Itoa(i%10), func(context.Context) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if i%10 > 0 {
			return
		}
		name := strconv.Itoa(i)
		l := testkit.LoaderOf(t, rdb, func(opt *options) { opt.Prefix, opt.Near.Entries = "test:"+name, 10 })
		fetch := func(context.Context, string) (string, error) { return name, nil }
		if v, err := l.Get(t.Context(), "k", fetch); v != name || err != nil {
			t.Fatalf("Get = %q, %v", v, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := lasting.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "v", nil }); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		cycle(i)
	}
	goroutines, connections := runtime.NumGoroutine(), len(clientList(t, server))
	for i := range *manyCycles {
		cycle(i)
	}
	r := server.Backend()
	r.Until("no goroutine is left behind", func() bool { return runtime.NumGoroutine() <= goroutines })
	// The client's pool may have grown by a few connections for concurrent commands. One for each
	// Loader would be many more.
	const pooled = 8
	r.Until("no connection is left behind", func() bool { return len(clientList(t, server)) <= connections+pooled })
	r.Until("no subscription is left behind", func() bool {
		for _, c := range clientList(t, server) {
			if strings.Contains(c, " sub=") && !strings.Contains(c, " sub=0 ") && !strings.Contains(c, " sub=1 ") {
				return false
			}
		}
		return true
	})
}

func clientList(t *testing.T, server *redistest.Process) []string {
	t.Helper()
	admin := redis.NewClient(&redis.Options{Network: "unix", Addr: server.Addr(), DisableIdentity: true})
	defer admin.Close()
	list, err := admin.ClientList(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(list), "\n")
}

// A process with a hundred waiting callers sends about one recheck per second, and nothing else.
func TestWaitersSendOnlyRechecks(t *testing.T) {
	for name, wait := range map[string]func(t *testing.T, r backend) (waiting *redis.Client, end func()){
		"for a value": func(t *testing.T, r backend) (*redis.Client, func()) {
			long := func(opt *options) { opt.FetchTimeout = fetchonce.Off }
			rdb := r.Client()
			holder, waiter, o := testkit.NewLoader(t, r, long), testkit.LoaderOf(t, rdb, long), testkit.NewOrigin(t)
			testkit.Get(t, t.Context(), holder, "k", o)
			c := o.Next()
			for range 100 {
				testkit.Get(t, t.Context(), waiter, "k", o)
			}
			return rdb.(*redis.Client), func() { c.Returns("v") }
		},
		"for a lock": func(t *testing.T, r backend) (*redis.Client, func()) {
			rdb := r.Client()
			holder, waiter := testkit.NewLocker(t, r), testkit.LockerOf(t, rdb)
			_, ls, err := holder.Acquire(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			for range 100 {
				go func() { _ = waiter.Do(t.Context(), "k", func(context.Context) error { return nil }) }()
			}
			return rdb.(*redis.Client), func() { _ = ls.Release() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := redistest.Bubble(t).Backend()
				rdb, end := wait(t, r)
				time.Sleep(time.Second)
				wire := redistest.WireOf(rdb)
				wire.Reset()
				time.Sleep(10 * time.Minute)
				if n := len(wire.Commands()); n < 60 || n > 900 {
					t.Errorf("%d commands in ten minutes: %v ...", n, wire.Commands()[:min(n, 10)])
				}
				end()
				synctest.Wait()
			})
		})
	}
}
