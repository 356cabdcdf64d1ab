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

// Too many masters last from the last round with the allowed number until the next such round. A
// stopped node counts as what it was, and a dead node as no master.
func TestCensusReportsTooManyMastersWhenTheyEnd(t *testing.T) {
	a, b := &node{addr: "a"}, &node{addr: "b"}
	slow, refused := os.ErrDeadlineExceeded, errors.New("connection refused")
	type answer struct {
		master bool
		err    error
	}
	master, replica := answer{master: true}, answer{}
	for name, rounds := range map[string]struct {
		a, b  []answer
		since []history.Time // by round: since when there were too many, if that ended; else 0
	}{
		"no change":               {[]answer{master, master}, []answer{replica, replica}, []history.Time{0, 0}},
		"a planned switch":        {[]answer{master, replica}, []answer{replica, master}, []history.Time{0, 0}},
		"two at once":             {[]answer{master, master, master, replica}, []answer{replica, master, master, master}, []history.Time{0, 0, 0, 1}},
		"one is stopped":          {[]answer{master, {err: slow}, {err: slow}, replica}, []answer{replica, master, master, master}, []history.Time{0, 0, 0, 1}},
		"one is dead":             {[]answer{master, {err: refused}, replica}, []answer{replica, master, master}, []history.Time{0, 0, 0}},
		"a stopped replica":       {[]answer{replica, {err: slow}}, []answer{master, master}, []history.Time{0, 0}},
		"it restarts as a master": {[]answer{master, {err: refused}, master, replica}, []answer{replica, master, master, master}, []history.Time{0, 0, 0, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			c := census{allowed: 1, were: make(map[*node]bool)}
			for i, want := range rounds.since {
				c.record(a, rounds.a[i].master, rounds.a[i].err)
				c.record(b, rounds.b[i].master, rounds.b[i].err)
				since, over := c.count(history.Time(i + 1))
				if over != (want > 0) || over && since != want {
					t.Errorf("round %d: %v since %d, want since %d", i+1, over, since, want)
				}
			}
		})
	}
}

// A demoted master closes the connections of its clients and says that it is a replica.
func TestDemoteDisconnectsClients(t *testing.T) {
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
		t.Errorf("Get on an earlier connection = %q, want an error", v)
	}
	for n, want := range map[*node]bool{old: false, next: true} {
		if is, err := n.isMaster(ctx); err != nil || is != want {
			t.Errorf("isMaster = %v, %v; want %v", is, err, want)
		}
	}
}
