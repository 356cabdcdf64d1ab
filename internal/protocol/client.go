package protocol

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// Limits of what travels inside scripts and messages rather than beside them;
// measured: an argument of a script costs the server 1.4 ms per MiB, and a
// message is copied for each waiter, in a cluster to each node.
const (
	stageAbove  = 16 << 10         // a larger value goes into a key of its own first
	stagedFor   = 10 * time.Second // and stays there no longer than this
	tellSingle  = 16 << 10         // the largest value in a message,
	tellCluster = 4 << 10          // and in a cluster
	tellWaiters = 64               // with more waiters than this it is "look again"
	mostWaiters = 512              // beyond it a process waits by its timer alone
)

// LongestLease is the longest lease of a load, and the longest that a write mark lasts
// without renewal. Scripts shorten what ends later: no process of ours wrote it.
const LongestLease = time.Minute

// A Runner sends commands to Redis, in their order, on one connection, and
// returns when they are answered, when ctx ends, or when the time is over.
// Each command then has its reply or its error.
//
// Read is Do of one command that reads the key it is given first. It may have the
// reply of an equal one that was sent after it was called.
//
// Each sends commands of any keys, which have nothing to do with each other, and
// returns the error of each.
//
// Failed is called when an operation on a key has failed after all its retries, or its ctx has
// ended. It took some time. Failed returns the error, maybe with more about its cause.
type Runner interface {
	Do(ctx context.Context, within time.Duration, cmds ...redis.Cmder) error
	Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error
	Each(ctx context.Context, within time.Duration, cmds []redis.Cmder) []error
	Failed(ctx context.Context, key string, took time.Duration, err error) error
}

// A Client speaks the protocol in one namespace for one process.
type Client struct {
	run     Runner
	ns      *Namespace
	process string
	timeout time.Duration
	tell    int

	// Failed, if it is not nil, is told of each operation that fails, but for
	// those whose context has ended. It is to be set before the first one.
	Failed func(ctx context.Context, op string, err error)

	// Unnotified, if it is not nil, is called after each script whose notification the
	// server refused. It is to be set before the first one.
	Unnotified func(err error)

	// ErrorTTL is for how long at most an Acquire returns a failure that is shared with
	// later callers. Backoff is the same for a caller that has a stale value. With 0, an
	// Acquire takes the lease instead. They are to be set before the first one.
	ErrorTTL, Backoff time.Duration

	// Renewals, if it is not nil, sends the renewals of leases and write marks: past a circuit
	// breaker. It is to be set before the first one.
	Renewals Runner

	replica *replica
}

// NewClient returns a client for the namespace. Every operation of it takes at
// most timeout, retries included. A cluster's messages carry smaller values.
func NewClient(run Runner, ns *Namespace, process string, timeout time.Duration, cluster bool) *Client {
	tell := tellSingle
	if cluster {
		tell = tellCluster
	}
	return &Client{run: run, ns: ns, process: process, timeout: timeout, tell: tell, replica: &replica{}}
}

// renewing returns a client for the renewals of a lease. Its operations take at most
// a third of the lease: a renewal that is not answered leaves time for another one.
func (c *Client) renewing(lease time.Duration) *Client {
	r := *c
	r.timeout = min(c.timeout, lease/3)
	if c.Renewals != nil {
		r.run = c.Renewals
	}
	return &r
}

// ErrType says that a key holds something that is not a string.
var ErrType = errors.New("the key holds another type than ours")

// A call is one operation on a key.
type call struct {
	op, key string
	started time.Time
}

// failed reports an operation that has failed, if it has. It returns its error.
func (c *Client) failed(ctx context.Context, of call, err error) error {
	if err == nil {
		return nil
	}
	err = c.run.Failed(ctx, of.key, time.Since(of.started), err)
	if c.Failed != nil && ctx.Err() == nil {
		c.Failed(ctx, of.op, err)
	}
	return err
}
