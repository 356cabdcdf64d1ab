package near

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/redis/go-redis/v9/push"

	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

const (
	every = time.Second     // a beat is sent
	lasts = 3 * time.Second // what it proves, from when it was sent

	firstPause   = 10 * time.Millisecond
	longestPause = time.Second
	patience     = time.Second // for each answer while a connection is set up
)

var (
	errSilent = errors.New("no changes are heard of any more")
	errEnded  = errors.New("the connection has ended")
)

// A link hears of the changes on one node, over one connection after another.
type link struct {
	hub    *Hub
	node   string
	opt    *redis.Options
	ctx    context.Context
	cancel context.CancelFunc

	vouch atomic.Pointer[vouch] // nil while nothing is vouched for

	mu      sync.Mutex // orders changes of vouch
	session *session
}

func newLink(h *Hub, node string, opt *redis.Options) *link {
	k := &link{hub: h, node: node, opt: opt}
	k.ctx, k.cancel = context.WithCancel(h.ctx)
	return k
}

// run listens until the link's context ends.
func (k *link) run() {
	for pause := firstPause; k.ctx.Err() == nil; {
		s := &session{link: k, sent: make(map[string]int64)}
		s.ctx, s.cancel = context.WithCancelCause(k.ctx)
		k.mu.Lock()
		k.session = s
		k.mu.Unlock()
		err := client.Call(s.run)
		s.cancel(nil)
		k.end()
		if s.vouched.Load() {
			pause = firstPause // it was of use
		}
		if errors.Is(err, errAgain) {
			continue
		}
		if k.ctx.Err() == nil {
			k.hub.notify(false, err)
		}
		sleep(k.ctx, pause/2+rand.N(pause))
		pause = min(2*pause, longestPause)
	}
}

// errAgain is why a session ends that another is to follow at once.
var errAgain = errors.New("there is more to listen to")

// again ends the session, for another one. Its vouch ends before again returns: it
// is not for what the other one will listen to.
func (k *link) again() {
	k.mu.Lock()
	s := k.session
	k.mu.Unlock()
	if s != nil {
		k.end()
		s.cancel(errAgain)
	}
}

// end ends the vouch. A copy may be of a slot that a cluster has meanwhile given
// to another node, so all copies go.
func (k *link) end() {
	k.mu.Lock()
	v := k.vouch.Swap(nil)
	if v != nil {
		v.until.Store(0)
	}
	k.session = nil
	k.mu.Unlock()
	if v != nil {
		k.hub.giveUp()
	}
}

// renew ends the vouch and begins another one, which lasts as long as that would
// have. It is what FLUSHALL asks for.
func (k *link) renew() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v := k.vouch.Load(); v != nil {
		k.vouch.Store(lasting(v.until.Swap(0)))
	}
}

func lasting(until int64) *vouch {
	v := &vouch{}
	v.until.Store(until)
	return v
}

// extend has the vouch last until then, if the session is the link's.
func (k *link) extend(s *session, until int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch v := k.vouch.Load(); {
	case k.session != s:
	case v == nil:
		s.vouched.Store(true)
		k.vouch.Store(lasting(until))
	default:
		v.until.Store(max(v.until.Load(), until))
	}
}

// A session is one connection.
type session struct {
	link   *link
	ctx    context.Context
	cancel context.CancelCauseFunc

	values, changes []string
	beats           string // the channel, and how the names of beats begin
	dialed, vouched atomic.Bool
	refusal         error // why the server does not tell of changes by itself; known once connected

	mu    sync.Mutex
	sent  map[string]int64 // beats that were not heard yet, and when they were sent
	until int64            // when it is given up if it hears none
}

// run listens until the session ends, and returns why. It receives without a time
// limit: go-redis treats a limit that passes in the middle of a push as if
// nothing had been read. That nothing is heard is found out by the beats.
func (s *session) run() error {
	h := s.link.hub
	s.values, s.changes = h.names()
	if len(s.values) == 0 {
		<-s.ctx.Done() // until there are listeners again
		return context.Cause(s.ctx)
	}
	// Of all our namespaces one is as good as another.
	s.beats = protocol.Beats(s.changes[0], h.process)
	rdb := redis.NewClient(s.options())
	defer func() { _ = rdb.Close() }()
	if err := rdb.RegisterPushNotificationHandler("invalidate", s, false); err != nil {
		return err
	}
	conn := rdb.Subscribe(s.ctx)
	stop := context.AfterFunc(s.ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	if err := conn.Subscribe(s.ctx, s.beats); err != nil {
		return err
	}
	if s.refusal != nil {
		h.notify(true, s.refusal)
		if err := conn.Subscribe(s.ctx, s.changes...); err != nil {
			return err
		}
	}
	var beating sync.WaitGroup
	defer beating.Wait()
	defer s.cancel(nil)
	for wanted := 1 + len(s.changes); ; {
		got, err := conn.Receive(s.ctx)
		if err != nil {
			if s.ctx.Err() != nil {
				err = context.Cause(s.ctx)
			}
			return err
		}
		switch got := got.(type) {
		case *redis.Subscription:
			wanted--
			if got.Count == 1 && s.refusal == nil || wanted == 0 {
				beating.Go(s.beat) // ends with s.ctx
			}
		case *redis.Message:
			s.changed(got.Payload)
		}
	}
}

// options are the user's, for one RESP3 connection of our own.
func (s *session) options() *redis.Options {
	opt := *s.link.opt
	opt.Protocol = 3
	opt.PoolSize, opt.MinIdleConns, opt.MaxIdleConns, opt.MaxActiveConns = 1, 0, 0, 0
	opt.MaxRetries = -1
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout = patience, patience, patience
	opt.ContextTimeoutEnabled = true
	opt.PushNotificationProcessor = nil // or ours would be the user's
	opt.ClientSideCache, opt.ClientSideCacheConfig = nil, nil
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	dial, connected := opt.Dialer, opt.OnConnect
	opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if s.dialed.Load() {
			return nil, errEnded // go-redis would connect again by itself: one connection is one session
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		s.dialed.Store(true)
		context.AfterFunc(s.ctx, func() { _ = c.Close() })
		return &watched{c, s}, nil
	}
	opt.OnConnect = func(ctx context.Context, c *redis.Conn) error {
		if connected != nil {
			if err := connected(ctx, c); err != nil {
				return err
			}
		}
		return s.track(ctx, c)
	}
	return &opt
}

// track asks the server to tell of changes.
func (s *session) track(ctx context.Context, c *redis.Conn) error {
	// In RESP2, to which go-redis falls back, it would take the command and tell
	// nothing.
	err := c.Process(ctx, redis.NewCmd(ctx, "hello", "3"))
	if err == nil {
		args := []any{"client", "tracking", "on", "bcast", "prefix", s.beats}
		for _, v := range s.values {
			args = append(args, "prefix", v)
		}
		err = c.Process(ctx, redis.NewStatusCmd(ctx, args...))
	}
	if _, said := errors.AsType[redis.Error](err); said && !isPassing(err) {
		s.refusal, err = err, nil
	}
	return err
}

// isPassing reports whether a server says that it is not ready yet.
func isPassing(err error) bool {
	for _, prefix := range []string{"LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "NOAUTH", "WRONGPASS"} {
		if redis.HasErrorPrefix(err, prefix) {
			return true
		}
	}
	return false
}

// watched is a connection that is given up as soon as a read fails: go-redis
// would first try to connect again, and say so afterwards.
type watched struct {
	net.Conn
	session *session
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil {
		w.session.link.lost(w.session)
	}
	return n, err
}

// lost ends the vouch of a session.
func (k *link) lost(s *session) {
	k.mu.Lock()
	current := k.session == s
	k.mu.Unlock()
	if current {
		k.end()
	}
}

// HandlePushNotification is called with ["invalidate", [names]], or with nil for
// the names if the whole database was emptied.
func (s *session) HandlePushNotification(_ context.Context, _ push.NotificationHandlerContext, message []any) error {
	if len(message) < 2 || message[1] == nil {
		s.link.hub.giveUp() // those of other nodes too, which most likely are emptied as well
		return nil
	}
	names, _ := message[1].([]any)
	for _, name := range names {
		if name, ok := name.(string); ok {
			s.changed(name)
		}
	}
	return nil
}

// changed hears that a value has changed, or a beat.
func (s *session) changed(name string) {
	if !strings.HasPrefix(name, s.beats) {
		s.link.hub.Changed(name)
		return
	}
	s.mu.Lock()
	sent, ok := s.sent[name] // not when a beat expires, which is told too
	delete(s.sent, name)
	if ok {
		s.until = sent + int64(lasts)
	}
	s.mu.Unlock()
	if ok {
		s.link.extend(s, sent+int64(lasts-tick))
	}
}

// beat sends beats until the session ends, and ends it if they are not heard.
func (s *session) beat() {
	s.until = now() + int64(lasts)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if err := client.Call(s.send); err != nil && s.ctx.Err() == nil {
			s.link.hub.notify(false, fmt.Errorf("a beat: %w", err))
		}
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		silent := now() >= s.until
		s.mu.Unlock()
		if silent {
			s.cancel(errSilent)
			return
		}
	}
}

// send sends a beat over the user's client: that way it goes where the changes go.
func (s *session) send() error {
	h := s.link.hub
	ctx, cancel := context.WithTimeout(s.ctx, lasts)
	defer cancel()
	name := s.beats + strconv.FormatUint(h.beats.Add(1), 36)
	if h.cluster != nil && s.refusal == nil {
		var err error
		if name, err = s.onNode(ctx, name); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.sent[name] = now()
	s.mu.Unlock()
	if s.refusal != nil {
		return h.client.Publish(ctx, s.beats, name).Err()
	}
	return h.client.Set(ctx, name, "", 2*lasts).Err()
}

// onNode adds a hash tag to a name that makes it a name of the link's node.
func (s *session) onNode(ctx context.Context, name string) (string, error) {
	for i := range 100_000 {
		tagged := name + "{" + strconv.Itoa(i) + "}"
		master, err := s.link.hub.cluster.MasterForKey(ctx, tagged)
		if err != nil {
			return "", err
		}
		if nodeOf(master) == s.link.node {
			return tagged, nil
		}
	}
	return "", errors.New("the node has no slots")
}
