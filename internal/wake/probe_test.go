package wake_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/wake"
)

func TestCheckConnectionFindsASilentConnection(t *testing.T) {
	eachWaiter(t, func(t *testing.T, p *process, s *wake.Slot) {
		redistest.WireOf(p.rdb).DropMessages(redistest.All)
		p.publish(message('V', 7, name, "lost"))
		p.CheckConnection(channel)
		p.awaitReady("the waiter is notified to retry", s) // a new connection was made
		wantMessage(t, s, 7, protocol.Message{Kind: 'R', Fence: 7, Name: name})
		redistest.WireOf(p.rdb).Heal()
		p.awaitSubscribed()
		p.settle()
		p.publish(message('V', 8, name, "received"))
		p.settle() // the other node of a cluster may still deliver the lost message
		wantMessage(t, s, 8, protocol.Message{Kind: 'V', Fence: 8, Name: name, Body: "received"})
	})
}

func TestCheckConnectionKeepsAGoodConnection(t *testing.T) {
	eachWaiter(t, func(t *testing.T, p *process, s *wake.Slot) {
		w := redistest.WireOf(p.rdb)
		for range 3 {
			w.Reset()
			p.r.Until("it sends a probe", func() bool {
				p.CheckConnection(channel) // again: the last probe may still run
				return len(w.Commands()) > 0
			})
			p.settle()
		}
		if p.r.Fake() {
			time.Sleep(time.Minute)
		}
		p.settle()
		wantNone(t, "a waiter whose connection is good", s, 0)
		if !p.Subscribed(channel) {
			t.Error("the mailbox closed the connection")
		}
	})
}

func TestCheckConnectionSendsOneProbeAtATime(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
		w := r.Wire()
		m.CheckConnection(channel) // not subscribed yet, so no message is missing
		r.Wire().Delay(80 * time.Millisecond)
		m.Subscribe(t.Context(), channel)
		if m.Subscribed(channel) {
			t.Fatal("it is subscribed too early")
		}
		m.CheckConnection(channel)
		r.Wire().Heal()
		time.Sleep(time.Second)
		m.CheckConnection("another")
		synctest.Wait()
		if sent := w.Commands(); len(sent) > 0 {
			t.Errorf("sent %v for channels without a subscription, want nothing", sent)
		}
		w.DropMessages(redistest.All)
		for range 10 {
			m.CheckConnection(channel)
			time.Sleep(50 * time.Millisecond)
		}
		if sent := w.Commands(); len(sent) != 1 {
			t.Errorf("sent %v, want one PUBLISH", sent)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		w.Reset()
		m.CheckConnection(channel) // sends the next probe
		synctest.Wait()
		if sent := w.Commands(); len(sent) != 1 {
			t.Errorf("sent %v, want another PUBLISH", sent)
		}
	})
}

// An error of PUBLISH does not concern the mailbox's own connection.
func TestProbeThatCannotBeSentKeepsTheConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
		m.Subscribe(t.Context(), channel)
		s := m.OpenSlot(name)
		defer s.Close()
		r.Wire().Fail(1, "NOPERM this user has no permissions to run the 'publish' command")
		m.CheckConnection(channel)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !m.Subscribed(channel) || isReady(s) {
			t.Errorf("the mailbox closed the connection after an error of PUBLISH")
		}
	})
}

func TestMailboxReconnectsWhenRedisNoLongerHangs(t *testing.T) {
	inBubble(t, func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
		other := r.Client()
		m.Subscribe(t.Context(), channel)
		s := m.OpenSlot(name)
		defer s.Close()
		r.Pause()
		m.CheckConnection(channel)
		time.Sleep(10 * time.Second)
		r.Resume()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !m.Subscribed(channel) {
			t.Error("the mailbox is unsubscribed after the pause")
		}
		isReady(s)
		s.Take(0)
		if err := other.Publish(t.Context(), channel, message('V', 7, name, "v")).Err(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantMessage(t, s, 7, protocol.Message{Kind: 'V', Fence: 7, Name: name, Body: "v"})
	})
}
