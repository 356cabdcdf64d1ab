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

// A process speaks the protocol, and keeps what is said to it.
type process struct {
	*protocol.Client
	t   *testing.T
	r   redistest.Backend
	id  string
	rdb redis.UniversalClient

	leases int

	mu    sync.Mutex
	heard []protocol.Message
}

// newProcess returns a process that hears what the others say to it. At the end
// of the test, every key that the protocol wrote must have an end.
func newProcess(t *testing.T, r redistest.Backend, id string) *process {
	t.Helper()
	p := newClient(t, r, id)
	sub := p.rdb.Subscribe(t.Context(), ns.Channel(id))
	if _, err := sub.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	var listening sync.WaitGroup
	listening.Go(func() { // ends with sub
		for {
			m, err := sub.ReceiveMessage(context.Background()) //nolint:usetesting // it ends with sub, after the test's context
			if err != nil {
				return
			}
			message, err := protocol.ParseMessage(m.Payload)
			if err != nil {
				t.Errorf("%s was told %q: %v", id, m.Payload, err)
			}
			p.mu.Lock()
			p.heard = append(p.heard, message)
			p.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = sub.Close()
		listening.Wait()
	})
	return p
}

// newClient returns a process that hears nothing.
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
				t.Errorf("%q is there for ever", key)
			}
		}
		return nil
	})
}

// owner returns the name of a new lease of p's.
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

// wait acquires a lease that somebody else holds, and so waits for it.
func (p *process) wait() protocol.Acquired {
	p.t.Helper()
	a := p.acquire(p.owner(), nil)
	if a.State != protocol.Wait {
		p.t.Fatalf("Acquire by %s = %+v, want to wait", p.id, a)
	}
	return a
}

// leaseOf returns a lease of the key of the tests.
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

// get returns the value, or "" if there is none.
func (p *process) get() string {
	p.t.Helper()
	b, err := p.Get(p.t.Context(), key, 1<<20)
	if err != nil {
		p.t.Fatalf("Get: %v", err)
	}
	return string(b)
}

// must fails the test if one of the others' commands failed.
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

// wantEnd checks how long a key lasts: exactly so long in a bubble, where time
// stands still.
func (p *process) wantEnd(name string, want time.Duration) {
	p.t.Helper()
	got, err := p.rdb.PTTL(p.t.Context(), name).Result()
	p.must(err)
	if p.r.Fake() && got != want || got <= 0 || got > want {
		p.t.Errorf("%q lasts %v, want %v", name, got, want)
	}
}

// wantTold waits for the next message to p.
func (p *process) wantTold(kind protocol.Kind, fence int64, body string) {
	p.t.Helper()
	var m protocol.Message
	p.r.Until(fmt.Sprintf("%s is told something", p.id), func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.heard) == 0 {
			return false
		}
		m = p.heard[0]
		p.heard = p.heard[1:]
		return true
	})
	if m.Kind != kind || m.Fence != fence || m.Name != key.Value || m.Body != body {
		p.t.Errorf("%s was told %c %d %q %.100q, want %c %d %q %.100q", p.id, m.Kind, m.Fence, m.Name, m.Body, kind, fence, key.Value, body)
	}
}

// wantSilence checks that nothing more was said to p. What it says itself comes
// from the node that has the key, and so after everything that its scripts said.
func (p *process) wantSilence() {
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
		return len(p.heard) > 0 && p.heard[len(p.heard)-1].Kind == protocol.KindProbe
	})
	for _, m := range p.heard[:len(p.heard)-1] {
		p.t.Errorf("%s was told %c %d %.100q, want nothing", p.id, m.Kind, m.Fence, m.Body)
	}
	p.heard = nil
}

// now returns the server's time.
func (p *process) now() time.Time {
	p.t.Helper()
	now, err := p.rdb.Time(p.t.Context()).Result()
	p.must(err)
	return now
}

// seal returns an envelope with a payload of so many bytes in it.
func seal(fence int64, size int) []byte {
	return envelope.Seal(envelope.Header{
		Kind: envelope.Value, Created: 1, Fence: fence, Fresh: ttl, Keep: ttl, Digest: key.Digest(),
	}, []byte(strings.Repeat("x", size)))
}

// sealAt returns an envelope that was created then, and is kept for ttl.
func sealAt(created time.Time, size int) []byte {
	return envelope.Seal(envelope.Header{
		Kind: envelope.Value, Created: created.UnixMilli(), Fence: 1, Fresh: ttl, Keep: ttl, Digest: key.Digest(),
	}, []byte(strings.Repeat("x", size)))
}

// sized returns an envelope of so many bytes in all.
func sized(fence int64, size int) []byte { return seal(fence, size-envelope.Size) }
