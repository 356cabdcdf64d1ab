package wake_test

import (
	"math"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/wake"
)

func TestWaiterReceivesItsMessage(t *testing.T) {
	eachWaiter(t, func(t *testing.T, p *process, s *wake.Slot) {
		for _, kind := range []protocol.Kind{protocol.KindValue, protocol.KindFailure, protocol.KindRetry} {
			p.publish(message(kind, 7, name, "body"))
			p.awaitReady("a message arrives", s)
			wantMessage(t, s, 7, protocol.Message{Kind: kind, Fence: 7, Name: name, Body: "body"})
			wantNone(t, "an empty slot", s, 0)
		}
	})
}

// A waiter opens its slot, registers, and then knows the fence. The message may arrive before
// that.
func TestSlotKeepsAMessageUntilTheFenceIsKnown(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		p.publish(message('V', 7, name, "too early"))
		p.settle()
		s := p.OpenSlot(name)
		defer s.Close()
		p.publish(message('V', 8, name, "kept"))
		p.settle()
		wantMessage(t, s, 8, protocol.Message{Kind: 'V', Fence: 8, Name: name, Body: "kept"})
		s.Close()
		p.publish(message('V', 9, name, "too late"))
		p.settle()
		wantNone(t, "a closed slot", s, 0)
	})
}

func TestMessageOfAnOlderLeaseDoesNotCount(t *testing.T) {
	eachWaiter(t, func(t *testing.T, p *process, s *wake.Slot) {
		for _, c := range []struct {
			sent   uint64
			waited int64
			counts bool
		}{
			{6, 7, false},
			{7, 7, true},
			{8, 7, true},
			{uint64(protocol.AnyFence), 1_795_000_000_000_000, true},
			{uint64(protocol.AnyFence), protocol.AnyFence, true},
			{math.MaxUint64, 0, false}, // forged: no fence is that high
			{1 << 63, 0, false},
		} {
			p.publish(message('V', c.sent, name, ""))
			p.awaitReady("a message arrives", s)
			if _, counts := s.Take(c.waited); counts != c.counts {
				t.Errorf("a message with fence %d counts for a waiter of %d: %v, want %v", c.sent, c.waited, counts, c.counts)
			}
			wantNone(t, "an empty slot", s, 0)
		}
	})
}

func TestSlotKeepsTheNewestMessage(t *testing.T) {
	eachWaiter(t, func(t *testing.T, p *process, s *wake.Slot) {
		publish := func(fence uint64, body string) {
			p.publish(message('V', fence, name, body))
			p.settle() // one at a time, also in a cluster
		}
		publish(5, "first")
		publish(7, "newest")
		publish(6, "overtaken")
		wantMessage(t, s, 6, protocol.Message{Kind: 'V', Fence: 7, Name: name, Body: "newest"})
		publish(7, "one")
		publish(7, "two")
		wantMessage(t, s, 7, protocol.Message{Kind: 'V', Fence: 7, Name: name, Body: "two"})
	})
}

func TestEachWaiterOfAKeyReceivesTheMessage(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		a, b, c, other := p.OpenSlot(name), p.OpenSlot(name), p.OpenSlot(name), p.OpenSlot("test:v:{other}")
		defer other.Close()
		defer c.Close()
		defer a.Close()
		b.Close()
		b.Close() // a second Close removes no other slot
		p.publish(message('R', 7, name, ""))
		p.awaitReady("the first waiter is notified", a)
		p.awaitReady("the last waiter is notified", c)
		want := protocol.Message{Kind: 'R', Fence: 7, Name: name}
		wantMessage(t, a, 7, want)
		wantMessage(t, c, 7, want)
		wantNone(t, "a closed slot", b, 0)
		wantNone(t, "a waiter for another key", other, 0)
	})
}

func TestHolderIsNotifiedWhenItsLeaseIsLost(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		waiter := p.OpenSlot(name)
		defer waiter.Close()
		var lost, otherLost atomic.Int32
		mine, others := p.Owner(), p.Owner()
		stop := p.OnLost(mine, func() { lost.Add(1) })
		defer p.OnLost(others, func() { otherLost.Add(1) })()

		p.publish(message('L', 0, name, mine))
		r.Until("the holder is notified", func() bool { return lost.Load() == 1 })
		p.publish(message('L', 0, name, mine+"0"))
		p.publish(message('L', 0, name, ""))
		p.settle()
		stop()
		p.publish(message('L', 0, name, mine))
		p.settle()
		if lost.Load() != 1 || otherLost.Load() != 0 {
			t.Errorf("notified %d times, and another holder %d times; want 1, 0", lost.Load(), otherLost.Load())
		}
		wantNone(t, "a waiter of the same key", waiter, 0)
	})
}

// A message that counts replaces a retry.
func TestMessageReplacesARetry(t *testing.T) {
	eachWaiter(t, func(t *testing.T, p *process, s *wake.Slot) {
		redistest.WireOf(p.rdb).Cut()
		p.awaitReady("the waiter is notified to retry", s)
		p.awaitSubscribed()
		p.settle()
		p.publish(message('V', 7, name, "v"))
		p.settle()
		wantMessage(t, s, 7, protocol.Message{Kind: 'V', Fence: 7, Name: name, Body: "v"})
	})
}

func TestGarbageIsIgnored(t *testing.T) {
	eachWaiter(t, func(t *testing.T, p *process, s *wake.Slot) {
		defer p.OnLost("", func() { t.Error("the holder without a name was notified") })()
		whole := message('V', 7, name, "body")
		for n := range len(whole) - len("body") {
			p.publish(whole[:n])
		}
		for _, garbage := range []string{
			"hello", strings.Repeat("\x00", 100), strings.Repeat("\xff", 100), "\xff" + whole[1:], "v" + whole[1:],
			message('V', 7, name+"x", ""), message('V', 7, "", ""), message('L', 7, name, "nobody"), string(protocol.Probe()),
		} {
			p.publish(garbage)
		}
		p.settle()
		wantNone(t, "after garbage", s, 0)
		p.CheckConnection(channel)
		for range 3 {
			p.publish(string(protocol.Probe())) // besides its own probe
		}
		p.settle()
		// On a busy machine the probe may take more than a second. Then the mailbox connects
		// again, and each slot receives a retry first.
		p.r.Until("a message arrives after the garbage", func() bool {
			p.publish(whole)
			m, ok := s.Take(7)
			if ok && m.Kind != protocol.KindRetry && (m.Kind != protocol.KindValue || m.Body != "body") {
				t.Fatalf("Take = %c %q, want the message", m.Kind, m.Body)
			}
			return ok && m.Kind == protocol.KindValue
		})
	})
}
