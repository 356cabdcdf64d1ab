//go:build linux

package main

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// Too many masters are there from the last round in which they were not until the
// next such round. A node that is stopped counts as what it was, a dead one as none.
func TestCensus(t *testing.T) {
	a, b := &node{addr: "a"}, &node{addr: "b"}
	slow, refused := os.ErrDeadlineExceeded, errors.New("connection refused")
	type said struct {
		master bool
		err    error
	}
	master, replica := said{master: true}, said{}
	for name, rounds := range map[string]struct {
		a, b  []said
		since []history.Time // by round, if too many were there until then; else 0
	}{
		"nothing happens":         {[]said{master, master}, []said{replica, replica}, []history.Time{0, 0}},
		"a planned switch":        {[]said{master, replica}, []said{replica, master}, []history.Time{0, 0}},
		"two at once":             {[]said{master, master, master, replica}, []said{replica, master, master, master}, []history.Time{0, 0, 0, 1}},
		"one is stopped":          {[]said{master, {err: slow}, {err: slow}, replica}, []said{replica, master, master, master}, []history.Time{0, 0, 0, 1}},
		"one is dead":             {[]said{master, {err: refused}, replica}, []said{replica, master, master}, []history.Time{0, 0, 0}},
		"a stopped one was none":  {[]said{replica, {err: slow}}, []said{master, master}, []history.Time{0, 0}},
		"it comes back as master": {[]said{master, {err: refused}, master, replica}, []said{replica, master, master, master}, []history.Time{0, 0, 0, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			c := census{allowed: 1, were: make(map[*node]bool)}
			for i, want := range rounds.since {
				c.note(a, rounds.a[i].master, rounds.a[i].err)
				c.note(b, rounds.b[i].master, rounds.b[i].err)
				since, over := c.count(history.Time(i + 1))
				if over != (want > 0) || over && since != want {
					t.Errorf("round %d: %v since %d, want since %d", i+1, over, since, want)
				}
			}
		})
	}
}

// Who is connected to a master that was replaced is sent away when that is told, and
// a stopped master takes itself for one until then.
func TestDemote(t *testing.T) {
	redistest.Binary(t)
	dir := t.TempDir()
	var pair [2]*node
	for i := range pair {
		n, err := newServer(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.kill)
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		pair[i] = n
	}
	old, next := pair[0], pair[1]
	rdb := redis.NewClient(&redis.Options{Addr: old.addr, Password: password, MaxRetries: -1})
	defer rdb.Close()
	conn := rdb.Conn()
	defer conn.Close()
	ctx := t.Context()
	if err := conn.Set(ctx, "k", "v", time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	if err := old.demote(next); err != nil {
		t.Fatal(err)
	}
	if v, err := conn.Get(ctx, "k").Result(); err == nil {
		t.Errorf("a connection from before answers %q", v)
	}
	for n, want := range map[*node]bool{old: false, next: true} {
		if is, err := n.isMaster(ctx); err != nil || is != want {
			t.Errorf("isMaster = %v, %v; want %v", is, err, want)
		}
	}
}
