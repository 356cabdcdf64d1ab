package fetchonce_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A replyMeter records how many bytes the replies of each pipeline have.
type replyMeter struct {
	mu        sync.Mutex
	pipelines []int
}

func (m *replyMeter) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (m *replyMeter) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (m *replyMeter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		total := 0
		for _, cmd := range cmds {
			if cmd, ok := cmd.(*redis.StringCmd); ok {
				total += len(cmd.Val())
			}
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.pipelines = append(m.pipelines, total)
		return err
	}
}

// A GetMany reads at most 32 MiB at once, whatever the number of large values. Small values are
// read in one round trip.
//
//test:long
func TestGetManyBoundsWhatItReadsAtOnce(t *testing.T) {
	const most = 32<<20 + 1<<20
	inBubble(t, func(t *testing.T, r backend) {
		keys := numbered(0, 100)
		writer := newLoader(t, r)
		for _, key := range keys {
			testkit.Set(t, writer, key, strings.Repeat(key[len(key)-1:], 400<<10))
		}
		meter := &replyMeter{}
		rdb := r.Client()
		testkit.AddHook(rdb, meter)
		l := testkit.LoaderOf(t, rdb)
		b := &bulk{}
		got, err := l.GetMany(t.Context(), keys, b.fetch)
		if _, fetched := b.counts(); err != nil || len(got) != len(keys) || len(fetched) != 0 {
			t.Errorf("GetMany = %d values, %v, and %d were fetched; want %d that were stored", len(got), err, len(fetched), len(keys))
		}
		for key, v := range got {
			if v != strings.Repeat(key[len(key)-1:], 400<<10) {
				t.Errorf("GetMany: the value of %q has %d bytes of another", key, len(v))
			}
		}
		for _, n := range meter.pipelines {
			if n > most {
				t.Errorf("%d bytes were read at once; want at most %d", n, most)
			}
		}

		small := numbered(1000, 1100)
		for _, key := range small {
			testkit.Set(t, writer, key, "v")
		}
		meter.pipelines = nil
		if got, err := l.GetMany(t.Context(), small, b.fetch); err != nil || len(got) != len(small) {
			t.Errorf("GetMany = %d values, %v; want %d", len(got), err, len(small))
		}
		if len(meter.pipelines) != 1 {
			t.Errorf("small values took %d round trips; want 1", len(meter.pipelines))
		}
	})
}

// In a GetMany, a value that is larger than MaxBytes is a miss.
//
//test:long
func TestGetManyOverTooLargeValues(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		keys := numbered(0, 2500) // more than are read at once
		writer := newLoader(t, r)
		for _, key := range keys {
			testkit.Set(t, writer, key, strings.Repeat("v", 20<<10))
		}
		l := newLoader(t, r, func(opt *options) { opt.MaxBytes = 17 << 10 })
		b := &bulk{}
		got, err := l.GetMany(t.Context(), keys, b.fetch)
		if _, fetched := b.counts(); err != nil || len(got) != len(keys) || len(fetched) != len(keys) {
			t.Errorf("GetMany = %d values, %v, and %d were fetched; want all of %d", len(got), err, len(fetched), len(keys))
		}
	})
}
