package wake_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/wake"
)

func TestChannelsShareOneConnection(t *testing.T) {
	eachWaiter(t, func(t *testing.T, p *process, s *wake.Slot) {
		p.Subscribe(t.Context(), "second")
		p.r.Until("the mailbox is subscribed to the second channel", func() bool { return p.Subscribed("second") })
		p.Subscribe(t.Context(), "second") // it is subscribed already
		s.Take(0)
		isReady(s)
		receive := func(channel string) {
			t.Helper()
			p.r.Until("a message arrives on "+channel, func() bool {
				if err := p.other.Publish(t.Context(), channel, message('R', 7, name, "")).Err(); err != nil {
					t.Fatal(err)
				}
				return isReady(s)
			})
		}
		receive("second")
		receive(channel)
		if p.Subscribed("third") {
			t.Error("the mailbox is subscribed to a channel that no user wants")
		}
		redistest.WireOf(p.rdb).Cut() // the new connection subscribes to both
		p.r.Until("the mailbox is subscribed to both", func() bool { return isReady(s) && p.Subscribed("second") && p.Subscribed(channel) })
		receive("second")
		receive(channel)
	})
}

func TestSubscribeWaitsForTheConfirmation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		r.Wire().Delay(10 * time.Millisecond)
		m := wake.New(rdb)
		defer m.Close()
		if m.Subscribed(channel) {
			t.Error("the mailbox is subscribed before Subscribe")
		}
		start := time.Now()
		m.Subscribe(t.Context(), channel)
		if took := time.Since(start); !m.Subscribed(channel) || took >= 100*time.Millisecond {
			t.Errorf("Subscribe returned after %v, Subscribed = %v; want the time of the confirmation", took, m.Subscribed(channel))
		}
		start = time.Now()
		m.Subscribe(t.Context(), channel)
		if took := time.Since(start); took > 0 {
			t.Errorf("a second Subscribe took %v, want no time", took)
		}
	})
}

func TestSubscribeWaitsForItsContextOr100ms(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
		r.Pause()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		m.Subscribe(ctx, channel)
		if took := time.Since(start); took != 30*time.Millisecond {
			t.Errorf("Subscribe took %v, want 30ms: until its context ended", took)
		}
		m.Subscribe(t.Context(), channel)
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("Subscribe took until %v, want 100ms after the first", took)
		}
		m.Subscribe(t.Context(), channel) // it has waited already
		if took := time.Since(start); took != 100*time.Millisecond || m.Subscribed(channel) {
			t.Errorf("the third took until %v, Subscribed = %v; want no time, and false", took, m.Subscribed(channel))
		}
		s := m.OpenSlot(name)
		defer s.Close()
		r.Resume()
		time.Sleep(10 * time.Second)
		if !m.Subscribed(channel) || !isReady(s) {
			t.Errorf("after the confirmation: Subscribed = %v, waiters notified %v; want true, true", m.Subscribed(channel), len(s.Ready()) > 0)
		}
	})
}

func TestSubscribeReturnsWhenRedisIsDown(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
		r.Kill()
		start := time.Now()
		m.Subscribe(t.Context(), channel)
		if took := time.Since(start); took > 100*time.Millisecond || m.Subscribed(channel) {
			t.Errorf("Subscribe took %v, Subscribed = %v; want at most 100ms, false", took, m.Subscribed(channel))
		}
		r.Restart()
		time.Sleep(2 * time.Second)
		if !m.Subscribed(channel) {
			t.Error("the mailbox is unsubscribed two seconds after Redis is back")
		}
	})
}

// A Redis user without the right to a channel is unsubscribed from that channel alone.
func TestRefusedChannelIsUnsubscribed(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		redistest.WireOf(rdb).Fail(1, "NOPERM No permissions to access a channel", "SUBSCRIBE")
		c := &counted{Client: rdb}
		m := wake.New(c)
		t.Cleanup(m.Close)
		m.Subscribe(t.Context(), "refused") // returns after 100ms at most
		if r.Fake() {
			time.Sleep(time.Minute)
		}
		if n := c.subscribed.Load(); n != 1 || m.Subscribed("refused") {
			t.Errorf("%d connections, Subscribed = %v; want 1, false", n, m.Subscribed("refused"))
		}
		m.Subscribe(t.Context(), channel)
		r.Until("the mailbox is subscribed to another channel", func() bool { return m.Subscribed(channel) })
	})
}

// A channel that is added during a dial is subscribed on the new connection. Subscribe does
// not wait for the dial.
func TestChannelAddedDuringADialIsSubscribed(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
		r.Pause()
		m.Subscribe(t.Context(), channel)
		start := time.Now()
		m.Subscribe(t.Context(), "second")
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("Subscribe took %v, want 100ms", took)
		}
		r.Resume()
		synctest.Wait()
		if !m.Subscribed(channel) || !m.Subscribed("second") {
			t.Errorf("Subscribed = %v, %v; want both", m.Subscribed(channel), m.Subscribed("second"))
		}
	})
}
