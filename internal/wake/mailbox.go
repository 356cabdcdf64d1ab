// Package wake receives the notifications that other processes publish for this one: a value
// was stored, a fetch failed, a lease ended, a lock was granted.
//
// The loader and internal/lockqueue use it. There is one [Mailbox] for each Redis client, with one
// connection; see internal/client.
//
// Notifications are hints: they may be lost, delayed or forged. The recheck timers of the waiters
// cover lost ones, so no function of this package returns an error. When notifications may have
// been lost, all waiters receive a retry.
//
// The package knows the messages of the protocol, and does not know values, leases or policy.
package wake

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// Client has the methods of a go-redis client that a mailbox calls.
type Client interface {
	Subscribe(ctx context.Context, channels ...string) *redis.PubSub
	Publish(ctx context.Context, channel string, message any) *redis.IntCmd
}

// A Mailbox receives notifications through one Redis client.
type Mailbox struct {
	client  Client
	process string
	owners  atomic.Uint64

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup
	node    string // of a cluster: the address of the last connection; only run uses it

	mu       sync.Mutex
	conn     *redis.PubSub            // nil while there is no connection
	channels map[string]*subscription // the channels to subscribe to
	uses     map[string]int           // how many users each channel has
	slots    map[string][]*Slot
	onLost   map[string]func() // by owner
	probing  bool
	echo     chan struct{} // closed when the probe arrives
}

// New returns the mailbox of a client. The caller must close it. It connects at the first
// Subscribe.
func New(rdb Client) *Mailbox {
	name := make([]byte, 16)
	_, _ = rand.Read(name) // never fails
	m := &Mailbox{
		client: rdb, process: hex.EncodeToString(name),
		channels: make(map[string]*subscription), uses: make(map[string]int), slots: make(map[string][]*Slot), onLost: make(map[string]func()),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Close ends the connection.
func (m *Mailbox) Close() {
	m.mu.Lock()
	m.cancel() // under mu: no goroutine starts after it
	conn := m.conn
	m.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
	m.running.Wait()
}

// Process returns the name of this process in Redis: 128 random bits, new for each mailbox.
func (m *Mailbox) Process() string { return m.process }

// Owner returns a new owner token. No other lease or lock in this Redis has the same one.
func (m *Mailbox) Owner() string {
	return m.process + "." + strconv.FormatUint(m.owners.Add(1), 36)
}

// OnLost makes the mailbox call lost when it receives a notification that the lease of owner
// was ended by another process. lost must return at once. After stop, it is not called again,
// except for a notification that is being delivered at that moment.
func (m *Mailbox) OnLost(owner string, lost func()) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onLost[owner] = lost
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.onLost, owner)
	}
}
