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

// Redis starts a Redis in memory for this test, and returns a client of it, a
// [*redis.Client]. Both end with the test. It has no socket, so tests with one may run
// in parallel.
//
// In a [testing/synctest] bubble, call it inside: leases, TTLs and timeouts then use the
// bubble's clock. Close each Loader and Locker before the bubble ends, as with
// t.Cleanup. A goroutine that still runs then fails the test.
//
// Each client stands for one process. Two Loaders of one client share what a process has
// once, and a fault affects one client only. The client does not retry commands or
// dials, so each fault fails once. It waits a second for an answer. To test with the
// timeouts and retries of your program, use [NewClientWith].
//
// The server is miniredis. It is not a cluster, has no Sentinel, evicts nothing, and has
// no CLIENT TRACKING, so [fetchonce.Near] behaves as on a server that refuses it. Its
// speed means nothing. Test what depends on these with a real server.
func Redis(t testing.TB) redis.UniversalClient {
	t.Helper()
	return client(t, redistest.Bubble(t))
}

// NewClient returns another client of the Redis of rdb, as a second process has one. It
// ends with its own test, t.
func NewClient(t testing.TB, rdb redis.UniversalClient) redis.UniversalClient {
	t.Helper()
	return client(t, serverOf(t, rdb))
}

// NewClientWith returns another client of the Redis of rdb, with the timeouts, retries,
// pool and hooks of opt. Zero fields have the defaults of go-redis, so [Down] and [Hang]
// take as long as they take in a program with these options. For a
// [redis.UniversalOptions], pass its Simple method's result.
//
// The address, the dialer, TLS and the credentials of opt are not used: the Redis in
// memory has none. opt is not changed. The client ends with its own test, t.
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

// FailNext makes Redis answer the next n commands of the client with an error, such as
// "ERR internal error", without executing them. It counts the given commands, such as
// "evalsha", or all if none is given. It replaces an earlier FailNext; n may be 0.
//
// A Loader retries errors that pass, such as "LOADING", within its RedisTimeout, so one
// Get may use several of the n. Commands that connect or subscribe do not count. With
// [fetchonce.Near], a process also sends a PUBLISH each second.
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

// DropMessages drops the next n messages from Redis to the client: notifications that a
// value was fetched or a lock was released, and, with [fetchonce.Near], reports of
// changes. Heartbeats of Near do not count. It replaces an earlier DropMessages; n may
// be 0.
func DropMessages(t testing.TB, rdb redis.UniversalClient, n int) {
	t.Helper()
	w := wireOf(t, rdb)
	if n < 0 {
		t.Fatalf("oncetest: DropMessages: n is %d", n)
	}
	w.DropMessagesWhere(n, func(channel string) bool { return !protocol.IsHeartbeats(channel) })
}

// Down cuts the connections of the clients, and refuses new ones, until Up is called for
// them. The data stays. It also shows what happens to the leases of a process that died:
// they expire, because they are not renewed.
func Down(t testing.TB, clients ...redis.UniversalClient) {
	t.Helper()
	for _, w := range wiresOf(t, clients) {
		w.Down()
	}
}

// Hang makes Redis answer nothing to the clients, while their connections stay open, until
// Up is called for them. Then Redis executes the commands that they sent, including those
// that timed out meanwhile.
func Hang(t testing.TB, clients ...redis.UniversalClient) {
	t.Helper()
	for _, w := range wiresOf(t, clients) {
		w.Pause()
	}
}

// Up ends a Down or a Hang of the clients.
func Up(t testing.TB, clients ...redis.UniversalClient) {
	t.Helper()
	for _, w := range wiresOf(t, clients) {
		w.Up()
		w.Resume()
	}
}

// ExpireLease ends the lease of a load of the key, or the leases of all holders of a
// lock, at once, as if they were not renewed for their whole length. The key is that of a
// Loader or the name of a lock, with any prefix. The test fails if there is no
// such lease.
//
// Two milliseconds pass meanwhile. The holder notices when it next renews the lease, or
// stores its value.
func ExpireLease(t testing.TB, rdb redis.UniversalClient, key string) {
	t.Helper()
	r := serverOf(t, rdb)
	if !protocol.Expire(r, key) {
		t.Fatalf("oncetest: ExpireLease: there is no lease of %q", key)
	}
	time.Sleep(2 * time.Millisecond) // until they have ended
}

// servers has the Redis of each client of a test that runs.
var servers sync.Map // *redis.Client -> redistest.Redis

func client(t testing.TB, r redistest.Redis) *redis.Client {
	t.Helper()
	return keep(t, r, r.Of(t).Client())
}

// keep makes the Redis of a client known until the test ends.
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
	t.Fatalf("oncetest: a %T that is no client of oncetest.Redis or NewClient, or whose test is over", rdb)
	return redistest.Redis{}
}

// wiresOf looks at all of them before anything is done to one.
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
