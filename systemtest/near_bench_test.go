package systemtest_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// nearKeys returns the keys that the benchmark reads, which all have near entries.
func nearKeys() []string {
	keys := make([]string, 1024)
	for i := range keys {
		keys[i] = "user:" + strconv.Itoa(100_000+i)
	}
	return keys
}

// BenchmarkNearHit compares a near hit with a read of a bare otter cache. Its budget is no
// allocation and twice the time.
func BenchmarkNearHit(b *testing.B) {
	keys := nearKeys()
	rdb := redistest.Server(b).Client()
	l, err := fetchonce.New(rdb, options{Prefix: "test", Near: fetchonce.Near{Entries: 10_000}})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	bare := otter.Must(&otter.Options[string, string]{MaximumSize: 10_000})
	ctx := b.Context()
	fetch := func(context.Context, string) (string, error) { return "value", nil }
	for _, key := range keys {
		bare.Set(key, "value")
		for deadline := time.Now().Add(10 * time.Second); ; {
			got, err := l.Load(ctx, key, func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "value", nil })
			if err != nil || time.Now().After(deadline) {
				b.Fatal("no near entry", err)
			}
			if got.Source == fetchonce.SourceNear {
				break
			}
		}
	}
	for _, goroutines := range []int{8, 64} {
		run := func(name string, read func(key string) bool) {
			b.Run(fmt.Sprintf("%s/goroutines=%d", name, goroutines), func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(max(goroutines/2, 1)) // times GOMAXPROCS
				b.RunParallel(func(pb *testing.PB) {
					for i := 0; pb.Next(); i++ {
						if !read(keys[i%len(keys)]) {
							b.Error("a miss")
						}
					}
				})
			})
		}
		run("otter", func(key string) bool {
			v, ok := bare.GetIfPresent(key)
			return ok && v == "value"
		})
		run("near", func(key string) bool {
			v, err := l.Get(ctx, key, fetch)
			return err == nil && v == "value"
		})
	}
}
