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

// BenchmarkOneNodeHangs measures the keys of two healthy masters, first with the
// third well, then with it stopped while 20 callers use its keys. Each iteration is
// one such pair. The figures are medians of the ratio, hung to well: of Gets and of
// locks for each second, and of their 99th percentiles.
func BenchmarkOneNodeHangs(b *testing.B) {
	c := redistest.Cluster(b)
	nodes := c.Nodes()
	rdb := c.Client()
	ill := nodes[1]
	theirs := keysOf(b, rdb, nodes, 20, func(n *redistest.Process) bool { return n == ill })
	ours := keysOf(b, rdb, nodes, 40, func(n *redistest.Process) bool { return n != ill })
	for name, op := range map[string]func(context.Context, string) error{
		"get": getHit(b, rdb, slices.Concat(theirs, ours)), "lock": lockOnce(b, rdb),
	} {
		b.Run(name, func(b *testing.B) {
			var rates, tails []float64
			useFor(b.Context(), time.Second, ours, op) // opens connections
			for b.Loop() {
				well := useFor(b.Context(), time.Second, ours, op)
				hung := whileItHangs(b.Context(), ill, theirs, op, func() usage {
					return useFor(b.Context(), time.Second, ours, op)
				})
				rates = append(rates, float64(hung.done)/float64(well.done))
				tails = append(tails, float64(hung.p99)/float64(well.p99))
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

// whileItHangs measures while a node is stopped and a caller for each key of it waits.
func whileItHangs(ctx context.Context, ill *redistest.Process, keys []string, op func(context.Context, string) error, measure func() usage) usage {
	ctx, stop := context.WithCancel(ctx)
	var callers sync.WaitGroup
	ill.Pause()
	for _, key := range keys {
		callers.Go(func() {
			for ctx.Err() == nil {
				_ = op(ctx, key)
			}
		})
	}
	useFor(ctx, time.Second, keys[:1], op) // by then all that the node can occupy is occupied
	got := measure()
	stop()
	ill.Resume()
	callers.Wait()
	return got
}

// A usage is what the callers of some keys got done.
type usage struct {
	done int64
	p99  time.Duration
}

// useFor has a caller for each key for a while.
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
