package oncetest

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// Redis starts a Redis server in memory for this test and returns a client of it, a
// [*redis.Client]. Both end with the test. The server opens no socket, so such tests may
// run in parallel.
//
// In a [testing/synctest] bubble, call Redis inside the bubble. Leases, TTLs and timeouts
// then use the bubble's clock. Close each Loader and Locker before the bubble ends, for
// example with t.Cleanup: a goroutine that still runs then fails the test.
//
// Each client stands for one process. Loaders of one client share what a process has once,
// and a fault affects one client only. The client retries neither commands nor dials, so
// that one fault is one failure. Its read timeout is one second. To test with the timeouts
// and retries of your program, use [NewClientWith].
//
// The server is miniredis. It is no cluster, has no Sentinel and evicts nothing. It has no
// CLIENT TRACKING, so [fetchonce.Near] behaves as on a server that refuses tracking. Its
// speed says nothing about a real server's. Test what depends on these with a real server.
func Redis(t testing.TB) redis.UniversalClient {
	t.Helper()
	return client(t, redistest.Bubble(t))
}

// NewClient returns another client of the server of rdb. It stands for a second process
// and has the settings of the client that [Redis] returns. It is closed at the end of t,
// which may be a subtest.
func NewClient(t testing.TB, rdb redis.UniversalClient) redis.UniversalClient {
	t.Helper()
	return client(t, serverOf(t, rdb))
}

// NewClientWith returns another client of the server of rdb, with the timeouts, retries,
// pool and hooks of opt. A zero field means the default of go-redis, so calls during [Down]
// and [Hang] take as long as in a program with these options. If your program has
// [redis.UniversalOptions], pass the result of their Simple method.
//
// The address, dialer, TLS and credentials of opt are not used: the server in memory has
// none. opt is not changed. The client is closed at the end of t, which may be a subtest.
func NewClientWith(t testing.TB, rdb redis.UniversalClient, opt *redis.Options) redis.UniversalClient {
	t.Helper()
	r := serverOf(t, rdb)
	if opt == nil {
		t.Fatalf("oncetest: NewClientWith: no options")
	}
	return keep(t, r, r.Of(t).Plain(func(plain *redis.Options) {
		addr := plain.Addr
		*plain = *opt
		plain.Addr, plain.NodeAddress, plain.Network, plain.Dialer, plain.TLSConfig = addr, "", "", nil, nil
		plain.Username, plain.Password = "", ""
		plain.CredentialsProvider, plain.CredentialsProviderContext, plain.StreamingCredentialsProvider = nil, nil, nil
	}))
}

// FailNext makes Redis answer the next n commands of the client with the error text, such
// as "ERR internal error". Redis does not execute them. If commands are named, such as
// "evalsha", only those count and fail. FailNext replaces an earlier FailNext of the
// client; n = 0 ends it.
//
// A Loader retries temporary errors, such as "LOADING", within its RedisTimeout, so one
// Get may use several of the n. Commands that connect or subscribe neither count nor fail.
// With [fetchonce.Near], a process also sends a PUBLISH each second.
func FailNext(t testing.TB, rdb redis.UniversalClient, n int, text string, commands ...string) {
	t.Helper()
	w := wireOf(t, rdb)
	if text == "" || strings.ContainsAny(text, "\r\n") {
		t.Fatalf("oncetest: FailNext: the error must be one line of text, and is %q", text)
	}
	if n < 0 {
		t.Fatalf("oncetest: FailNext: n is %d", n)
	}
	w.Fail(n, text, commands...)
}

// DropMessages drops the next n messages from Redis to the client. These are notifications
// that a value was fetched or that a lock was released and, with [fetchonce.Near],
// notifications of changed values. Heartbeats of Near neither count nor are dropped.
// DropMessages replaces an earlier DropMessages of the client; n = 0 ends it.
func DropMessages(t testing.TB, rdb redis.UniversalClient, n int) {
	t.Helper()
	w := wireOf(t, rdb)
	if n < 0 {
		t.Fatalf("oncetest: DropMessages: n is %d", n)
	}
	w.DropMessagesWhere(n, func(channel string) bool { return !protocol.IsHeartbeats(channel) })
}

// Down closes the connections of the clients and refuses new ones until [Up] is called for
// the clients. The data in Redis stays.
//
// For the other clients, Down looks like the death of the process: its leases expire,
// because it cannot renew them.
func Down(t testing.TB, clients ...redis.UniversalClient) {
	t.Helper()
	for _, w := range wiresOf(t, clients) {
		w.Down()
	}
}

// Hang makes Redis stop answering the clients until [Up] is called for them. Their
// connections stay open. After Up, Redis executes the commands that the clients sent
// meanwhile, including those that timed out.
func Hang(t testing.TB, clients ...redis.UniversalClient) {
	t.Helper()
	for _, w := range wiresOf(t, clients) {
		w.Pause()
	}
}

// Up ends [Down] and [Hang] for the clients. It does nothing for a client that has neither.
func Up(t testing.TB, clients ...redis.UniversalClient) {
	t.Helper()
	for _, w := range wiresOf(t, clients) {
		w.Up()
		w.Resume()
	}
}

// ExpireLease ends a lease at once, as if its holder had not renewed it in time. The key is
// the key of a load or the name of a lock, without the prefix; keys with any prefix match.
// All holders of a lock lose their leases. The test fails if no such lease exists.
//
// ExpireLease takes two milliseconds. The holder notices the loss when it next renews the
// lease or stores its value.
func ExpireLease(t testing.TB, rdb redis.UniversalClient, key string) {
	t.Helper()
	r := serverOf(t, rdb)
	if !protocol.Expire(r, key) {
		t.Fatalf("oncetest: ExpireLease: there is no lease of %q", key)
	}
	time.Sleep(2 * time.Millisecond) // Expire leaves the lease 1 ms
}

// servers maps each client of a running test to its server.
var servers sync.Map // *redis.Client -> redistest.Redis

func client(t testing.TB, r redistest.Redis) *redis.Client {
	t.Helper()
	return keep(t, r, r.Of(t).Client())
}

// keep remembers the server of a client until the test ends.
func keep(t testing.TB, r redistest.Redis, rdb *redis.Client) *redis.Client {
	t.Helper()
	servers.Store(rdb, r)
	t.Cleanup(func() { servers.Delete(rdb) })
	return rdb
}

func serverOf(t testing.TB, rdb redis.UniversalClient) redistest.Redis {
	t.Helper()
	if c, ok := rdb.(*redis.Client); ok {
		if r, ok := servers.Load(c); ok {
			return r.(redistest.Redis)
		}
	}
	t.Fatalf("oncetest: this %T was not returned by Redis, NewClient or NewClientWith, or its test has ended", rdb)
	return redistest.Redis{}
}

// wiresOf returns the wires of all clients, or fails before any fault begins.
func wiresOf(t testing.TB, clients []redis.UniversalClient) []*redistest.Wire {
	t.Helper()
	wires := make([]*redistest.Wire, len(clients))
	for i, rdb := range clients {
		wires[i] = wireOf(t, rdb)
	}
	return wires
}

func wireOf(t testing.TB, rdb redis.UniversalClient) *redistest.Wire {
	t.Helper()
	serverOf(t, rdb)
	return redistest.WireOf(rdb)
}
