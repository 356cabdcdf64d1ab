package protocol

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// Limits of the values in scripts and notifications. An argument of a script costs the server
// 1.4 ms per MiB. A notification is copied for each waiter, and in a cluster for each node.
const (
	stageAbove             = 16 << 10         // a larger value is staged in a key of its own
	stagedFor              = 10 * time.Second // the key of a staged value lasts no longer
	largestNotified        = 16 << 10         // the largest value in a notification
	largestNotifiedCluster = 4 << 10          // the same in a cluster
	mostNotified           = 64               // more waiters than this receive a retry notification without the value
	mostWaiters            = 512              // beyond it a process is not registered: it waits by its recheck timer
)

// LongestLease is the longest lease of a load, and the longest that a write mark lasts without
// renewal. What ends later was not written by fetchonce: the scripts shorten it.
const LongestLease = time.Minute

// A Runner sends commands to Redis.
//
// Do sends commands in their order, on one connection. It returns when they are answered, when
// ctx ends, or when within has passed. Each command then has its reply or its error.
//
// Read is Do for one command that reads its first key. It may return the reply to an equal
// command that was sent after the call began.
//
// Each sends commands that are independent of each other, with any keys. It returns the error
// of each command.
//
// Failed is called when an operation on a key has failed after all retries, or its ctx has
// ended. It gets the time that the operation took. It returns the error, which may now
// contain the cause.
type Runner interface {
	Do(ctx context.Context, within time.Duration, cmds ...redis.Cmder) error
	Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error
	Each(ctx context.Context, within time.Duration, cmds []redis.Cmder) []error
	Failed(ctx context.Context, key string, took time.Duration, err error) error
}

// A Client runs the operations of the protocol in one namespace, for one process. The exported
// fields must be set before the first operation.
type Client struct {
	run             Runner
	ns              *Namespace
	process         string
	timeout         time.Duration
	largestNotified int

	// Failed, if it is not nil, is called after each operation that fails, unless its context
	// has ended.
	Failed func(ctx context.Context, op string, err error)

	// Unnotified, if it is not nil, is called after each script whose notification the server
	// refused.
	Unnotified func(err error)

	// ErrorTTL is for how long at most an Acquire returns a failure that is shared with later
	// callers. Backoff is the same for a caller that has a stale value. With 0, an Acquire
	// takes the lease instead.
	ErrorTTL, Backoff time.Duration

	// Renewals, if it is not nil, sends the renewals of leases and write marks. It has no
	// circuit breaker.
	Renewals Runner

	replica *replica
}

// NewClient returns a client for the namespace. Each of its operations takes at most timeout,
// with all retries. In a cluster, only smaller values are part of notifications.
func NewClient(run Runner, ns *Namespace, process string, timeout time.Duration, cluster bool) *Client {
	c := &Client{run: run, ns: ns, process: process, timeout: timeout, largestNotified: largestNotified, replica: &replica{}}
	if cluster {
		c.largestNotified = largestNotifiedCluster
	}
	return c
}

// renewing returns a client for renewals. Its operations take at most a third of the lease, so
// a renewal without an answer leaves time for another one.
func (c *Client) renewing(lease time.Duration) *Client {
	r := *c
	r.timeout = min(c.timeout, lease/3)
	if c.Renewals != nil {
		r.run = c.Renewals
	}
	return &r
}

// ErrType reports that a key holds another Redis type than the one fetchonce stores there.
var ErrType = errors.New("the key holds another type than ours")

// A call is one operation on a key.
type call struct {
	op, key string
	started time.Time
}

// failed reports an operation that failed and returns its error, or returns nil if err is nil.
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
