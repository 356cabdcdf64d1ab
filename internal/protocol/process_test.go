package protocol_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

const (
	timeout = 5 * time.Second // of an operation
	lease   = 10 * time.Second
	ttl     = time.Minute
)

var (
	ns  = protocol.NewNamespace("test", "")
	key = ns.Key("k")
)

// A process is a client of the protocol, with the notifications that it has received.
type process struct {
	*protocol.Client
	t   *testing.T
	r   redistest.Backend
	id  string
	rdb redis.UniversalClient

	leases int

	mu       sync.Mutex
	received []protocol.Message
}

// newProcess returns a process that is subscribed to its notifications. At the end of the test,
// every key that the scripts wrote must have a TTL.
func newProcess(t *testing.T, r redistest.Backend, id string) *process {
	t.Helper()
	p := newClient(t, r, id)
	sub := p.rdb.Subscribe(t.Context(), ns.Channel(id))
	if _, err := sub.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	var receiving sync.WaitGroup
	receiving.Go(func() { // ends with sub
		for {
			m, err := sub.ReceiveMessage(context.Background()) //nolint:usetesting // it ends with sub, after the test's context
			if err != nil {
				return
			}
			message, err := protocol.ParseMessage(m.Payload)
			if err != nil {
				t.Errorf("%s was notified with %q: %v", id, m.Payload, err)
			}
			p.mu.Lock()
			p.received = append(p.received, message)
			p.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = sub.Close()
		receiving.Wait()
	})
	return p
}

// newClient returns a process that is not subscribed.
func newClient(t *testing.T, r redistest.Backend, id string) *process {
	t.Helper()
	rdb := r.Client()
	_, cluster := rdb.(*redis.ClusterClient)
	p := &process{Client: protocol.NewClient(batch.NewRouter(rdb).Link(0, 0), ns, id, timeout, cluster), t: t, r: r, id: id, rdb: rdb}
	p.ErrorTTL, p.Backoff = time.Hour, time.Hour
	t.Cleanup(func() { wantEveryKeyToEnd(t, rdb) })
	return p
}

// nodes calls do for each node that has keys.
func nodes(t *testing.T, rdb redis.UniversalClient, do func(ctx context.Context, rdb *redis.Client) error) {
	t.Helper()
	var err error
	if c, ok := rdb.(*redis.ClusterClient); ok {
		err = c.ForEachMaster(t.Context(), do)
	} else {
		err = do(t.Context(), rdb.(*redis.Client))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func wantEveryKeyToEnd(t *testing.T, rdb redis.UniversalClient) {
	t.Helper()
	nodes(t, rdb, func(ctx context.Context, rdb *redis.Client) error {
		keys := rdb.Keys(ctx, "*").Val()
		for _, key := range keys {
			if ttl := rdb.PTTL(ctx, key).Val(); ttl == -1 && !strings.HasPrefix(key, "foreign") {
				t.Errorf("%q has no TTL", key)
			}
		}
		return nil
	})
}

// owner returns a new owner token of p.
func (p *process) owner() string {
	p.leases++
	return fmt.Sprintf("%s.%d", p.id, p.leases)
}

func (p *process) acquire(owner string, over *protocol.PassOver) protocol.Acquired {
	p.t.Helper()
	a, err := p.Acquire(p.t.Context(), key, owner, lease, over)
	if err != nil {
		p.t.Fatalf("Acquire by %s: %v", owner, err)
	}
	return a
}

// lease acquires the lease, which must be free.
func (p *process) lease() (owner string, fence int64) {
	p.t.Helper()
	owner = p.owner()
	a := p.acquire(owner, nil)
	if a.State != protocol.Leased {
		p.t.Fatalf("Acquire by %s = %+v, want the lease", owner, a)
	}
	return owner, a.Fence
}

// wait sends ACQUIRE while another process has the lease, so p is registered as a waiter.
func (p *process) wait() protocol.Acquired {
	p.t.Helper()
	a := p.acquire(p.owner(), nil)
	if a.State != protocol.Wait {
		p.t.Fatalf("Acquire by %s = %+v, want to wait", p.id, a)
	}
	return a
}

// leaseOf returns a lease of the tests' key.
func leaseOf(owner string, fence int64) protocol.Lease {
	return protocol.Lease{Key: key, Owner: owner, Fence: fence}
}

func (p *process) fill(owner string, fence int64, sealed []byte, ttl time.Duration) protocol.Filled {
	p.t.Helper()
	f, err := p.Fill(p.t.Context(), leaseOf(owner, fence), sealed, ttl)
	if err != nil {
		p.t.Fatalf("Fill by %s: %v", owner, err)
	}
	return f
}

// get returns the stored value, or "".
func (p *process) get() string {
	p.t.Helper()
	b, err := p.Get(p.t.Context(), key, 1<<20)
	if err != nil {
		p.t.Fatalf("Get: %v", err)
	}
	return string(b)
}

// must fails the test if err is not nil.
func (p *process) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) exists(name string) bool {
	p.t.Helper()
	n, err := p.rdb.Exists(p.t.Context(), name).Result()
	p.must(err)
	return n == 1
}

// wantEnd checks the TTL of a key. In a bubble, where time stands still, it must be exact.
func (p *process) wantEnd(name string, want time.Duration) {
	p.t.Helper()
	got, err := p.rdb.PTTL(p.t.Context(), name).Result()
	p.must(err)
	if p.r.Fake() && got != want || got <= 0 || got > want {
		p.t.Errorf("%q lasts %v, want %v", name, got, want)
	}
}

// wantNotified checks the next notification of p.
func (p *process) wantNotified(kind protocol.Kind, fence int64, body string) {
	p.t.Helper()
	var m protocol.Message
	p.r.Until(fmt.Sprintf("%s is notified", p.id), func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.received) == 0 {
			return false
		}
		m = p.received[0]
		p.received = p.received[1:]
		return true
	})
	if m.Kind != kind || m.Fence != fence || m.Name != key.Value || m.Body != body {
		p.t.Errorf("%s was notified with %c %d %q %.100q, want %c %d %q %.100q", p.id, m.Kind, m.Fence, m.Name, m.Body, kind, fence, key.Value, body)
	}
}

// wantNoNotification checks that p receives no further notification. It publishes a probe on the
// node that has the key: the probe arrives after the notifications of all earlier scripts.
func (p *process) wantNoNotification() {
	p.t.Helper()
	rdb := p.rdb
	if c, ok := rdb.(*redis.ClusterClient); ok {
		node, err := c.MasterForKey(p.t.Context(), key.Value)
		p.must(err)
		rdb = node
	}
	p.must(rdb.Publish(p.t.Context(), ns.Channel(p.id), protocol.Probe()).Err())
	p.r.Until("the probe arrives", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.received) > 0 && p.received[len(p.received)-1].Kind == protocol.KindProbe
	})
	for _, m := range p.received[:len(p.received)-1] {
		p.t.Errorf("%s was notified with %c %d %.100q, want no notification", p.id, m.Kind, m.Fence, m.Body)
	}
	p.received = nil
}

// now returns the server's time.
func (p *process) now() time.Time {
	p.t.Helper()
	now, err := p.rdb.Time(p.t.Context()).Result()
	p.must(err)
	return now
}

// seal returns an envelope with a payload of size bytes.
func seal(fence int64, size int) []byte {
	return envelope.Seal(envelope.Header{
		Kind: envelope.Value, Created: 1, Fence: fence, Fresh: ttl, Keep: ttl, Digest: key.Digest(),
	}, []byte(strings.Repeat("x", size)))
}

// sealAt returns an envelope with that time of creation, which is kept for ttl.
func sealAt(created time.Time, size int) []byte {
	return envelope.Seal(envelope.Header{
		Kind: envelope.Value, Created: created.UnixMilli(), Fence: 1, Fresh: ttl, Keep: ttl, Digest: key.Digest(),
	}, []byte(strings.Repeat("x", size)))
}

// sized returns an envelope of size bytes.
func sized(fence int64, size int) []byte { return seal(fence, size-envelope.Size) }
