package redistest

import (
	"bytes"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A conn is a connection of a client. It passes on what is sent command by
// command, and what is received message by message where they may be dropped.
type conn struct {
	net.Conn // the real one
	wire     *Wire
	deadline *deadline     // of reading
	closed   chan struct{} // closed when the client has closed it, or it was cut
	once     sync.Once     // closes closed
	wasCut   atomic.Bool

	subscribed atomic.Bool // a SUBSCRIBE was sent, or CLIENT TRACKING
	losing     atomic.Bool // the next thing received is lost
	answered   atomic.Bool // something was received since the last command

	sending sync.Mutex // guards:
	partial []byte     // the beginning of a command
	backlog []byte     // commands that wait for Resume

	receiving sync.Mutex // guards:
	buf       []byte     // for the real Read
	arrived   []packet   // received, and looked at when due
	begun     []byte     // the beginning of a message
	ready     []byte     // for the client
}

// A packet is what was received by one Read.
type packet struct {
	data []byte
	due  time.Time
}

func newConn(w *Wire, real net.Conn) *conn {
	return &conn{
		Conn:     real,
		wire:     w,
		deadline: newDeadline(),
		closed:   make(chan struct{}),
		buf:      make([]byte, 4096),
	}
}

func (c *conn) Write(b []byte) (int, error) {
	c.sending.Lock()
	defer c.sending.Unlock()
	if c.isClosed() {
		return 0, c.errClosed(os.NewSyscallError("write", syscall.EPIPE))
	}
	c.backlog = append(c.backlog, c.commands(b)...)
	return len(b), c.forward()
}

// commands takes what was written and returns the commands that are now whole,
// as they shall be sent. Its callers hold sending.
func (c *conn) commands(b []byte) []byte {
	var whole []byte
	c.partial = append(c.partial, b...)
	for len(c.partial) > 0 {
		length := frame(c.partial)
		if length == 0 {
			break
		}
		if length < 0 { // Not RESP: the server will say so.
			length = len(c.partial)
		}
		whole = append(whole, c.command(c.partial[:length])...)
		c.partial = c.partial[length:]
	}
	return whole
}

// command returns what shall be sent instead of a command.
func (c *conn) command(b []byte) []byte {
	args := bulks(b, 2)
	name := strings.ToUpper(args[0])
	if strings.HasSuffix(name, "SUBSCRIBE") || name == "CLIENT" && strings.EqualFold(args[1], "TRACKING") {
		c.subscribed.Store(true)
	}
	newTrip := !bySelf[name] && c.answered.Swap(false)
	fail, lose := c.wire.send(name, newTrip)
	if lose {
		c.losing.Store(true)
	}
	if fail != "" {
		// The server itself says it, so that it comes in its turn.
		return command("EVAL", "return redis.error_reply(ARGV[1])", "0", fail)
	}
	return b
}

// forward sends the backlog, unless the wire is paused. Its callers hold
// sending.
func (c *conn) forward() error {
	if paused, _ := c.wire.isPaused(); paused || len(c.backlog) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.backlog)
	c.backlog = nil
	return err
}

// flush sends what was held back by a pause, also for a client that has gone.
func (c *conn) flush() {
	c.sending.Lock()
	defer c.sending.Unlock()
	if len(c.backlog) > 0 {
		// The client's own deadline may have passed.
		_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	}
	_ = c.forward()
	if c.isClosed() && len(c.backlog) == 0 {
		_ = c.hangUp()
	}
}

func (c *conn) Read(b []byte) (int, error) {
	c.receiving.Lock()
	defer c.receiving.Unlock()
	for len(c.ready) == 0 {
		if err := c.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.ready)
	c.ready = c.ready[n:]
	c.answered.Store(true)
	return n, nil
}

// receive makes ready what is whole and not to be dropped of what arrived first.
// If the deadline passes before that is due, the next receive goes on with it.
func (c *conn) receive() error {
	if len(c.arrived) == 0 {
		if err := c.awaitResume(); err != nil {
			return err
		}
		if err := c.take(); err != nil {
			return err
		}
	}
	if err := c.awaitDue(c.arrived[0].due); err != nil {
		return err
	}
	if err := c.awaitResume(); err != nil {
		return err
	}
	data := c.arrived[0].data
	c.arrived = c.arrived[1:]
	if c.subscribed.Load() {
		data = c.messages(data)
	}
	c.ready = append(c.ready, data...)
	return nil
}

// take waits until something arrives.
func (c *conn) take() error {
	n, err := c.Conn.Read(c.buf)
	switch {
	case n == 0 && c.isClosed():
		return c.errClosed(io.EOF)
	case n == 0:
		return err
	case c.losing.Load():
		c.cut()
		return os.NewSyscallError("read", syscall.ECONNRESET)
	}
	c.arrived = append(c.arrived, packet{bytes.Clone(c.buf[:n]), time.Now().Add(c.wire.roundTrip())})
	return nil
}

// awaitDue waits until due, and takes what arrives meanwhile: only so is it
// known when that was. Else a value of many packets would be delayed once for
// each, and a message once more by each that came shortly before.
func (c *conn) awaitDue(due time.Time) error {
	if !time.Now().Before(due) {
		return nil
	}
	end := c.deadline.time()
	defer func() { _ = c.Conn.SetReadDeadline(end) }()
	if end.IsZero() || due.Before(end) {
		_ = c.Conn.SetReadDeadline(due)
	}
	for c.take() == nil {
	}
	// Whatever ended that: if it was the end of the connection, the packet still
	// comes.
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	return await(c, timer.C)
}

// messages takes what was received and returns what is now whole, without the
// messages that are to be dropped. Its callers hold receiving.
func (c *conn) messages(b []byte) []byte {
	var whole []byte
	c.begun = append(c.begun, b...)
	for len(c.begun) > 0 {
		length := frame(c.begun)
		if length == 0 {
			break
		}
		if length < 0 {
			length = len(c.begun)
		}
		if !c.drops(c.begun[:length]) {
			whole = append(whole, c.begun[:length]...)
		}
		c.begun = c.begun[length:]
	}
	return whole
}

func (c *conn) drops(b []byte) bool {
	switch values := bulks(b, 3); values[0] {
	case "message", "smessage":
		return c.wire.drops(values[1])
	case "pmessage":
		return c.wire.drops(values[1], values[2])
	case "invalidate":
		return c.wire.drops("__redis__:invalidate")
	}
	return false
}

// awaitResume waits while the wire is paused.
func (c *conn) awaitResume() error {
	for {
		paused, changed := c.wire.isPaused()
		if !paused {
			return nil
		}
		if err := await(c, changed); err != nil {
			return err
		}
	}
}

// await waits for something while c is open and its deadline has not passed.
func await[T any](c *conn, something <-chan T) error {
	select {
	case <-something:
		return nil
	case <-c.closed:
		return c.errClosed(io.EOF)
	case <-c.deadline.passed():
		return os.ErrDeadlineExceeded
	}
}

func (c *conn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// errClosed returns what a closed conn says: ifCut, or that the client itself
// has closed it.
func (c *conn) errClosed(ifCut error) error {
	if c.wasCut.Load() {
		return ifCut
	}
	return net.ErrClosed
}

// Close closes c. What is held back by a pause will still be sent.
func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	if paused, _ := c.wire.isPaused(); paused {
		// Resume hangs up; but nobody shall go on reading.
		return c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
	return c.hangUp()
}

// cut ends c as if the other side had.
func (c *conn) cut() {
	c.once.Do(func() {
		c.wasCut.Store(true)
		close(c.closed)
	})
	_ = c.hangUp()
}

func (c *conn) hangUp() error {
	c.wire.disconnect(c)
	return c.Conn.Close()
}

func (c *conn) SetDeadline(t time.Time) error {
	c.deadline.set(t)
	return c.Conn.SetDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.deadline.set(t)
	return c.Conn.SetReadDeadline(t)
}

// SyscallConn lets go-redis look whether an idle connection is still alive.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if c.isClosed() {
		return nil, c.errClosed(io.EOF)
	}
	if real, ok := c.Conn.(syscall.Conn); ok {
		return real.SyscallConn()
	}
	return rawSocket{}, nil // With TLS, go-redis does not look.
}
