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

// A conn is a connection of a client. It forwards what the client sends command by
// command. On a subscribed connection it delivers what arrives message by message,
// so that it can drop messages.
type conn struct {
	net.Conn // the wrapped connection
	wire     *Wire
	deadline *deadline     // for Read
	closed   chan struct{} // closed when the client closes the conn, or it is cut
	once     sync.Once     // closes closed
	wasCut   atomic.Bool

	subscribed atomic.Bool // SUBSCRIBE or CLIENT TRACKING was sent
	losing     atomic.Bool // the next data received is lost
	answered   atomic.Bool // data was received since the last command

	sending sync.Mutex // guards:
	partial []byte     // the beginning of a command
	backlog []byte     // commands held back until Resume

	receiving sync.Mutex // guards:
	buf       []byte     // for Read of the wrapped connection
	arrived   []packet   // received, and parsed when due
	begun     []byte     // the beginning of a message
	ready     []byte     // for the client
}

// A packet is the data of one Read of the wrapped connection.
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

// commands appends written data to the partial command and returns the bytes to
// send for the commands that are now complete. Its callers hold sending.
func (c *conn) commands(b []byte) []byte {
	var whole []byte
	c.partial = append(c.partial, b...)
	for len(c.partial) > 0 {
		length := frame(c.partial)
		if length == 0 {
			break
		}
		if length < 0 { // Not RESP: the server returns an error.
			length = len(c.partial)
		}
		whole = append(whole, c.command(c.partial[:length])...)
		c.partial = c.partial[length:]
	}
	return whole
}

// command records a command and returns the bytes to send for it.
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
		// The server itself returns the error, so that replies keep their order.
		return command("EVAL", "return redis.error_reply(ARGV[1])", "0", fail)
	}
	return b
}

// forward sends the backlog, unless the Wire is paused. Its callers hold sending.
func (c *conn) forward() error {
	if paused, _ := c.wire.isPaused(); paused || len(c.backlog) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.backlog)
	c.backlog = nil
	return err
}

// flush sends the backlog of a pause, also if the client has closed the conn.
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

// receive waits until the oldest packet is due, and appends its data to ready. On a
// subscribed connection it appends only complete messages that are not dropped. If
// the deadline passes first, the packet stays for the next receive.
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

// take reads one packet from the wrapped connection.
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

// awaitDue waits until due. Meanwhile it takes the packets that arrive, to record
// their arrival times. Otherwise the delays of consecutive packets would add up, for
// a value of many packets and for messages in quick succession.
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
	// The packet is delivered also if the loop ended because the connection did.
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	return await(c, timer.C)
}

// messages appends received data to the partial message and returns the messages
// that are now complete, without those that are dropped. Its callers hold receiving.
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

// awaitResume waits while the Wire is paused.
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

// await waits for something until c is closed or its deadline passes.
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

// errClosed returns the error of a closed conn: ifCut if it was cut, or net.ErrClosed
// if the client closed it.
func (c *conn) errClosed(ifCut error) error {
	if c.wasCut.Load() {
		return ifCut
	}
	return net.ErrClosed
}

// Close closes c. Resume still sends the backlog of a pause.
func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	if paused, _ := c.wire.isPaused(); paused {
		// Resume closes the wrapped connection. A pending Read ends now.
		return c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
	return c.hangUp()
}

// cut ends c as if the server had closed it.
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

// SyscallConn lets go-redis check whether an idle connection is still open.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if c.isClosed() {
		return nil, c.errClosed(io.EOF)
	}
	if real, ok := c.Conn.(syscall.Conn); ok {
		return real.SyscallConn()
	}
	return rawSocket{}, nil // With TLS, go-redis does not check.
}
