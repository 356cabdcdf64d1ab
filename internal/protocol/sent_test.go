package protocol_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// A cutter cuts the connection when a script has been written, and refuses later dials.
type cutter struct {
	down atomic.Bool
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

func (c *cutter) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if c.down.Load() {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	conn, err := c.dial(ctx, network, addr)
	return &cutConn{conn, c}, err
}

type cutConn struct {
	net.Conn
	cutter *cutter
}

func (c *cutConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if bytes.Contains(b, []byte("evalsha")) {
		c.cutter.down.Store(true)
	}
	return n, err
}

func (c *cutConn) Read(b []byte) (int, error) {
	if c.cutter.down.Load() {
		return 0, io.EOF
	}
	return c.Conn.Read(b)
}

// go-redis returns the error of its last attempt only.
func TestRetriesOfTheClientDoNotProveNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opt := *redistest.Bubble(t).Client().Options()
		opt.MaxRetries = 3
		net := &cutter{dial: opt.Dialer}
		opt.Dialer = net.Dial
		rdb := redis.NewClient(&opt)
		defer rdb.Close()
		c := protocol.NewClient(batch.NewRouter(rdb).Link(0, 0), ns, "p", timeout, false)
		if err := c.Invalidate(t.Context(), key); err == nil || protocol.NotSent(err) {
			t.Errorf("refused after a cut: NotSent(%v) = true", err)
		}
		if err := c.Invalidate(t.Context(), key); !protocol.NotSent(err) || !batch.NotSent(err) {
			t.Errorf("refused: NotSent(%v) = false", err)
		}
	})
}

func TestFinalAnswers(t *testing.T) {
	for text, want := range map[string]bool{
		"NOPERM this user has no permissions": true,
		"WRONGTYPE Operation against a key":   true,
		"ERR unknown command 'evalsha'":       true,
		"OOM command not allowed":             false,
		"READONLY You can't write":            false,
		"BUSY Redis is busy":                  false,
		"MISCONF Redis is configured":         false,
		"ERR something else":                  false,
	} {
		if got := protocol.IsFinal(answered(text)); got != want {
			t.Errorf("IsFinal(%s) = %v, want %v", text, got, want)
		}
	}
	if protocol.IsFinal(errors.New("NOPERM")) {
		t.Error("an error that is no answer is final")
	}
}

type answered string

func (a answered) Error() string { return string(a) }
func (answered) RedisError()     {}
