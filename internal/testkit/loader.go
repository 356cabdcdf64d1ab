// Package testkit has what the tests of the root package and those of systemtest share: Loaders
// and Lockers with options for tests, fetches that wait for the test, and checks of what Redis
// stores.
package testkit

import (
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

type (
	// A Backend is the Redis of a test.
	Backend = redistest.Backend
	// Options are those of most tests.
	Options = fetchonce.Options[string]
	// A Loader is that of most tests.
	Loader = *fetchonce.Loader[string]
)

// NewLoader returns a Loader over a new client, as a new process has it.
func NewLoader(t *testing.T, r Backend, change ...func(*Options)) Loader {
	t.Helper()
	return LoaderOf(t, r.Client(), change...)
}

// Policies runs a test with each policy, on each kind of Redis.
func Policies(t *testing.T, test func(t *testing.T, r Backend, policy fetchonce.Policy)) {
	t.Helper()
	for name, policy := range map[string]fetchonce.Policy{"FailOpen": fetchonce.FailOpen, "FailClosed": fetchonce.FailClosed} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r Backend) { test(t, r, policy) })
		})
	}
}

// WithPolicy sets what a Loader does without Redis, and a RedisTimeout of 200 ms.
func WithPolicy(policy fetchonce.Policy) func(*Options) {
	return func(opt *Options) { opt.OnRedisDown, opt.RedisTimeout = policy, 200*time.Millisecond }
}

// LoaderOf returns a Loader over a client. Its log is discarded. Its RedisTimeout is 10 s: the
// machine may be busy with other tests.
func LoaderOf(t *testing.T, rdb redis.UniversalClient, change ...func(*Options)) Loader {
	t.Helper()
	opt := Options{Prefix: "test", RedisTimeout: 10 * time.Second, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&opt)
	}
	l, err := fetchonce.New(rdb, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// ShortLease makes leases short enough for a test to wait for their end.
func ShortLease(r Backend) func(*Options) {
	return func(opt *Options) { opt.Lease = LeaseLength(r) }
}

// LeaseLength returns the Lease of ShortLease.
func LeaseLength(r Backend) time.Duration {
	if r.Fake() {
		return 5 * time.Second
	}
	return time.Second // a busy machine renews it in time
}

// WantKept fails the test unless Redis stores this value for "k".
func WantKept(t *testing.T, l Loader, value string) {
	t.Helper()
	if got, err := l.Peek(t.Context(), "k"); got.Value != value || err != nil {
		t.Errorf("%q, %v is stored; want %q", got.Value, err, value)
	}
}

// Set stores a value, or ends the test.
func Set(t *testing.T, l Loader, key, value string) {
	t.Helper()
	if err := l.Set(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}
