package systemtest_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// BenchmarkOneNodeHangs measures calls for keys of two healthy masters, first while the third runs
// and then while it is stopped and 20 callers use its keys. Each iteration is one such pair. The
// figures are medians of ratios, hung to running: of calls per second and of their p99.
func BenchmarkOneNodeHangs(b *testing.B) {
	c := redistest.Cluster(b)
	nodes := c.Nodes()
	rdb := c.Client()
	stopped := nodes[1]
	onStopped := keysOf(b, rdb, nodes, 20, func(n *redistest.Process) bool { return n == stopped })
	onOthers := keysOf(b, rdb, nodes, 40, func(n *redistest.Process) bool { return n != stopped })
	for name, op := range map[string]func(context.Context, string) error{
		"get": getHit(b, rdb, slices.Concat(onStopped, onOthers)), "lock": lockOnce(b, rdb),
	} {
		b.Run(name, func(b *testing.B) {
			var rates, tails []float64
			useFor(b.Context(), time.Second, onOthers, op) // opens connections
			for b.Loop() {
				running := useFor(b.Context(), time.Second, onOthers, op)
				hung := whileItHangs(b.Context(), stopped, onStopped, op, func() usage {
					return useFor(b.Context(), time.Second, onOthers, op)
				})
				rates = append(rates, float64(hung.done)/float64(running.done))
				tails = append(tails, float64(hung.p99)/float64(running.p99))
			}
			b.ReportMetric(median(rates), "rate-ratio")
			b.ReportMetric(median(tails), "p99-ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func getHit(b *testing.B, rdb redis.UniversalClient, keys []string) func(context.Context, string) error {
	b.Helper()
	l, err := fetchonce.New(rdb, options{Prefix: "test", OnRedisDown: fetchonce.FailClosed})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	for _, key := range keys {
		if err := l.Set(b.Context(), key, "v"); err != nil {
			b.Fatal(err)
		}
	}
	return func(ctx context.Context, key string) error {
		_, err := l.Get(ctx, key, func(context.Context, string) (string, error) { return "v", nil })
		return err
	}
}

func lockOnce(b *testing.B, rdb redis.UniversalClient) func(context.Context, string) error {
	b.Helper()
	lk, err := fetchonce.NewLocker(rdb, lockOptions{Prefix: "test"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = lk.Close() })
	return func(ctx context.Context, name string) error {
		return lk.Do(ctx, name, func(context.Context) error { return nil })
	}
}

// whileItHangs measures while a node is stopped and one caller for each of its keys waits.
func whileItHangs(ctx context.Context, stopped *redistest.Process, keys []string, op func(context.Context, string) error, measure func() usage) usage {
	ctx, stop := context.WithCancel(ctx)
	var callers sync.WaitGroup
	stopped.Pause()
	for _, key := range keys {
		callers.Go(func() {
			for ctx.Err() == nil {
				_ = op(ctx, key)
			}
		})
	}
	useFor(ctx, time.Second, keys[:1], op) // until the callers of the stopped node hold all that they can hold
	got := measure()
	stop()
	stopped.Resume()
	callers.Wait()
	return got
}

// A usage is the number of successful calls and the p99 of their durations.
type usage struct {
	done int64
	p99  time.Duration
}

// useFor runs one caller for each key for a duration.
func useFor(ctx context.Context, d time.Duration, keys []string, op func(context.Context, string) error) usage {
	var done atomic.Int64
	var callers sync.WaitGroup
	took := make([][]time.Duration, len(keys))
	end := time.Now().Add(d)
	for i, key := range keys {
		callers.Go(func() {
			for began := time.Now(); began.Before(end); began = time.Now() {
				if op(ctx, key) == nil {
					done.Add(1)
				}
				took[i] = append(took[i], time.Since(began))
			}
		})
	}
	callers.Wait()
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	return usage{done.Load(), all[len(all)*99/100]}
}
