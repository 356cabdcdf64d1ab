package redistest

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A socket is one end of an in-memory connection, for use in a bubble. Writes go to a
// buffer, as in the kernel. Over a net.Pipe, miniredis would wait for a slow reader
// while it holds its lock, and so block all other clients.
type socket struct {
	in, out *stream
	read    *deadline
	closed  chan struct{}
	once    sync.Once // closes closed
}

// socketPair returns the two ends of a new connection.
func socketPair() (*socket, *socket) {
	a := &stream{arrived: make(chan struct{}, 1)}
	b := &stream{arrived: make(chan struct{}, 1)}
	return &socket{in: a, out: b, read: newDeadline(), closed: make(chan struct{})},
		&socket{in: b, out: a, read: newDeadline(), closed: make(chan struct{})}
}

func (s *socket) Read(b []byte) (int, error) {
	for {
		select {
		case <-s.closed:
			return 0, net.ErrClosed
		case <-s.read.passed():
			return 0, os.ErrDeadlineExceeded
		default:
		}
		if n, err := s.in.take(b); n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
		select {
		case <-s.in.arrived:
		case <-s.closed:
		case <-s.read.passed():
		}
	}
}

func (s *socket) Write(b []byte) (int, error) {
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	default:
		return s.out.put(b)
	}
}

// Close ends both directions. The other end can still read what was written before.
func (s *socket) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.in.end()
		s.out.end()
	})
	return nil
}

func (*socket) LocalAddr() net.Addr  { return socketAddr{} }
func (*socket) RemoteAddr() net.Addr { return socketAddr{} }

func (s *socket) SetDeadline(t time.Time) error     { s.read.set(t); return nil }
func (s *socket) SetReadDeadline(t time.Time) error { s.read.set(t); return nil }

// SetWriteDeadline does nothing, since Write never waits.
func (*socket) SetWriteDeadline(time.Time) error { return nil }

// SyscallConn returns an error when the other end has closed the connection. go-redis
// calls it before it uses an idle connection. On a real socket, go-redis checks the
// file descriptor instead.
func (s *socket) SyscallConn() (syscall.RawConn, error) {
	if s.in.ended() {
		return nil, io.EOF
	}
	return rawSocket{}, nil
}

type rawSocket struct{}

func (rawSocket) Control(func(fd uintptr)) error    { return nil }
func (rawSocket) Read(func(fd uintptr) bool) error  { return nil }
func (rawSocket) Write(func(fd uintptr) bool) error { return nil }

type socketAddr struct{}

func (socketAddr) Network() string { return "memory" }
func (socketAddr) String() string  { return "memory" }

// A stream is one direction of a connection, with one reader.
type stream struct {
	arrived chan struct{} // holds one token when there is new data or the end

	mu   sync.Mutex
	data []byte
	over bool
}

func (s *stream) take(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := copy(b, s.data)
	s.data = s.data[n:]
	if n == 0 && s.over {
		return 0, io.EOF
	}
	return n, nil
}

func (s *stream) put(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, os.NewSyscallError("write", syscall.EPIPE)
	}
	s.data = append(s.data, b...)
	s.tell()
	return len(b), nil
}

func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.tell()
}

func (s *stream) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

func (s *stream) tell() {
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

// A deadline is a time that can be changed while goroutines wait for it.
type deadline struct {
	mu    sync.Mutex
	at    time.Time // zero if there is none
	timer *time.Timer
	over  chan struct{} // closed when the deadline has passed
}

func newDeadline() *deadline {
	return &deadline{over: make(chan struct{})}
}

// passed returns a channel that is closed when the deadline passes. A later set may
// replace the channel.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

func (d *deadline) time() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

// set changes the deadline to t; the zero time means none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.over // The timer fired: its function closes over.
	}
	d.at, d.timer = t, nil
	over := false
	select {
	case <-d.over:
		over = true
	default:
	}
	wait := time.Until(t)
	if !t.IsZero() && wait <= 0 {
		if !over {
			close(d.over)
		}
		return
	}
	if over {
		d.over = make(chan struct{})
	}
	if !t.IsZero() {
		passed := d.over
		d.timer = time.AfterFunc(wait, func() { close(passed) })
	}
}
