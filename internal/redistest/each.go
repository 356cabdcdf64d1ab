package redistest

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Backend is a Redis of any kind that belongs to one test. If it was created in a
// bubble, all its methods may be called in that bubble.
type Backend interface {
	// Client returns a new client with the options of [Redis.Client] or
	// [Masters.Client]. Each client stands for one process.
	Client() redis.UniversalClient

	// Plain returns a new client with go-redis' own defaults.
	Plain() redis.UniversalClient

	// Wire returns the Wire of all clients.
	Wire() *Wire

	// Pause makes the Redis, or all nodes of a cluster, hang until Resume is called.
	// Kill ends the Redis and deletes its data. Restart starts it again without data,
	// at the same address.
	Pause()
	Resume()
	Kill()
	Restart()

	// Fake reports whether the Redis uses a bubble's clock. Waiting then takes no
	// real time.
	Fake() bool

	// Settle calls [synctest.Wait] in a bubble: it returns when every other goroutine
	// is blocked. One goroutine at a time may call it. With a real server it does
	// nothing: wait on a signal or with Until.
	Settle()

	// Until calls ok every millisecond until it returns true. After 20 seconds (of
	// the bubble's clock, in a bubble) the test fails and reports what Until waited
	// for. Only the test's own goroutine may call it.
	Until(what string, ok func() bool)
}

// Each runs a test on each kind of Redis, in consecutive subtests: "miniredis", in a
// bubble; "server"; and "cluster", which may be one that an earlier test has used.
// Without a redis-server, the last two are skipped as by [Server].
//
// A test in a bubble may not call t.Run or t.Parallel.
func Each(t *testing.T, test func(t *testing.T, r Backend)) {
	t.Helper()
	t.Run("miniredis", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, bubble{Bubble(t)}) })
	})
	EachReal(t, test)
}

// EachReal is like [Each], without the subtest in a bubble.
func EachReal(t *testing.T, test func(t *testing.T, r Backend)) {
	t.Helper()
	t.Run("server", func(t *testing.T) { test(t, single{Server(t)}) })
	t.Run("cluster", func(t *testing.T) { test(t, cluster{Cluster(t)}) })
}

// Backend returns r as a Backend.
func (r Redis) Backend() Backend { return bubble{r} }

type bubble struct{ Redis }

func (b bubble) Client() redis.UniversalClient { return b.Redis.Client() }
func (b bubble) Plain() redis.UniversalClient  { return b.Redis.Plain() }
func (b bubble) Fake() bool                    { return true }
func (b bubble) Settle()                       { synctest.Wait() }

func (b bubble) Until(what string, ok func() bool) {
	b.t.Helper()
	until(b.t, what, ok)
}

// Backend returns p as a Backend.
func (p *Process) Backend() Backend { return single{p} }

type single struct{ *Process }

func (s single) Client() redis.UniversalClient { return s.Process.Client() }
func (s single) Plain() redis.UniversalClient  { return s.Process.Plain() }
func (s single) Fake() bool                    { return false }
func (s single) Settle()                       {}

func (s single) Until(what string, ok func() bool) {
	s.t.Helper()
	until(s.t, what, ok)
}

// Backend returns m as a Backend.
func (m *Masters) Backend() Backend { return cluster{m} }

type cluster struct{ *Masters }

func (c cluster) Client() redis.UniversalClient { return c.Masters.Client() }
func (c cluster) Plain() redis.UniversalClient  { return c.Masters.Plain() }
func (c cluster) Fake() bool                    { return false }
func (c cluster) Settle()                       {}

func (c cluster) Until(what string, ok func() bool) {
	c.t.Helper()
	until(c.t, what, ok)
}

// until implements [Backend].Until.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}
