package testkit

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/redistest"
)

var (
	adminsMu sync.Mutex
	admins   = map[Backend]redis.UniversalClient{}
)

// Admin returns a client that belongs to no process of the test.
func Admin(r Backend) redis.UniversalClient {
	adminsMu.Lock()
	defer adminsMu.Unlock()
	if admins[r] == nil {
		admins[r] = r.Client()
	}
	return admins[r]
}

// WarmScripts makes all nodes of Redis load the scripts.
func WarmScripts(t *testing.T, r Backend, l Loader) {
	t.Helper()
	for i := range 12 {
		key := strings.Repeat("w", i+1)
		_, err := l.Get(t.Context(), key, func(context.Context, string) (string, error) { return "v", nil })
		if err := errors.Join(err, l.Set(t.Context(), key, "v"), l.Delete(t.Context(), key)); err != nil {
			t.Fatal(err)
		}
	}
}

// Scripts returns how many scripts a client has sent.
func Scripts(rdb redis.UniversalClient) int {
	n := 0
	for _, name := range redistest.WireOf(rdb).Commands() {
		if name == "EVALSHA" || name == "EVAL" {
			n++
		}
	}
	return n
}

// Keys returns all keys in Redis.
func Keys(t *testing.T, r Backend) []string {
	t.Helper()
	var mu sync.Mutex
	var all []string
	list := func(ctx context.Context, c redis.Cmdable) error {
		found, err := c.Keys(ctx, "*").Result()
		mu.Lock()
		defer mu.Unlock()
		all = append(all, found...)
		return err
	}
	rdb := r.Client()
	var err error
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error { return list(ctx, c) })
	} else {
		err = list(t.Context(), rdb)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// AwaitWaiters waits until n processes are registered as waiters of a key.
func AwaitWaiters(t *testing.T, r Backend, key string, n int) {
	t.Helper()
	rdb := r.Client()
	r.Until("processes wait in Redis", func() bool {
		fields := rdb.HKeys(t.Context(), "test:m:{"+key+"}").Val()
		waiting := 0
		for _, field := range fields {
			if strings.HasPrefix(field, "w") {
				waiting++
			}
		}
		return waiting == n
	})
}

// Gets returns how many reads of values all clients have sent.
func Gets(r Backend) int {
	return strings.Count(strings.Join(r.Wire().Commands(), " "), "GETRANGE")
}

// WantNoKeyForEver fails the test if a key in Redis has no end.
func WantNoKeyForEver(t *testing.T, r Backend) {
	t.Helper()
	for _, key := range Keys(t, r) {
		if left := r.Client().PTTL(t.Context(), key).Val(); left < 0 {
			t.Errorf("%q has no end (%v)", key, left)
		}
	}
}
