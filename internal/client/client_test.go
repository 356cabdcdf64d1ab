package client_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

var errEnd = errors.New("closed by the test")

func TestUsersOfAClientShareOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		rdb, other := r.Client(), r.Client()
		a, b, separate := client.Open(rdb, false), client.Open(rdb, false), client.Open(other, false)
		defer separate.Close(errEnd)
		if a != b || a == separate {
			t.Error("two users of one client do not share, or users of two clients do")
		}
		a.Close(errEnd)
		if err := b.Router.Link(0, 0).Do(t.Context(), 1e9, redis.NewStatusCmd(t.Context(), "ping")); err != nil {
			t.Errorf("after the other user has closed, PING returns %v", err)
		}
		process := b.Mailbox.Process()
		b.Close(errEnd)
		if err := b.Router.Link(0, 0).Do(t.Context(), 1e9, redis.NewStatusCmd(t.Context(), "ping")); !errors.Is(err, errEnd) {
			t.Errorf("after the last user has closed, PING returns %v, want the cause", err)
		}
		c := client.Open(rdb, false)
		defer c.Close(errEnd)
		if c.Mailbox.Process() == process {
			t.Error("a client that is opened again has the process name of before")
		}
	})
}

// A client may be of a type that cannot be a key of a map.
func TestClientsThatAreNotComparableDoNotShare(t *testing.T) {
	type never struct {
		redis.UniversalClient
		_ []int
	}
	type sometimes struct {
		redis.UniversalClient
		more any
	}
	rdb := redis.NewClient(&redis.Options{}) // never connects
	defer rdb.Close()
	shares := func(rdb redis.UniversalClient) bool {
		a, b := client.Open(rdb, false), client.Open(rdb, false)
		defer a.Close(errEnd)
		defer b.Close(errEnd)
		return a == b
	}
	for _, c := range []redis.UniversalClient{never{UniversalClient: rdb}, sometimes{rdb, []int{1}}} {
		if shares(c) {
			t.Errorf("%T: two users share a client that cannot be compared", c)
		}
	}
	if !shares(sometimes{rdb, 1}) {
		t.Error("equal clients do not share")
	}
}
