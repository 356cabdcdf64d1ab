package systemtest_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// A record is what the benchmarks cache: about 200 bytes of msgpack.
type record struct {
	ID            int64
	Name, Email   string
	Tags          []string
	Score         float64
	Created, Seen int64
	Note          string
}

func newRecord(i int) record {
	return record{
		ID: int64(i), Name: "Ada Lovelace", Email: "ada@example.org", Tags: []string{"reader", "writer"}, Score: 0.5,
		Created: 1_700_000_000, Seen: 1_800_000_000, Note: strings.Repeat("n", 60),
	}
}

// A contender is one way to do an operation. n counts the operations of a goroutine.
type contender struct {
	name string
	do   func(ctx context.Context, goroutine, n int) error
}

// roundTime is how long a contender is measured in one round.
const roundTime = 40 * time.Millisecond

// contest measures contenders alternately, so that other load of the machine affects all of them.
// Each iteration of b is a round that measures every contender once. It reports three medians for
// each contender: the time per operation, the ratio of that time to the first contender's in the
// same round, and the allocations per operation.
func contest(b *testing.B, goroutines int, contenders ...contender) {
	b.Helper()
	times := make([][]float64, len(contenders))
	ratios := make([][]float64, len(contenders))
	allocs := make([][]float64, len(contenders))
	for _, c := range contenders {
		measure(b, goroutines, c) // warms up
	}
	for round := 0; b.Loop(); round++ {
		took := make([]float64, len(contenders))
		for i := range contenders {
			i = (i + round) % len(contenders)
			perOp, mallocs := measure(b, goroutines, contenders[i])
			took[i] = perOp
			allocs[i] = append(allocs[i], mallocs)
		}
		for i := range contenders {
			times[i] = append(times[i], took[i])
			ratios[i] = append(ratios[i], took[i]/took[0])
		}
	}
	for i, c := range contenders {
		b.ReportMetric(median(times[i])/1e3, c.name+"-µs")
		b.ReportMetric(median(ratios[i]), c.name+"-x")
		b.ReportMetric(median(allocs[i]), c.name+"-allocs")
	}
	b.ReportMetric(0, "ns/op") // hides the time of a round
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// measure returns the wall time in ns and the allocations per operation, while goroutines do
// operations for roundTime.
func measure(b *testing.B, goroutines int, c contender) (perOp, mallocs float64) {
	b.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var (
		group sync.WaitGroup
		ops   atomic.Int64
		over  atomic.Bool
	)
	timer := time.AfterFunc(roundTime, func() { over.Store(true) })
	defer timer.Stop()
	start := time.Now()
	for g := range goroutines {
		group.Go(func() {
			ctx, cancel := context.WithCancel(b.Context()) // one per caller, like an HTTP request's
			defer cancel()
			n := 0
			for ; !over.Load(); n++ {
				if err := c.do(ctx, g, n); err != nil {
					b.Errorf("%s: %v", c.name, err)
					return
				}
			}
			ops.Add(int64(n))
		})
	}
	group.Wait()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	return float64(took) / float64(ops.Load()), float64(after.Mallocs-before.Mallocs) / float64(ops.Load())
}

// benchClient returns a client with the defaults of go-redis and without a Wire.
func benchClient(b *testing.B, s *redistest.Process) *redis.Client {
	b.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr()})
	b.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func benchLoader(b *testing.B, rdb redis.UniversalClient) *fetchonce.Loader[record] {
	b.Helper()
	l, err := fetchonce.New(rdb, fetchonce.Options[record]{Prefix: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	return l
}

// hits returns three ways to read a value from Redis: GET and decode, the same through go-redis'
// AutoPipeline, and Loader.Get.
func hits(b *testing.B) []contender {
	b.Helper()
	s := redistest.TCPServer(b)
	rdb := benchClient(b, s)
	auto, err := benchClient(b, s).AutoPipeline()
	if err != nil {
		b.Fatal(err)
	}
	l := benchLoader(b, benchClient(b, s))
	keys := make([]string, 1024)
	for i := range keys {
		keys[i] = "user:" + strconv.Itoa(i)
		encoded, err := msgpack.Marshal(newRecord(i))
		if err != nil {
			b.Fatal(err)
		}
		if err := rdb.Set(b.Context(), keys[i], encoded, 0).Err(); err != nil {
			b.Fatal(err)
		}
		if err := l.Set(b.Context(), keys[i], newRecord(i)); err != nil {
			b.Fatal(err)
		}
	}
	bare := func(get func(ctx context.Context, key string) *redis.StringCmd) func(ctx context.Context, goroutine, n int) error {
		return func(ctx context.Context, goroutine, n int) error {
			reply, err := get(ctx, keys[(goroutine*31+n)%len(keys)]).Bytes()
			if err != nil {
				return err
			}
			var r record
			return msgpack.Unmarshal(reply, &r)
		}
	}
	fetch := func(_ context.Context, key string) (record, error) { return record{}, fmt.Errorf("fetched %s", key) }
	return []contender{
		{"bare", bare(rdb.Get)},
		{"auto", bare(auto.Get)},
		{"get", func(ctx context.Context, goroutine, n int) error {
			_, err := l.Get(ctx, keys[(goroutine*31+n)%len(keys)], fetch)
			return err
		}},
	}
}

// BenchmarkRemoteHit compares Get of a value that is in Redis with code without fetchonce: bare is
// go-redis' GET and msgpack, auto the same through AutoPipeline. Run it with -benchtime=20x for
// twenty rounds.
func BenchmarkRemoteHit(b *testing.B) {
	all := hits(b)
	for _, goroutines := range []int{1, 8, 16, 64, 256} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) { contest(b, goroutines, all...) })
	}
}

// BenchmarkRemoteHitPaused reports the durations of Gets by 16 callers that pause for 2 ms before
// each. It shows the cost of waiting for more callers in order to share a round trip.
func BenchmarkRemoteHitPaused(b *testing.B) {
	for _, c := range hits(b) {
		b.Run(c.name, func(b *testing.B) {
			var (
				mu    sync.Mutex
				group sync.WaitGroup
				all   []float64
			)
			for g := range 16 {
				group.Go(func() {
					var took []float64
					for n := range b.N {
						time.Sleep(2 * time.Millisecond)
						start := time.Now()
						if err := c.do(b.Context(), g, n); err != nil {
							b.Error(err)
							return
						}
						took = append(took, float64(time.Since(start))/1e3)
					}
					mu.Lock()
					defer mu.Unlock()
					all = append(all, took...)
				})
			}
			group.Wait()
			slices.Sort(all)
			b.ReportMetric(all[len(all)/2], "p50-µs")
			b.ReportMetric(all[len(all)*99/100], "p99-µs")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkMiss compares a Get that misses, whose fetch takes no time, with a bare GET and SET,
// which takes two round trips and has no lock.
func BenchmarkMiss(b *testing.B) {
	s := redistest.TCPServer(b)
	rdb, l := benchClient(b, s), benchLoader(b, benchClient(b, s))
	var keys atomic.Int64
	value := newRecord(1)
	bare := contender{"bare", func(ctx context.Context, _, _ int) error {
		key := "{" + strconv.FormatInt(keys.Add(1), 10) + "}"
		if err := rdb.Get(ctx, key).Err(); err != redis.Nil {
			return fmt.Errorf("GET of nothing: %w", err)
		}
		encoded, err := msgpack.Marshal(value)
		if err != nil {
			return err
		}
		return rdb.Set(ctx, key, encoded, 5*time.Minute).Err()
	}}
	get := contender{"get", func(ctx context.Context, _, _ int) error {
		_, err := l.Get(ctx, strconv.FormatInt(keys.Add(1), 10), func(context.Context, string) (record, error) { return value, nil })
		return err
	}}
	for _, goroutines := range []int{1, 64} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) { contest(b, goroutines, bare, get) })
	}
}

// BenchmarkLock compares Do of an uncontended name with the simplest lock in Redis: SET NX PX, and
// a script that deletes the key.
func BenchmarkLock(b *testing.B) {
	s := redistest.TCPServer(b)
	rdb := benchClient(b, s)
	lk, err := fetchonce.NewLocker(benchClient(b, s), fetchonce.LockOptions{Prefix: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = lk.Close() })
	var names atomic.Int64
	release := redis.NewScript(`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`)
	bare := contender{"bare", func(ctx context.Context, _, _ int) error {
		name := strconv.FormatInt(names.Add(1), 10)
		ok, err := rdb.SetNX(ctx, name, name, 5*time.Second).Result()
		if err != nil || !ok {
			return fmt.Errorf("SET NX: %v, %w", ok, err)
		}
		return release.Run(ctx, rdb, []string{name}, name).Err()
	}}
	do := contender{"do", func(ctx context.Context, _, _ int) error {
		return lk.Do(ctx, strconv.FormatInt(names.Add(1), 10), func(context.Context) error { return nil })
	}}
	for _, goroutines := range []int{1, 10, 64} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) { contest(b, goroutines, bare, do) })
	}
}
