package redistest

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Process is a real redis-server that belongs to one test and ends with it. Its
// methods are not safe for concurrent use.
type Process struct {
	t    testing.TB
	wire *Wire
	d    *daemon
}

// Server starts a redis-server for this test alone, on a unix socket. It appends args
// to the command line, such as "--maxmemory", "1mb". The server keeps no data on disk.
//
// Without a redis-server, Server skips the test, or fails it if
// FETCHONCE_REQUIRE_SERVERS is 1. Do not call Server in a bubble.
func Server(t testing.TB, args ...string) *Process {
	t.Helper()
	bin := Binary(t)
	return startServer(t, func(dir string) (*daemon, error) { return unixDaemon(bin, dir, args...), nil })
}

// TCPServer is like [Server], on a free port of the loopback interface. It is for
// programs that cannot connect to a unix socket, such as a proxy.
func TCPServer(t testing.TB, args ...string) *Process {
	t.Helper()
	bin := Binary(t)
	return startServer(t, func(dir string) (*daemon, error) {
		port, err := freePort()
		return tcpDaemon(bin, dir, port, args...), err
	})
}

func startServer(t testing.TB, make func(dir string) (*daemon, error)) *Process {
	t.Helper()
	dir, err := shortDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &Process{t: t, wire: newWire()}
	p.d, err = startDaemon(func() (*daemon, error) { return make(dir) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// startDaemon creates and starts a daemon. It tries again with a new daemon if
// another process has taken the port.
func startDaemon(make func() (*daemon, error)) (*daemon, error) {
	for tries := 3; ; tries-- {
		d, err := make()
		if err != nil {
			return nil, err
		}
		if err = d.start(); err == nil {
			return d, nil
		}
		if d.network != "tcp" || isFree(d.port()) && isFree(d.port()+busAbove) || tries == 0 {
			return nil, err
		}
	}
}

// Client returns a new client of p, with the options of [Redis.Client].
func (p *Process) Client(change ...func(*redis.Options)) *redis.Client {
	return p.client(quick(), change)
}

// Plain returns a new client of p with go-redis' own defaults.
func (p *Process) Plain(change ...func(*redis.Options)) *redis.Client {
	return p.client(&redis.Options{}, change)
}

func (p *Process) client(opt *redis.Options, change []func(*redis.Options)) *redis.Client {
	p.t.Helper()
	opt.Network, opt.Addr = p.d.network, p.d.addr
	limited(opt)
	rdb := newClient(p.t, p.wire, opt, change, nil)
	limit(p.t, rdb)
	return rdb
}

// Wire returns the Wire of all clients of p.
func (p *Process) Wire() *Wire { return p.wire }

// Addr returns the path of the socket, or host and port.
func (p *Process) Addr() string { return p.d.addr }

// URL returns the address as [redis.ParseURL] parses it, for programs that the test
// starts.
func (p *Process) URL() string {
	who := ""
	if len(limits) > 0 {
		who = user + ":" + password + "@"
	}
	if p.d.network == "unix" {
		return "unix://" + who + p.d.addr
	}
	return "redis://" + who + p.d.addr
}

// Pid returns the process id of the server.
func (p *Process) Pid() int { return p.d.cmd.Process.Pid }

// Pause stops the process (SIGSTOP). Connections stay open and the kernel accepts new
// ones, but the server sends no reply until Resume is called.
func (p *Process) Pause() {
	p.t.Helper()
	p.signal(SignalStop)
	// Wait until the signal has taken effect. Without /proc, do not wait.
	stat := fmt.Sprintf("/proc/%d/stat", p.Pid())
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(stat)
		if _, state, _ := bytes.Cut(b, []byte(") ")); err != nil || bytes.HasPrefix(state, []byte("T")) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatal("redis-server did not stop")
		}
	}
}

// Resume continues a paused process (SIGCONT).
func (p *Process) Resume() {
	p.t.Helper()
	p.signal(SignalContinue)
}

func (p *Process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.d.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("signal %v to redis-server: %v", sig, err)
	}
}

// Kill ends the process (SIGKILL) and returns when it has ended. Its data is lost.
func (p *Process) Kill() {
	wantNoDenials(p.t, p.d)
	p.d.kill()
}

// Restart kills the process if it still runs, and starts the server again without
// data, at the same address.
func (p *Process) Restart() {
	p.t.Helper()
	p.Kill()
	if err := p.d.start(); err != nil {
		p.t.Fatal(err)
	}
}
