// Package wake hears what other processes tell this one: that a value is there,
// that a fetch failed, that a lease of ours was ended.
//
// There is one [Mailbox] for each Redis client, with one connection, whoever
// uses the client and for however many keys. Messages are hints. They may be
// lost, late or forged, and everything still works by the waiters' own timers,
// only slower; so nothing here is an error to anybody.
//
// It knows the protocol's messages and no values, no leases and no policy. It
// is used by the loader and the locker.
package wake

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	randv2 "math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// Client is what a mailbox needs of a go-redis client.
type Client interface {
	Subscribe(ctx context.Context, channels ...string) *redis.PubSub
	Publish(ctx context.Context, channel string, message any) *redis.IntCmd
}

// A Mailbox is where this process hears from others through one Redis.
type Mailbox struct {
	client  Client
	process string
	owners  atomic.Uint64

	ctx     context.Context // ends when the last user closes
	cancel  context.CancelFunc
	running sync.WaitGroup
	node    string // of a cluster: where run subscribed last; it alone uses this

	mu       sync.Mutex
	users    int
	conn     *redis.PubSub   // that is connected, if there is one
	channels map[string]*ear // that we want
	uses     map[string]int  // of channels, by users that have not stopped
	slots    map[string][]*Slot
	holds    map[string]func() // by owner
	probing  bool
	echo     chan struct{} // closed when the probe comes back
}

// An ear is a channel that we want to hear.
type ear struct {
	hears bool          // guarded by the mailbox's mu
	first chan struct{} // closed when it heard for the first time, or did not in time
	once  sync.Once     // closes first
}

func (e *ear) tried() { e.once.Do(func() { close(e.first) }) }

// The mailboxes that are open, by client.
var (
	mailboxesMu sync.Mutex
	mailboxes   = make(map[Client]*Mailbox)
)

// Open returns the mailbox of a client. It must be closed. It connects to
// nothing until somebody listens.
func Open(rdb Client) *Mailbox {
	mailboxesMu.Lock()
	defer mailboxesMu.Unlock()
	shared := reflect.ValueOf(rdb).Comparable()
	if shared && mailboxes[rdb] != nil {
		m := mailboxes[rdb]
		m.users++
		return m
	}
	name := make([]byte, 16)
	_, _ = rand.Read(name) // never fails
	m := &Mailbox{
		client: rdb, process: hex.EncodeToString(name), users: 1,
		channels: make(map[string]*ear), uses: make(map[string]int), slots: make(map[string][]*Slot), holds: make(map[string]func()),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if shared {
		mailboxes[rdb] = m
	}
	return m
}

// Close gives the mailbox back. The last one to do so ends its connection.
func (m *Mailbox) Close() {
	mailboxesMu.Lock()
	m.users--
	last := m.users == 0
	if last && reflect.ValueOf(m.client).Comparable() {
		delete(mailboxes, m.client)
	}
	mailboxesMu.Unlock()
	if !last {
		return
	}
	m.mu.Lock()
	m.cancel() // under mu, so that nobody starts another goroutine after it
	conn := m.conn
	m.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
	m.running.Wait()
}

// Use says that a user may Listen to a channel. When all who do have called stop,
// it is not listened to any more, while the mailbox stays for others; but for the
// last channel of a mailbox, as a connection needs one.
func (m *Mailbox) Use(channel string) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uses[channel]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.uses[channel]--; m.uses[channel] == 0 {
			delete(m.uses, channel)
		}
		for channel := range m.channels {
			if m.uses[channel] == 0 && len(m.channels) > 1 {
				m.unsubscribe(channel)
			}
		}
	}
}

// unsubscribe gives up a channel. The caller holds m.mu.
func (m *Mailbox) unsubscribe(channel string) {
	delete(m.channels, channel)
	if conn := m.conn; conn != nil && m.ctx.Err() == nil {
		m.running.Go(func() {
			_ = client.Call(func() error { return conn.Unsubscribe(ended, channel) }) // a failure shows as a broken connection
		})
	}
}

// Process returns the name under which the others know this process: 128 random
// bits, new for each mailbox.
func (m *Mailbox) Process() string { return m.process }

// Owner returns a new name for a lease of this process's: of every one that
// uses this Redis, whatever the lease is for.
func (m *Mailbox) Owner() string {
	return m.process + "." + strconv.FormatUint(m.owners.Add(1), 36)
}

// Listen makes the mailbox hear a channel. The first time, it waits until the
// server has confirmed the subscription, so that nothing is missed which is said
// to those who register next; but no longer than ctx or firstListen. A channel
// that is not heard by then may be heard later, and all waiters are then told to
// look again.
func (m *Mailbox) Listen(ctx context.Context, channel string) {
	select {
	case <-m.listen(channel).first:
	case <-ctx.Done():
	case <-m.ctx.Done():
	}
}

func (m *Mailbox) listen(channel string) *ear {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.channels[channel]; e != nil {
		return e
	}
	e := &ear{first: make(chan struct{})}
	if m.ctx.Err() != nil {
		e.tried()
		return e
	}
	m.channels[channel] = e
	if len(m.channels) == 1 {
		m.running.Go(m.run) // ends with m.ctx
	} else if m.conn != nil {
		m.subscribe(m.conn, channel)
	}
	time.AfterFunc(firstListen, e.tried)
	return e
}

// Hears reports whether messages on a channel are likely to arrive.
func (m *Mailbox) Hears(channel string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.channels[channel]
	return e != nil && e.hears
}

// subscribe asks for one more channel. The caller holds m.mu.
func (m *Mailbox) subscribe(conn *redis.PubSub, channel string) {
	m.running.Go(func() {
		_ = client.Call(func() error { return conn.Subscribe(ended, channel) }) // a failure shows as a broken connection
	})
}

// ended is the context of all that is done with a PubSub that is connected. When
// the connection breaks, go-redis would make another at once, and hold the
// PubSub's lock until it has; Close and Listen would have to wait for that,
// however long a Redis that hangs makes it. So it cannot, and run does it.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// run receives messages, over one connection after another.
func (m *Mailbox) run() {
	for pause := firstPause; m.ctx.Err() == nil; pause = min(2*pause, longestPause) {
		if m.serve() {
			pause = firstPause
		}
		m.sleep(pause/2 + randv2.N(pause))
	}
}

// serve receives messages over one connection, until that ends, and reports whether
// it received any.
func (m *Mailbox) serve() (heard bool) {
	_ = client.Call(func() error {
		conn := m.pubSub()
		defer func() {
			m.deaf()
			_ = conn.Close()
		}()
		heard = m.connect(conn) && m.receive(conn)
		return nil
	}) // a client that panics gives no connection
	return heard
}

// connect makes the connection and reports whether that worked. Nobody else
// knows of conn until then.
func (m *Mailbox) connect(conn *redis.PubSub) bool {
	wanted := m.wanted()
	if conn.Subscribe(m.ctx, wanted...) != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return false
	}
	m.conn = conn
	for channel := range m.channels {
		if !slices.Contains(wanted, channel) {
			m.subscribe(conn, channel) // somebody asked for it meanwhile
		}
	}
	return true
}

// receive serves a connection until it breaks or is closed. It reports whether
// anything was heard.
//
// It calls Receive without a time limit: go-redis treats a limit that passes in
// the middle of a message as if nothing had been read. A connection that is
// silent for ever is found out by Suspect instead.
func (m *Mailbox) receive(conn *redis.PubSub) (heard bool) {
	answered := m.awaitAnswer(conn)
	for {
		got, err := conn.Receive(ended)
		answered()
		if _, refused := errors.AsType[redis.Error](err); refused {
			continue // a user that may not listen; it is deaf, but the connection is good
		}
		if err != nil {
			return heard
		}
		heard = true
		m.handle(got)
	}
}

const (
	firstPause   = 10 * time.Millisecond
	longestPause = time.Second
	probeTime    = time.Second
	firstListen  = 100 * time.Millisecond
)

func (m *Mailbox) wanted() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	channels := make([]string, 0, len(m.channels))
	for channel := range m.channels {
		channels = append(channels, channel)
	}
	return channels
}

func (m *Mailbox) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.ctx.Done():
	}
}

// deaf notes that there is no connection, and messages are being missed.
func (m *Mailbox) deaf() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conn = nil
	for _, e := range m.channels {
		e.hears = false
	}
}

func (m *Mailbox) handle(got any) {
	switch got := got.(type) {
	case *redis.Subscription:
		if got.Kind == "unsubscribe" {
			m.unsubscribed(got.Channel)
		} else {
			m.confirmed(got.Channel)
		}
	case *redis.Message:
		if len(got.Payload) > protocol.LongestMessage {
			return
		}
		if message, err := protocol.ParseMessage(got.Payload); err == nil {
			m.deliver(message)
		}
	}
}

// confirmed notes that a channel is heard from now on. What was said before is
// lost for good, so everybody looks again.
func (m *Mailbox) confirmed(channel string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.channels[channel]; e != nil {
		e.hears = true
		e.tried()
	}
	for _, slots := range m.slots {
		for _, s := range slots {
			s.nudge()
		}
	}
}

// unsubscribed notes that a channel is not heard any more. If somebody has asked
// for it again meanwhile, that request may have been sent first.
func (m *Mailbox) unsubscribed(channel string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.channels[channel]; e != nil && m.conn != nil && m.ctx.Err() == nil {
		e.hears = false
		m.subscribe(m.conn, channel)
	}
}

func (m *Mailbox) deliver(message protocol.Message) {
	if message.Kind == protocol.KindLost {
		m.mu.Lock()
		lost := m.holds[message.Body]
		m.mu.Unlock()
		if lost != nil {
			lost() // not under the mutex: it ends a context, and so calls user code
		}
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch message.Kind {
	case protocol.KindProbe:
		if m.echo != nil {
			close(m.echo)
			m.echo = nil
		}
	default:
		for _, s := range m.slots[message.Name] {
			s.put(message)
		}
	}
}

// Hold calls lost, which must return at once, if a message says that the lease
// of owner was ended by somebody else. The returned function ends that; a message
// that is being delivered at that moment may still call lost.
func (m *Mailbox) Hold(owner string, lost func()) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holds[owner] = lost
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.holds, owner)
	}
}

// Suspect says that a message on this channel should have come and did not. The
// mailbox then sends itself one, and makes a new connection if it does not hear
// it: after a failover the old one may stay open, and silent, for ever.
func (m *Mailbox) Suspect(channel string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.probing || m.ctx.Err() != nil || m.channels[channel] == nil || !m.channels[channel].hears {
		return
	}
	m.probing = true
	conn, echo := m.conn, make(chan struct{})
	m.echo = echo
	m.running.Go(func() {
		if !m.probe(channel, echo) {
			_ = conn.Close() // receive returns, and run makes another connection
		}
		m.mu.Lock()
		m.probing = false
		m.mu.Unlock()
	})
}

func (m *Mailbox) probe(channel string, echo chan struct{}) bool {
	ctx, cancel := context.WithTimeout(m.ctx, probeTime)
	defer cancel()
	err := client.Call(func() error { return m.client.Publish(ctx, channel, protocol.Probe()).Err() })
	if err != nil {
		return !m.isSilent(err)
	}
	select {
	case <-echo:
		return true
	case <-ctx.Done():
		return m.ctx.Err() != nil
	}
}

// A Slot is where one waiter finds the newest message about its key.
//
// It must be there before the waiter is registered in Redis: the message may
// arrive before the answer to the registration does. It is kept then, and
// judged by its fence once that answer has told which lease is waited for.
type Slot struct {
	mailbox *Mailbox
	name    string
	ready   chan struct{} // receives when there may be a message

	mu      sync.Mutex
	newest  protocol.Message
	present bool
	again   bool // look again, whatever was said
}

// Wait returns a slot for messages about a value, or for the owner that waits
// for a lock. It must be closed.
func (m *Mailbox) Wait(name string) *Slot {
	s := &Slot{mailbox: m, name: name, ready: make(chan struct{}, 1)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slots[name] = append(m.slots[name], s)
	return s
}

// Ready receives when there may be a message to take.
func (s *Slot) Ready() <-chan struct{} { return s.ready }

// Take takes the message out of the slot, and reports whether there was one
// that counts: one of a lease not older than fence. After a reconnection it says
// to look again, unless a message has come since.
func (s *Slot) Take(fence int64) (protocol.Message, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	message, counts := s.newest, s.present && s.newest.Fence >= fence
	if !counts && s.again {
		message, counts = protocol.Message{Kind: protocol.KindLookAgain, Fence: fence, Name: s.name}, true
	}
	s.newest, s.present, s.again = protocol.Message{}, false, false
	return message, counts
}

func (s *Slot) put(message protocol.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.present && message.Fence < s.newest.Fence {
		return
	}
	s.newest, s.present = message, true
	s.signal()
}

// nudge says that messages may have been lost.
func (s *Slot) nudge() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again = true
	s.signal()
}

func (s *Slot) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Close gives the slot up.
func (s *Slot) Close() {
	m := s.mailbox
	m.mu.Lock()
	defer m.mu.Unlock()
	slots := slices.DeleteFunc(m.slots[s.name], func(other *Slot) bool { return other == s })
	if len(slots) == 0 {
		delete(m.slots, s.name)
		return
	}
	m.slots[s.name] = slots
}
