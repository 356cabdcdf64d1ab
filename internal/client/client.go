// Package client has the objects that all Loaders and Lockers of one Redis client share, and decides
// which clients are accepted. The Loader and the Locker use it.
//
// [Open] returns the shared objects of a client and counts their users. The last Close closes them.
//
// redis.UniversalClient hides differences between the clients of go-redis, and some of them break
// the promises of fetchonce. Programs also wrap clients, most often in a struct that embeds a
// client or a redis.UniversalClient. So [Check] examines the fields of a wrapper, and reads the
// options of the clients that it finds.
package client

import (
	"reflect"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// A Client has the shared objects of one Redis client.
type Client struct {
	Cluster bool
	Mailbox *wake.Mailbox
	Hub     *near.Hub
	Router  *batch.Router

	rdb   redis.UniversalClient
	users int // guarded by openMu
}

// The Clients in use.
var (
	openMu sync.Mutex
	open   = make(map[redis.UniversalClient]*Client)
)

// Open returns the Client of a Redis client. cluster is the result of [Check]. The caller must close
// the Client. It connects at its first use.
//
// Redis clients that are equal share a Client. For one that cannot be compared, such as a struct
// with a slice, each Open returns a new Client.
func Open(rdb redis.UniversalClient, cluster bool) *Client {
	openMu.Lock()
	defer openMu.Unlock()
	shared := isComparable(rdb)
	if shared && open[rdb] != nil {
		open[rdb].users++
		return open[rdb]
	}
	mailbox := wake.New(rdb)
	c := &Client{Cluster: cluster, Mailbox: mailbox, Hub: near.NewHub(rdb, mailbox.Process()), Router: batch.NewRouter(rdb), rdb: rdb, users: 1}
	if shared {
		open[rdb] = c
	}
	return c
}

func isComparable(rdb redis.UniversalClient) bool { return reflect.ValueOf(rdb).Comparable() }

// Close ends one use. The last Close fails the queued commands with the cause, waits for those in
// flight, and closes the connections for notifications and invalidations.
func (c *Client) Close(cause error) {
	openMu.Lock()
	c.users--
	last := c.users == 0
	if last && isComparable(c.rdb) {
		delete(open, c.rdb)
	}
	openMu.Unlock()
	if last {
		c.Router.Close(cause)
		c.Mailbox.Close()
		c.Hub.Close()
	}
}
