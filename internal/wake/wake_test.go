package wake_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"strings"
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

const (
	channel = "test:b:process"
	name    = "test:v:{k}"
)

// message lays a message out by hand, so that the test knows by itself what is
// said between processes.
func message(kind protocol.Kind, fence uint64, name, body string) string {
	b := binary.BigEndian.AppendUint64([]byte{byte(kind)}, fence)
	b = binary.AppendUvarint(b, uint64(len(name)))
	return string(b) + name + body
}

// A process has a mailbox that hears the channel, and a client of somebody
// else's who speaks.
type process struct {
	t *testing.T
	r redistest.Backend
	*wake.Mailbox
	rdb   redis.UniversalClient
	marks int
	other redis.UniversalClient // to one node of a cluster, which keeps what it is told in order
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
	p.Mailbox = wake.Open(p.rdb)
	t.Cleanup(p.Close)
	p.Listen(t.Context(), channel)
	p.awaitHearing()
	return p
}

func (p *process) awaitHearing() {
	p.t.Helper()
	p.r.Until("the channel is heard", func() bool { return p.Hears(channel) })
}

// tell publishes to the process.
func (p *process) tell(message string) {
	p.t.Helper()
	if err := p.other.Publish(p.t.Context(), channel, message).Err(); err != nil {
		p.t.Fatal(err)
	}
}

// settle returns when the messages so far have been delivered.
func (p *process) settle() {
	p.t.Helper()
	p.marks++
	name := fmt.Sprint("mark", p.marks) // of the last settle, one may still be on its way
	mark := p.Wait(name)
	defer mark.Close()
	p.r.Until("a message comes through", func() bool {
		p.tell(message('V', 1, name, "")) // again: the connection may just be a new one
		m, _ := mark.Take(1)
		return m.Kind == 'V' // and not that it should look again
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

func TestMessageWakesItsWaiter(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.Wait(name)
		defer s.Close()
		for _, kind := range []protocol.Kind{protocol.KindValue, protocol.KindFailure, protocol.KindLookAgain} {
			p.tell(message(kind, 7, name, "body"))
			p.awaitReady("a message comes", s)
			wantMessage(t, s, 7, protocol.Message{Kind: kind, Fence: 7, Name: name, Body: "body"})
			wantNone(t, "what was taken", s, 0)
		}
	})
}

// The slot comes before the registration in Redis, and the fence after it: the
// message may come between.
func TestMessageIsKeptUntilItsFenceIsKnown(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		p.tell(message('V', 7, name, "too early"))
		p.settle()
		s := p.Wait(name)
		defer s.Close()
		p.tell(message('V', 8, name, "kept"))
		p.settle()
		wantMessage(t, s, 8, protocol.Message{Kind: 'V', Fence: 8, Name: name, Body: "kept"})
		s.Close()
		p.tell(message('V', 9, name, "too late"))
		p.settle()
		wantNone(t, "a slot that was closed", s, 0)
	})
}

func TestMessageOfAnOlderLeaseDoesNotCount(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.Wait(name)
		defer s.Close()
		for _, c := range []struct {
			said   uint64
			waited int64
			counts bool
		}{
			{6, 7, false},
			{7, 7, true},
			{8, 7, true},
			{uint64(protocol.AnyFence), 1_795_000_000_000_000, true},
			{uint64(protocol.AnyFence), protocol.AnyFence, true},
			{math.MaxUint64, 0, false}, // forged: no fence is so high
			{1 << 63, 0, false},
		} {
			p.tell(message('V', c.said, name, ""))
			p.awaitReady("a message comes", s)
			if _, counts := s.Take(c.waited); counts != c.counts {
				t.Errorf("a message with fence %d counts for a waiter of %d: %v, want %v", c.said, c.waited, counts, c.counts)
			}
			wantNone(t, "what was judged", s, 0)
		}
	})
}

func TestNewestMessageStays(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.Wait(name)
		defer s.Close()
		tell := func(fence uint64, body string) {
			p.tell(message('V', fence, name, body))
			p.settle() // one after the other, also in a cluster
		}
		tell(5, "first")
		tell(7, "newest")
		tell(6, "overtaken")
		wantMessage(t, s, 6, protocol.Message{Kind: 'V', Fence: 7, Name: name, Body: "newest"})
		tell(7, "one")
		tell(7, "two")
		wantMessage(t, s, 7, protocol.Message{Kind: 'V', Fence: 7, Name: name, Body: "two"})
	})
}

func TestEachWaiterOfAKeyIsWoken(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		a, b, c, other := p.Wait(name), p.Wait(name), p.Wait(name), p.Wait("test:v:{other}")
		defer other.Close()
		defer c.Close()
		defer a.Close()
		b.Close()
		b.Close() // closing twice takes nobody else away
		p.tell(message('R', 7, name, ""))
		p.awaitReady("the first waiter is woken", a)
		p.awaitReady("the last waiter is woken", c)
		want := protocol.Message{Kind: 'R', Fence: 7, Name: name}
		wantMessage(t, a, 7, want)
		wantMessage(t, c, 7, want)
		wantNone(t, "who has left", b, 0)
		wantNone(t, "a waiter for another key", other, 0)
	})
}

func TestHolderHearsThatItsLeaseIsGone(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		waiter := p.Wait(name)
		defer waiter.Close()
		var lost, otherLost atomic.Int32
		mine, others := p.Owner(), p.Owner()
		stop := p.Hold(mine, func() { lost.Add(1) })
		defer p.Hold(others, func() { otherLost.Add(1) })()

		p.tell(message('L', 0, name, mine))
		r.Until("the holder is told", func() bool { return lost.Load() == 1 })
		p.tell(message('L', 0, name, mine+"0"))
		p.tell(message('L', 0, name, ""))
		p.settle()
		stop()
		p.tell(message('L', 0, name, mine))
		p.settle()
		if lost.Load() != 1 || otherLost.Load() != 0 {
			t.Errorf("told %d times, and another holder %d times; want 1, 0", lost.Load(), otherLost.Load())
		}
		wantNone(t, "a waiter of the same key", waiter, 0)
	})
}

func TestReconnectionTellsAllToLookAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		a, b, early := p.Wait(name), p.Wait("test:v:{other}"), p.Wait(name)
		defer early.Close()
		defer b.Close()
		defer a.Close()
		p.tell(message('V', 5, name, "old"))
		p.settle()
		wantMessage(t, early, 5, protocol.Message{Kind: 'V', Fence: 5, Name: name, Body: "old"})
		isReady(a)
		isReady(early)

		redistest.WireOf(p.rdb).Cut()
		for who, s := range map[string]*wake.Slot{"a": a, "b": b, "early": early} {
			p.awaitReady(who+" is told", s)
		}
		// Whatever they wait for, and whatever was said before that does not count.
		wantMessage(t, a, 1_795_000_000_000_000, protocol.Message{Kind: 'R', Fence: 1_795_000_000_000_000, Name: name})
		wantMessage(t, b, 3, protocol.Message{Kind: 'R', Fence: 3, Name: "test:v:{other}"})
		wantMessage(t, early, 1, protocol.Message{Kind: 'R', Fence: 1, Name: name})
		wantNone(t, "told once", a, 0)

		p.awaitHearing()
		p.settle()
		p.tell(message('V', 9, name, "new"))
		p.awaitReady("messages come again", a)
		wantMessage(t, a, 9, protocol.Message{Kind: 'V', Fence: 9, Name: name, Body: "new"})
	})
}

// A message that counts says more than that one should look.
func TestMessageBeatsLookingAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.Wait(name)
		defer s.Close()
		redistest.WireOf(p.rdb).Cut()
		p.awaitReady("it is told to look again", s)
		p.awaitHearing()
		p.settle()
		p.tell(message('V', 7, name, "v"))
		p.settle()
		wantMessage(t, s, 7, protocol.Message{Kind: 'V', Fence: 7, Name: name, Body: "v"})
	})
}

func TestHearingStopsWithTheConnectionAndComesBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.Wait(name)
		defer s.Close()
		r.Kill()
		r.Until("it is known that nothing is heard", func() bool { return !p.Hears(channel) })
		r.Restart()
		p.awaitHearing()
		p.awaitReady("the waiter is told to look", s)
		p.settle()
	})
}

func TestSecondChannelIsHeardOverTheSameConnection(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.Wait(name)
		defer s.Close()
		p.Listen(t.Context(), "second")
		r.Until("the second channel is heard", func() bool { return p.Hears("second") })
		p.Listen(t.Context(), "second") // it is heard already
		s.Take(0)
		isReady(s)
		hear := func(channel string) {
			t.Helper()
			r.Until(channel+" is heard", func() bool {
				if err := p.other.Publish(t.Context(), channel, message('R', 7, name, "")).Err(); err != nil {
					t.Fatal(err)
				}
				return isReady(s)
			})
		}
		hear("second")
		hear(channel)
		if p.Hears("third") {
			t.Error("a channel is heard that nobody asked for")
		}
		redistest.WireOf(p.rdb).Cut() // both are there again after it
		r.Until("both are heard", func() bool { return isReady(s) && p.Hears("second") && p.Hears(channel) })
		hear("second")
		hear(channel)
	})
}

func TestGarbageIsIgnored(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.Wait(name)
		defer s.Close()
		defer p.Hold("", func() { t.Error("a holder without a name was told") })()
		whole := message('V', 7, name, "body")
		for n := range len(whole) - len("body") {
			p.tell(whole[:n])
		}
		for _, garbage := range []string{
			"hello", strings.Repeat("\x00", 100), strings.Repeat("\xff", 100), "\xff" + whole[1:], "v" + whole[1:],
			message('V', 7, name+"x", ""), message('V', 7, "", ""), message('L', 7, name, "nobody"), string(protocol.Probe()),
		} {
			p.tell(garbage)
		}
		p.settle()
		wantNone(t, "after garbage", s, 0)
		p.Suspect(channel)
		for range 3 {
			p.tell(string(protocol.Probe())) // besides its own
		}
		p.settle()
		p.tell(whole)
		p.awaitReady("a message comes after the garbage", s)
		wantMessage(t, s, 7, protocol.Message{Kind: 'V', Fence: 7, Name: name, Body: "body"})
	})
}

func TestSuspectFindsASilentConnection(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.Wait(name)
		defer s.Close()
		redistest.WireOf(p.rdb).DropMessages(redistest.All)
		p.tell(message('V', 7, name, "lost"))
		p.Suspect(channel)
		p.awaitReady("the waiter is told to look again", s) // a new connection was made
		wantMessage(t, s, 7, protocol.Message{Kind: 'R', Fence: 7, Name: name})
		redistest.WireOf(p.rdb).Heal()
		p.awaitHearing()
		p.settle()
		p.tell(message('V', 8, name, "heard"))
		p.awaitReady("messages come again", s)
		wantMessage(t, s, 8, protocol.Message{Kind: 'V', Fence: 8, Name: name, Body: "heard"})
	})
}

func TestSuspectLeavesAGoodConnectionAlone(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		s := p.Wait(name)
		defer s.Close()
		w := redistest.WireOf(p.rdb)
		for range 3 {
			w.Reset()
			r.Until("it asks itself", func() bool {
				p.Suspect(channel) // again: it may not have done with the last question
				return len(w.Commands()) > 0
			})
			p.settle()
		}
		if r.Fake() {
			time.Sleep(time.Minute)
		}
		p.settle()
		wantNone(t, "a waiter whose connection is good", s, 0)
		if !p.Hears(channel) {
			t.Error("the connection was given up")
		}
	})
}

func TestManySuspicionsAreOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		m := wake.Open(rdb)
		defer m.Close()
		w := redistest.WireOf(rdb)
		m.Suspect(channel) // nothing is heard yet, so nothing is missing
		redistest.WireOf(rdb).Delay(80 * time.Millisecond)
		m.Listen(t.Context(), channel)
		if m.Hears(channel) {
			t.Fatal("it is heard too soon")
		}
		m.Suspect(channel)
		redistest.WireOf(rdb).Heal()
		time.Sleep(time.Second)
		m.Suspect("another")
		synctest.Wait()
		if sent := w.Commands(); len(sent) > 0 {
			t.Errorf("sent %v for channels that are not heard, want nothing", sent)
		}
		w.DropMessages(redistest.All)
		for range 10 {
			m.Suspect(channel)
			time.Sleep(50 * time.Millisecond)
		}
		if sent := w.Commands(); len(sent) != 1 {
			t.Errorf("sent %v, want one PUBLISH", sent)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		w.Reset()
		m.Suspect(channel) // the next suspicion is a new one
		synctest.Wait()
		if sent := w.Commands(); len(sent) != 1 {
			t.Errorf("sent %v, want another PUBLISH", sent)
		}
	})
}

// If the question itself cannot be sent, that says nothing about the connection
// on which we listen.
func TestSuspectWithoutAnAnswerChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		m := wake.Open(rdb)
		defer m.Close()
		m.Listen(t.Context(), channel)
		s := m.Wait(name)
		defer s.Close()
		redistest.WireOf(rdb).Fail(1, "NOPERM this user has no permissions to run the 'publish' command")
		m.Suspect(channel)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !m.Hears(channel) || isReady(s) {
			t.Errorf("the connection was given up because of an error of PUBLISH")
		}
	})
}

func TestSilenceWhileRedisHangsEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb, other := r.Client(), r.Client()
		m := wake.Open(rdb)
		defer m.Close()
		m.Listen(t.Context(), channel)
		s := m.Wait(name)
		defer s.Close()
		r.Pause()
		m.Suspect(channel)
		time.Sleep(10 * time.Second)
		r.Resume()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !m.Hears(channel) {
			t.Error("nothing is heard after the pause")
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

func TestListenWaitsForTheServersConfirmation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		r.Wire().Delay(10 * time.Millisecond)
		m := wake.Open(rdb)
		defer m.Close()
		if m.Hears(channel) {
			t.Error("a channel is heard before anybody asked for it")
		}
		start := time.Now()
		m.Listen(t.Context(), channel)
		if took := time.Since(start); !m.Hears(channel) || took >= 100*time.Millisecond {
			t.Errorf("Listen returned after %v, heard: %v; want as soon as it is", took, m.Hears(channel))
		}
		start = time.Now()
		m.Listen(t.Context(), channel)
		if took := time.Since(start); took > 0 {
			t.Errorf("to listen to what is heard already took %v", took)
		}
	})
}

func TestListenDoesNotWaitForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		m := wake.Open(r.Client())
		defer m.Close()
		r.Pause()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		m.Listen(ctx, channel)
		if took := time.Since(start); took != 30*time.Millisecond {
			t.Errorf("Listen took %v, want 30ms: until its context ended", took)
		}
		m.Listen(t.Context(), channel)
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("Listen took until %v, want 100ms after the first", took)
		}
		m.Listen(t.Context(), channel) // it has tried
		if took := time.Since(start); took != 100*time.Millisecond || m.Hears(channel) {
			t.Errorf("the third took until %v, heard: %v; want no time, and false", took, m.Hears(channel))
		}
		s := m.Wait(name)
		defer s.Close()
		r.Resume()
		time.Sleep(10 * time.Second)
		if !m.Hears(channel) || !isReady(s) {
			t.Errorf("when it is heard after all: Hears %v, waiters told %v; want true, true", m.Hears(channel), len(s.Ready()) > 0)
		}
	})
}

func TestListenReturnsWhenRedisIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		r.Kill()
		m := wake.Open(r.Client())
		defer m.Close()
		start := time.Now()
		m.Listen(t.Context(), channel)
		if took := time.Since(start); took > 100*time.Millisecond || m.Hears(channel) {
			t.Errorf("Listen took %v, heard: %v; want at most 100ms, false", took, m.Hears(channel))
		}
		r.Restart()
		time.Sleep(2 * time.Second)
		if !m.Hears(channel) {
			t.Error("the channel is not heard two seconds after Redis is back")
		}
	})
}

func TestUsersOfAClientShareAMailbox(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		rdb, other := r.Client(), r.Client()
		a, b := wake.Open(rdb), wake.Open(rdb)
		stranger := wake.Open(other)
		defer stranger.Close()
		if a.Process() != b.Process() || a.Process() == stranger.Process() || len(a.Process()) != 32 {
			t.Errorf("processes %q, %q and, of another client, %q; want the same twice, and another", a.Process(), b.Process(), stranger.Process())
		}
		a.Listen(t.Context(), channel)
		r.Until("b hears what a listens to", func() bool { return b.Hears(channel) })
		b.Listen(t.Context(), channel)
		if stranger.Hears(channel) {
			t.Error("another client's mailbox hears it too")
		}
		listeners := func() int64 {
			var n int64
			count := func(ctx context.Context, rdb *redis.Client) error {
				atomic.AddInt64(&n, rdb.PubSubNumSub(ctx, channel).Val()[channel])
				return nil
			}
			if c, ok := other.(*redis.ClusterClient); ok {
				_ = c.ForEachMaster(t.Context(), count)
			} else {
				_ = count(t.Context(), other.(*redis.Client))
			}
			return n
		}
		if n := listeners(); n != 1 {
			t.Errorf("%d connections listen, want 1", n)
		}
		a.Close()
		if !b.Hears(channel) || listeners() != 1 {
			t.Error("b does not hear any more because a closed")
		}
		process := b.Process()
		b.Close()
		r.Until("nobody listens any more", func() bool { return listeners() == 0 })
		c := wake.Open(rdb)
		defer c.Close()
		if c.Process() == process {
			t.Error("a mailbox that was closed was opened again under the same name")
		}
		c.Listen(t.Context(), channel)
		r.Until("the new one hears", func() bool { return c.Hears(channel) })
	})
}

// A client of any type will do, also one that cannot be found in a map.
func TestClientsThatCannotBeCompared(t *testing.T) {
	type never struct {
		redis.UniversalClient
		_ []int
	}
	type sometimes struct {
		redis.UniversalClient
		more any
	}
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		for _, client := range []wake.Client{never{UniversalClient: rdb}, sometimes{rdb, []int{1}}} {
			a, b := wake.Open(client), wake.Open(client)
			if a.Process() == b.Process() {
				t.Errorf("%T: two mailboxes have the same name", client)
			}
			a.Listen(t.Context(), channel)
			if !a.Hears(channel) {
				t.Errorf("%T: nothing is heard", client)
			}
			a.Close()
			b.Close()
		}
		same := sometimes{rdb, 1}
		a, b := wake.Open(same), wake.Open(same)
		if a.Process() != b.Process() {
			t.Error("equal clients do not share a mailbox")
		}
		a.Close()
		b.Close()
	})
}

func TestOwnersAreAllDifferent(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{}) // never connects
	defer rdb.Close()
	a, b := wake.Open(rdb), wake.Open(rdb)
	defer b.Close()
	defer a.Close()
	var mu sync.Mutex
	seen := map[string]bool{}
	var users sync.WaitGroup
	for i := range 8 {
		users.Go(func() {
			for range 100 {
				owner := []*wake.Mailbox{a, b}[i%2].Owner()
				mu.Lock()
				if seen[owner] {
					t.Errorf("owner %q twice", owner)
				}
				seen[owner] = true
				mu.Unlock()
				if process, number, ok := strings.Cut(owner, "."); !ok || process != a.Process() || number == "" {
					t.Errorf("owner %q does not tell its process, %q", owner, a.Process())
				}
			}
		})
	}
	users.Wait()
}

// The bubble fails if anything is left behind.
func TestCloseLeavesNothing(t *testing.T) {
	for name, before := range map[string]func(t *testing.T, r redistest.Redis, m *wake.Mailbox){
		"when nobody listens": func(*testing.T, redistest.Redis, *wake.Mailbox) {},
		"when all is well": func(t *testing.T, _ redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Listen(t.Context(), channel)
		},
		"before it has begun": func(t *testing.T, _ redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			go m.Listen(t.Context(), channel)
		},
		"while Redis is down": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			r.Kill()
			m.Listen(t.Context(), channel)
		},
		"while Redis hangs": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			r.Pause()
			m.Listen(t.Context(), channel)
		},
		"while Redis hangs no more": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			r.Pause()
			m.Listen(t.Context(), channel)
			time.AfterFunc(500*time.Millisecond, r.Resume)
		},
		"while it asks itself": func(t *testing.T, _ redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Listen(t.Context(), channel)
			m.Suspect(channel)
		},
		"while it asks in vain": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Listen(t.Context(), channel)
			r.Wire().DropMessages(redistest.All)
			m.Suspect(channel)
			synctest.Wait()
		},
		"while it connects again": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Listen(t.Context(), channel)
			r.Pause()
			r.Wire().Cut()
			synctest.Wait()
		},
		"after Redis went away": func(t *testing.T, r redistest.Redis, m *wake.Mailbox) {
			t.Helper()
			m.Listen(t.Context(), channel)
			r.Kill()
			time.Sleep(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := redistest.Bubble(t)
				rdb := r.Client()
				rdb.AddHook(dialer{})
				m := wake.Open(rdb)
				before(t, r, m)
				start := time.Now()
				m.Close()
				if took := time.Since(start); took > time.Second { // the client's own time limit
					t.Errorf("Close took %v, want at most 1s", took)
				}
				start = time.Now()
				m.Listen(t.Context(), "after") // starts nothing, and does not wait
				m.Suspect(channel)
				if took := time.Since(start); took > 0 || m.Hears("after") {
					t.Errorf("Listen after Close took %v, heard: %v; want no time, false", took, m.Hears("after"))
				}
			})
		})
	}
}

func TestCloseWaitsForWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		m := wake.Open(r.Client())
		r.Pause()
		m.Listen(t.Context(), channel)
		time.AfterFunc(500*time.Millisecond, r.Resume)
		start := time.Now()
		m.Close()
		if took := time.Since(start); took != 500*time.Millisecond {
			t.Errorf("Close took %v, want 500ms: until the connection that was being made is given up", took)
		}
		synctest.Wait()
		if n := r.PubSubNumSub(channel)[channel]; n != 0 {
			t.Errorf("%d connections still listen", n)
		}
	})
}

// However often the connection breaks, if it was good it is soon there again.
func TestGoodConnectionIsMadeAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb := r.Client()
		m := wake.Open(rdb)
		defer m.Close()
		m.Listen(t.Context(), channel)
		for i := range 20 {
			redistest.WireOf(rdb).Cut()
			synctest.Wait()
			time.Sleep(20 * time.Millisecond)
			synctest.Wait()
			if !m.Hears(channel) {
				t.Fatalf("20ms after break %d nothing is heard", i+1)
			}
		}
	})
}

// A dialer is a hook that does not dial when the context has ended, as net.Dialer
// would not.
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

// A user of Redis that may not subscribe is deaf, and nothing worse.
func TestChannelThatIsRefusedIsNotHeard(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		rdb := r.Client()
		redistest.WireOf(rdb).Fail(1, "NOPERM No permissions to access a channel", "SUBSCRIBE")
		c := &counted{Client: rdb}
		m := wake.Open(c)
		t.Cleanup(m.Close)
		m.Listen(t.Context(), "refused") // no longer than it may take
		if r.Fake() {
			time.Sleep(time.Minute)
		}
		if n := c.subscribed.Load(); n != 1 || m.Hears("refused") {
			t.Errorf("%d connections, heard: %v; want 1, false", n, m.Hears("refused"))
		}
		m.Listen(t.Context(), channel)
		r.Until("another channel is heard", func() bool { return m.Hears(channel) })
	})
}

// Listening to another channel while there is no connection does not wait for
// one, and is not forgotten.
func TestChannelThatIsAskedForDuringAConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		m := wake.Open(r.Client())
		defer m.Close()
		r.Pause()
		m.Listen(t.Context(), channel)
		start := time.Now()
		m.Listen(t.Context(), "second")
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("Listen took %v, want 100ms", took)
		}
		r.Resume()
		synctest.Wait()
		if !m.Hears(channel) || !m.Hears("second") {
			t.Errorf("heard: %v, %v; want both", m.Hears(channel), m.Hears("second"))
		}
	})
}

// Some programs close their client first.
func TestClientThatIsClosedIsNotAskedWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redistest.Bubble(t).Client()
		c := &counted{Client: rdb}
		m := wake.Open(c)
		m.Listen(t.Context(), channel)
		if err := rdb.Close(); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(time.Second)
		}
		if n := c.subscribed.Load(); n > 100 {
			t.Errorf("%d new connections in ten seconds; each was refused", n)
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
		panic("it asks without end")
	}
	return c.Client.Subscribe(ctx, channels...)
}

// Whatever happens at once, nobody who waits from before a message until long
// after it misses it: it hears it, or is told to look again.
func TestNobodyMissesAMessageUnawares(t *testing.T) {
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
				p.Listen(t.Context(), fmt.Sprint("more", i%3))
				p.Suspect(channel)
				p.Hold(p.Owner(), func() {})()
				if i%4 == 0 {
					redistest.WireOf(p.rdb).Cut()
				}
			}
		})
		for i := range 8 {
			waiters.Go(func() {
				name := fmt.Sprint("test:v:{", i/2, "}") // two of each
				for n := range 50 {
					s := p.Wait(name)
					heard := p.Hears(channel)
					if err := p.other.Publish(t.Context(), channel, message('V', uint64(n+1), name, "")).Err(); err != nil {
						t.Error(err)
					}
					if heard && !p.hearsOrLooks(s) {
						t.Errorf("waiter %d heard nothing of message %d", i, n)
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

// hearsOrLooks waits for a message. It asks for help as the loader does when its
// timer has ended.
func (p *process) hearsOrLooks(s *wake.Slot) bool {
	for range 100 {
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-s.Ready():
			timer.Stop()
			return true
		case <-timer.C:
			p.Suspect(channel)
		}
	}
	return false
}
