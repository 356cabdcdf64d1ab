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

// OnMasters calls do with a client of each master of a cluster, or with the only server's.
func OnMasters(ctx context.Context, rdb redis.UniversalClient, do func(ctx context.Context, node *redis.Client) error) error {
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, do)
	}
	return do(ctx, rdb.(*redis.Client))
}

// KillClients closes the server's connections of a type: "normal" or "pubsub".
func KillClients(ctx context.Context, rdb redis.UniversalClient, kind string) error {
	return OnMasters(ctx, rdb, func(ctx context.Context, node *redis.Client) error {
		return node.Do(ctx, "client", "kill", "type", kind).Err()
	})
}

// FlushAll deletes all keys.
func FlushAll(ctx context.Context, rdb redis.UniversalClient) error {
	return OnMasters(ctx, rdb, func(ctx context.Context, node *redis.Client) error { return node.FlushAll(ctx).Err() })
}

// Keys returns all keys in Redis.
func Keys(t *testing.T, r Backend) []string {
	t.Helper()
	var mu sync.Mutex
	var all []string
	err := OnMasters(t.Context(), r.Client(), func(ctx context.Context, node *redis.Client) error {
		found, err := node.Keys(ctx, "*").Result()
		mu.Lock()
		defer mu.Unlock()
		all = append(all, found...)
		return err
	})
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

// WantNoKeyForEver fails the test if a key in Redis has no TTL.
func WantNoKeyForEver(t *testing.T, r Backend) {
	t.Helper()
	for _, key := range Keys(t, r) {
		if left := r.Client().PTTL(t.Context(), key).Val(); left < 0 {
			t.Errorf("%q has no TTL (PTTL %v)", key, left)
		}
	}
}
