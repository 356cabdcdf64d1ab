package wake_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/wake"
)

func TestReconnectionMakesAllWaitersRetry(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		a, b, early := p.OpenSlot(name), p.OpenSlot("test:v:{other}"), p.OpenSlot(name)
		defer early.Close()
		defer b.Close()
		defer a.Close()
		p.publish(message('V', 5, name, "old"))
		p.settle()
		wantMessage(t, early, 5, protocol.Message{Kind: 'V', Fence: 5, Name: name, Body: "old"})
		isReady(a)
		isReady(early)

		redistest.WireOf(p.rdb).Cut()
		for waiter, s := range map[string]*wake.Slot{"a": a, "b": b, "early": early} {
			p.awaitReady(waiter+" is notified", s)
		}
		// The retry counts for any fence. Earlier messages do not count.
		wantMessage(t, a, 1_795_000_000_000_000, protocol.Message{Kind: 'R', Fence: 1_795_000_000_000_000, Name: name})
		wantMessage(t, b, 3, protocol.Message{Kind: 'R', Fence: 3, Name: "test:v:{other}"})
		wantMessage(t, early, 1, protocol.Message{Kind: 'R', Fence: 1, Name: name})
		wantNone(t, "one retry", a, 0)

		p.awaitSubscribed()
		p.settle()
		p.publish(message('V', 9, name, "new"))
		p.settle() // the other node of a cluster may still deliver the old message
		wantMessage(t, a, 9, protocol.Message{Kind: 'V', Fence: 9, Name: name, Body: "new"})
	})
}

func TestMailboxResubscribesAfterARestart(t *testing.T) {
	eachWaiter(t, func(t *testing.T, p *process, s *wake.Slot) {
		p.r.Kill()
		p.r.Until("the mailbox is unsubscribed", func() bool { return !p.Subscribed(channel) })
		p.r.Restart()
		p.awaitSubscribed()
		p.awaitReady("the waiter is notified to retry", s)
		p.settle()
	})
}

// A connection that has received something is replaced at once, however often it breaks.
func TestGoodConnectionIsReplacedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
		m.Subscribe(t.Context(), channel)
		for i := range 20 {
			r.Wire().Cut()
			synctest.Wait()
			time.Sleep(20 * time.Millisecond)
			synctest.Wait()
			if !m.Subscribed(channel) {
				t.Fatalf("20ms after break %d the mailbox is unsubscribed", i+1)
			}
		}
	})
}

// Some programs close their client before the mailbox.
func TestClosedClientIsRetriedWithPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		c := &counted{Client: rdb}
		m := wake.New(c)
		m.Subscribe(t.Context(), channel)
		if err := rdb.Close(); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(time.Second)
		}
		if n := c.subscribed.Load(); n > 100 {
			t.Errorf("%d connections in ten seconds, all refused; want at most 100", n)
		}
		m.Close()
	})
}

type counted struct {
	wake.Client
	subscribed atomic.Int32
}

func (c *counted) Subscribe(ctx context.Context, channels ...string) *redis.PubSub {
	if c.subscribed.Add(1) > 100_000 {
		panic("it retries without pauses")
	}
	return c.Client.Subscribe(ctx, channels...)
}

// A waiter that waits before a message is published receives it or a retry, while
// connections break, channels are added and probes run.
func TestNoMessageIsLostWithoutARetry(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		done := make(chan struct{})
		var trouble, waiters sync.WaitGroup
		trouble.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-time.After(5 * time.Millisecond):
				}
				p.Subscribe(t.Context(), fmt.Sprint("more", i%3))
				p.CheckConnection(channel)
				p.OnLost(p.Owner(), func() {})()
				if i%4 == 0 {
					redistest.WireOf(p.rdb).Cut()
				}
			}
		})
		for i := range 8 {
			waiters.Go(func() {
				name := fmt.Sprint("test:v:{", i/2, "}") // two of each
				for n := range 50 {
					s := p.OpenSlot(name)
					subscribed := p.Subscribed(channel)
					if err := p.other.Publish(t.Context(), channel, message('V', uint64(n+1), name, "")).Err(); err != nil {
						t.Error(err)
					}
					if subscribed && !p.isNotified(s) {
						t.Errorf("waiter %d was not notified of message %d", i, n)
					}
					s.Close()
				}
			})
		}
		waiters.Wait()
		close(done)
		trouble.Wait()
	})
}

// isNotified waits for a message or a retry. It calls CheckConnection as the loader does after its
// recheck timer.
func (p *process) isNotified(s *wake.Slot) bool {
	for range 100 {
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-s.Ready():
			timer.Stop()
			return true
		case <-timer.C:
			p.CheckConnection(channel)
		}
	}
	return false
}
