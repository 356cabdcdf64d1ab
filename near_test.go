package fetchonce_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func withNear(opt *options) {
	opt.Near = fetchonce.Near{Entries: 1000, TTL: time.Hour}
	opt.TTL = time.Hour
}

// source returns where a Load finds a key without a fetch of its own.
func source(t *testing.T, l loader, key string) (string, fetchonce.Source) {
	t.Helper()
	got, err := l.Load(t.Context(), key, func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "fetched", nil })
	if err != nil {
		t.Fatal(err)
	}
	return got.Value, got.Source
}

// warmNear has a process keep a copy of a key that is in Redis.
func warmNear(t *testing.T, r backend, l loader, key, value string) {
	t.Helper()
	r.Until("the process has a copy of "+key, func() bool {
		got, from := source(t, l, key)
		return got == value && from == fetchonce.SourceNear
	})
}

func set(t *testing.T, l loader, key, value string) {
	t.Helper()
	if err := l.Set(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

// Whoever changes a value, and however: the copy goes.
func TestNearCopyGoesWhenItsValueChanges(t *testing.T) {
	name := func(key string) string { return "test:v:{" + key + "}" }
	for what, change := range map[string]func(t *testing.T, r backend, other loader, rdb redis.UniversalClient) error{
		"Delete elsewhere": func(t *testing.T, _ backend, other loader, _ redis.UniversalClient) error {
			return other.Delete(t.Context(), "k")
		},
		"Set elsewhere": func(t *testing.T, _ backend, other loader, _ redis.UniversalClient) error {
			return other.Set(t.Context(), "k", "new")
		},
		"Update elsewhere": func(t *testing.T, _ backend, other loader, _ redis.UniversalClient) error {
			return other.Update(t.Context(), "k", func(context.Context) error { return nil })
		},
		"DEL": func(t *testing.T, _ backend, _ loader, rdb redis.UniversalClient) error {
			return rdb.Del(t.Context(), name("k")).Err()
		},
		"expiry": func(t *testing.T, _ backend, _ loader, rdb redis.UniversalClient) error {
			return rdb.PExpire(t.Context(), name("k"), 30*time.Millisecond).Err()
		},
		"FLUSHALL": func(t *testing.T, _ backend, _ loader, rdb redis.UniversalClient) error {
			if c, ok := rdb.(*redis.ClusterClient); ok {
				return c.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() })
			}
			return rdb.FlushAll(t.Context()).Err()
		},
	} {
		t.Run(what, func(t *testing.T) {
			redistest.EachReal(t, func(t *testing.T, r backend) {
				l, other := newLoader(t, r, withNear), newLoader(t, r)
				for _, key := range []string{"k", "other"} {
					set(t, other, key, "old")
					warmNear(t, r, l, key, "old")
				}
				if err := change(t, r, other, r.Client()); err != nil {
					t.Fatal(err)
				}
				r.Until("the copy is gone", func() bool {
					got, err := l.Peek(t.Context(), "k")
					return err != nil || got.Value == "new"
				})
				if what != "FLUSHALL" {
					if got, from := source(t, l, "other"); from != fetchonce.SourceNear {
						t.Errorf("the copy of another key is gone: it came from %v as %q", from, got)
					}
				}
			})
		})
	}
}

var _ = fmt.Sprint
