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

// Redis starts a Redis in memory for this test alone, and returns a client of it,
// a [*redis.Client]. Both end with the test. No socket leads to it, so tests
// with one may run at the same time.
//
// In a [testing/synctest] bubble, call it there: leases, TTLs and timeouts then
// go by the bubble's clock and cost no time. Close each Loader and Locker before
// the bubble ends, as with t.Cleanup; what still runs then fails the test.
//
// Each client stands for one process: two Loaders over the same one share what
// a process has once, and a fault befalls one client and not the others. The
// client neither retries commands nor dials, so that what fails fails once, and
// waits a second for an answer.
//
// It is miniredis, for tests and no measure of speed. It is no cluster, has no
// Sentinel, evicts nothing, and does not tell what changes (CLIENT TRACKING), so
// that [fetchonce.Near] does here what it does where that is refused. Test what
// depends on these with a real server.
func Redis(t testing.TB) redis.UniversalClient {
	t.Helper()
	return client(t, redistest.Bubble(t))
}

// NewClient returns another client of the Redis of a client, as another process
// would have. It ends with its own test, t.
func NewClient(t testing.TB, rdb redis.UniversalClient) redis.UniversalClient {
	t.Helper()
	return client(t, serverOf(t, rdb))
}

// FailNext has Redis answer the next n commands of the client with an error, as
// in "ERR internal error", and not execute them: those with the given names, as
// "evalsha", or else all. It takes the place of what FailNext said before; n may
// be 0.
//
// Errors that pass soon, such as "LOADING", a Loader tries to outlast within its
// RedisTimeout, so that one Get may use several of the n. What a client does to
// connect and to subscribe is not counted. With [fetchonce.Near], a process also
// sends a PUBLISH each second.
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

// DropMessages loses the next n messages that Redis sends to the client: those
// by which its process is woken when another one has fetched a value or given a
// lock back, and, with [fetchonce.Near], those that tell of changes. The beats
// of Near are not counted. It takes the place of what DropMessages said before;
// n may be 0.
func DropMessages(t testing.TB, rdb redis.UniversalClient, n int) {
	t.Helper()
	w := wireOf(t, rdb)
	if n < 0 {
		t.Fatalf("oncetest: DropMessages: n is %d", n)
	}
	w.DropMessagesWhere(n, func(channel string) bool { return !protocol.IsBeats(channel) })
}

// Down has the clients lose their Redis until Up is called for them: their
// connections are cut, and new ones are refused. The data stays. It is also what
// becomes of the leases of a process that died: they end when nobody renews them.
func Down(t testing.TB, clients ...redis.UniversalClient) {
	t.Helper()
	for _, w := range wiresOf(t, clients) {
		w.Down()
	}
}

// Hang has Redis answer nothing to the clients, while their connections stay
// open, until Up is called for them. Then it executes what they sent, also what
// they have meanwhile given up.
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

// ExpireLease ends the lease under which a key is fetched, or the leases of all
// who hold a lock, at once: as if nobody had renewed it for its whole length.
// The key is that of a Loader or the name of a lock, whatever the prefix and
// schema. The test fails if nobody has a lease of it.
//
// Two milliseconds pass meanwhile. The holder finds out when it next renews the
// lease, or wants to store what it fetched.
func ExpireLease(t testing.TB, rdb redis.UniversalClient, key string) {
	t.Helper()
	r := serverOf(t, rdb)
	if !protocol.Expire(r, key) {
		t.Fatalf("oncetest: ExpireLease: nobody has a lease of %q", key)
	}
	time.Sleep(2 * time.Millisecond) // until they have ended
}

// servers has the Redis of each client of a test that runs.
var servers sync.Map // *redis.Client -> redistest.Redis

func client(t testing.TB, r redistest.Redis) *redis.Client {
	t.Helper()
	rdb := r.Of(t).Client()
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
