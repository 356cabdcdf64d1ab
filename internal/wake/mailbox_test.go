package wake_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/wake"
)

const (
	channel = "test:b:process"
	name    = "test:v:{k}"
)

// message encodes a message without the protocol package, so that the test checks its format.
func message(kind protocol.Kind, fence uint64, name, body string) string {
	b := binary.BigEndian.AppendUint64([]byte{byte(kind)}, fence)
	b = binary.AppendUvarint(b, uint64(len(name)))
	return string(b) + name + body
}

// A process has a mailbox that is subscribed to the channel, and the client of another
// process that publishes to it.
type process struct {
	t *testing.T
	r redistest.Backend
	*wake.Mailbox
	rdb   redis.UniversalClient
	marks int
	other redis.UniversalClient // of one node of a cluster, so that messages stay in order
}

func newProcess(t *testing.T, r redistest.Backend) *process {
	t.Helper()
	p := &process{t: t, r: r, rdb: r.Client(), other: r.Client()}
	if c, ok := p.other.(*redis.ClusterClient); ok {
		node, err := c.MasterForKey(t.Context(), "any")
		if err != nil {
			t.Fatal(err)
		}
		p.other = node
	}
	p.Mailbox = wake.New(p.rdb)
	t.Cleanup(p.Close)
	p.Subscribe(t.Context(), channel)
	p.awaitSubscribed()
	p.settle() // a node of a cluster may still forward messages of the last test
	return p
}

// eachWaiter runs a test with a process that has one waiter, on each kind of Redis.
func eachWaiter(t *testing.T, f func(t *testing.T, p *process, s *wake.Slot)) {
	t.Helper()
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.OpenSlot(name)
		defer s.Close()
		f(t, p, s)
	})
}

// inBubble runs a test with a mailbox on a fake clock, and with a Redis in memory.
func inBubble(t *testing.T, f func(t *testing.T, r redistest.Redis, m *wake.Mailbox)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		m := wake.New(r.Client())
		defer m.Close()
		f(t, r, m)
	})
}

func (p *process) awaitSubscribed() {
	p.t.Helper()
	p.r.Until("the mailbox is subscribed", func() bool { return p.Subscribed(channel) })
}

// publish publishes a message to the process.
func (p *process) publish(message string) {
	p.t.Helper()
	if err := p.other.Publish(p.t.Context(), channel, message).Err(); err != nil {
		p.t.Fatal(err)
	}
}

// settle returns when the mailbox has delivered the messages so far.
func (p *process) settle() {
	p.t.Helper()
	p.marks++
	name := fmt.Sprint("mark", p.marks) // a new name: one of the last settle may still arrive
	mark := p.OpenSlot(name)
	defer mark.Close()
	p.r.Until("a message arrives", func() bool {
		p.publish(message('V', 1, name, "")) // again: the connection may be new
		m, _ := mark.Take(1)
		return m.Kind == 'V' // not a retry
	})
	p.r.Settle()
}

func isReady(s *wake.Slot) bool {
	select {
	case <-s.Ready():
		return true
	default:
		return false
	}
}

func (p *process) awaitReady(what string, s *wake.Slot) {
	p.t.Helper()
	p.r.Until(what, func() bool { return isReady(s) })
}

func wantMessage(t *testing.T, s *wake.Slot, fence int64, want protocol.Message) {
	t.Helper()
	got, ok := s.Take(fence)
	if !ok || got.Kind != want.Kind || got.Fence != want.Fence || got.Name != want.Name || got.Body != want.Body {
		t.Errorf("Take(%d) = %c %d %q %q, %v; want %c %d %q %q", fence,
			got.Kind, got.Fence, got.Name, got.Body, ok, want.Kind, want.Fence, want.Name, want.Body)
	}
}

func wantNone(t *testing.T, what string, s *wake.Slot, fence int64) {
	t.Helper()
	if m, ok := s.Take(fence); ok {
		t.Errorf("%s: Take(%d) = %c %d %q, want none", what, fence, m.Kind, m.Fence, m.Body)
	}
}

func TestOwnersAreUnique(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{}) // never connects
	defer rdb.Close()
	m := wake.New(rdb)
	defer m.Close()
	var mu sync.Mutex
	seen := map[string]bool{}
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for range 100 {
				owner := m.Owner()
				mu.Lock()
				if seen[owner] {
					t.Errorf("owner %q twice", owner)
				}
				seen[owner] = true
				mu.Unlock()
				if process, number, ok := strings.Cut(owner, "."); !ok || process != m.Process() || number == "" {
					t.Errorf("owner %q does not begin with its process, %q", owner, m.Process())
				}
			}
		})
	}
	users.Wait()
}

// The bubble fails if a goroutine is left.
func TestCloseLeavesNothing(t *testing.T) {
	for name, before := range map[string]func(t *testing.T, r redistest.Redis, m *wake.Mailbox){
		"when it has no channel": func(*testing.T, redistest.Redis, *wake.Mailbox) {},
		"when it is subscribed": func(t *testing.T, _ redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Subscribe(t.Context(), channel)
		},
		"while it begins": func(t *testing.T, _ redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			go m.Subscribe(t.Context(), channel)
		},
		"while Redis is down": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			r.Kill()
			m.Subscribe(t.Context(), channel)
		},
		"while Redis hangs": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			r.Pause()
			m.Subscribe(t.Context(), channel)
		},
		"while Redis stops hanging": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			r.Pause()
			m.Subscribe(t.Context(), channel)
			time.AfterFunc(500*time.Millisecond, r.Resume)
		},
		"while it sends a probe": func(t *testing.T, _ redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Subscribe(t.Context(), channel)
			m.CheckConnection(channel)
		},
		"while a probe is lost": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Subscribe(t.Context(), channel)
			r.Wire().DropMessages(redistest.All)
			m.CheckConnection(channel)
			synctest.Wait()
		},
		"while it reconnects": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Subscribe(t.Context(), channel)
			r.Pause()
			r.Wire().Cut()
			synctest.Wait()
		},
		"after Redis has stopped": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Subscribe(t.Context(), channel)
			r.Kill()
			time.Sleep(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := redistest.Bubble(t)
				rdb := r.Client()
				rdb.AddHook(dialer{})
				m := wake.New(rdb)
				before(t, r, m)
				start := time.Now()
				m.Close()
				if took := time.Since(start); took > time.Second { // the client's own time limit
					t.Errorf("Close took %v, want at most 1s", took)
				}
				start = time.Now()
				m.Subscribe(t.Context(), "after") // starts nothing and does not wait
				m.CheckConnection(channel)
				if took := time.Since(start); took > 0 || m.Subscribed("after") {
					t.Errorf("Subscribe after Close took %v, Subscribed = %v; want no time, false", took, m.Subscribed("after"))
				}
			})
		})
	}
}

func TestCloseWaitsForADial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		m := wake.New(r.Client())
		r.Pause()
		m.Subscribe(t.Context(), channel)
		time.AfterFunc(500*time.Millisecond, r.Resume)
		start := time.Now()
		m.Close()
		if took := time.Since(start); took != 500*time.Millisecond {
			t.Errorf("Close took %v, want 500ms: until the dial has ended", took)
		}
		synctest.Wait()
		if n := r.PubSubNumSub(channel)[channel]; n != 0 {
			t.Errorf("%d connections are still subscribed", n)
		}
	})
}

// A dialer is a hook that does not dial when the context has ended, like net.Dialer.
type dialer struct{}

func (dialer) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return next(ctx, network, addr)
	}
}

func (dialer) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (dialer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
