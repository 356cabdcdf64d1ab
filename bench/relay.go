package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A relay forwards connections from clients to a server. It can inject the faults of networks
// and servers.
type relay struct {
	addr   string // the relay's own address
	server string

	mu       sync.Mutex
	listener *net.TCPListener
	accepts  chan struct{}         // closed when the relay stops accepting connections
	conns    map[net.Conn]struct{} // connections of clients and to the server
	fills    []net.Conn            // connections in the accept queue of a blackholed relay
	silent   bool                  // the relay forwards nothing
	changed  chan struct{}         // closed and replaced when silent ends
	delay    time.Duration         // the delay of each reply
}

const slowAnswer = 600 * time.Millisecond

func newRelay(server string) (*relay, error) {
	r := &relay{addr: "127.0.0.1:0", server: server, conns: make(map[net.Conn]struct{}), changed: make(chan struct{})}
	if err := r.listen(); err != nil {
		return nil, err
	}
	r.addr = r.listener.Addr().String()
	return r, nil
}

func (r *relay) listen() error {
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		return err
	}
	r.listener = l.(*net.TCPListener)
	r.accept()
	return nil
}

// accept serves connections until the listener is closed or reaches its deadline.
func (r *relay) accept() {
	l, ended := r.listener, make(chan struct{})
	r.accepts = ended
	go func() { // ends when Accept fails
		defer close(ended)
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go r.connect(client)
		}
	}()
}

// fail makes the server unavailable: refused, hung, blackholed or slow.
func (r *relay) fail(kind string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch kind {
	case "refused":
		err := r.listener.Close()
		<-r.accepts
		r.cut()
		return err
	case "hung":
		r.silent = true
		return nil
	case "blackholed":
		r.silent = true
		return r.blackhole()
	case "slow":
		r.delay = slowAnswer
		return nil
	}
	return fmt.Errorf("there is no outage %q", kind)
}

// blackhole fills the accept queue. The kernel then answers no SYN.
func (r *relay) blackhole() error {
	if err := r.listener.SetDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	<-r.accepts
	if err := setBacklog(r.listener, 0); err != nil {
		return err
	}
	const most = 16
	for range most {
		conn, err := net.DialTimeout("tcp", r.addr, 100*time.Millisecond)
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			return nil
		}
		if err != nil {
			return err
		}
		r.fills = append(r.fills, conn)
	}
	return fmt.Errorf("the kernel takes %d connections beyond a backlog of 0", most)
}

// serve makes the server available again.
func (r *relay) serve() (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.accepts:
		if len(r.fills) == 0 {
			err = r.listen()
			break
		}
		err = errors.Join(setBacklog(r.listener, 128), r.listener.SetDeadline(time.Time{}))
		for _, conn := range r.fills {
			_ = conn.Close()
		}
		r.fills = nil
		r.accept()
	default:
	}
	r.silent, r.delay = false, 0
	close(r.changed)
	r.changed = make(chan struct{})
	return err
}

func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.listener.Close()
	r.cut()
}

// cut closes all connections. Its callers hold mu.
func (r *relay) cut() {
	for conn := range r.conns {
		_ = conn.Close()
	}
	clear(r.conns)
}

// connect serves a client's connection. While the relay is silent, it does not dial the server.
func (r *relay) connect(client net.Conn) {
	r.mu.Lock()
	r.conns[client] = struct{}{}
	r.mu.Unlock()
	defer r.forget(client)
	r.await()
	server, err := net.Dial("tcp", r.server)
	if err != nil {
		return
	}
	r.mu.Lock()
	_, open := r.conns[client]
	if open {
		r.conns[server] = struct{}{}
	}
	r.mu.Unlock()
	defer r.forget(server)
	if !open {
		return
	}
	go func() { // ends when either connection does
		defer r.forget(client)
		r.pass(client, server, false)
	}()
	r.pass(server, client, true)
}

func (r *relay) forget(conn net.Conn) {
	_ = conn.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
}

// pass forwards data from one connection to the other. It delays replies.
func (r *relay) pass(from io.Reader, to io.Writer, answers bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if delay := r.await(); answers && delay > 0 {
			time.Sleep(delay)
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// await waits while the relay is silent, and returns the delay of replies.
func (r *relay) await() time.Duration {
	for {
		r.mu.Lock()
		silent, changed, delay := r.silent, r.changed, r.delay
		r.mu.Unlock()
		if !silent {
			return delay
		}
		<-changed
	}
}
