package main_test

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	bench "github.com/fetchonce/fetchonce/bench"
)

// echo returns the address of a server that returns what it is sent, until the test ends.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer conn.Close()
				buf := make([]byte, 16)
				for {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					_, _ = conn.Write(buf[:n])
				}
			}()
		}
	}()
	return l.Addr().String()
}

// answered sends a byte and returns the error of the answer.
func answered(conn net.Conn, within time.Duration) error {
	_ = conn.SetDeadline(time.Now().Add(within))
	if _, err := conn.Write([]byte("a")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

const (
	brief    = 50 * time.Millisecond // for what does not come
	watchdog = time.Minute
)

// A refused connection fails at once, a hung one is made and not answered, and a blackholed one
// is not made. All are served again afterwards.
func TestRelayMakesAServerUnavailable(t *testing.T) {
	for kind, dialed := range map[string]func(err error) bool{
		"refused":    func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) },
		"hung":       func(err error) bool { return err == nil },
		"slow":       func(err error) bool { return err == nil },
		"blackholed": isTimeout,
	} {
		t.Run(kind, func(t *testing.T) {
			r, err := bench.NewRelay(echo(t))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			old, err := net.Dial("tcp", r.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			if err := answered(old, watchdog); err != nil {
				t.Fatal(err)
			}
			if err := r.Fail(kind); err != nil {
				t.Fatal(err)
			}
			if err := answered(old, brief); kind == "refused" && (err == nil || isTimeout(err)) || kind != "refused" && !isTimeout(err) {
				t.Errorf("the answer on an old connection = %v", err)
			}
			conn, err := net.DialTimeout("tcp", r.Addr(), brief)
			if !dialed(err) {
				t.Errorf("Dial = %v", err)
			}
			if err == nil {
				defer conn.Close()
				if err := answered(conn, brief); !isTimeout(err) {
					t.Errorf("the answer on a new connection = %v, want a timeout", err)
				}
			}
			if err := r.Serve(); err != nil {
				t.Fatal(err)
			}
			conn, err = net.DialTimeout("tcp", r.Addr(), watchdog)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := answered(conn, watchdog); err != nil {
				t.Errorf("the answer after the outage = %v", err)
			}
		})
	}
}
