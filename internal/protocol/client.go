package protocol

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/envelope"
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

// A Got is one value of a GetMany.
type Got struct {
	Value []byte
	Err   error
	Again bool // it was asked for once more, so it may be of another node
}

// GetMany is Get of many keys in few round trips. It asks at one node if at is not
// nil, and else at the node of each key. Keys that get an error that ends soon are
// asked for again, together and wherever they are, for as long as an operation may
// take; and so are those, once, whose connection ends.
func (c *Client) GetMany(ctx context.Context, at Runner, keys []Key, limit int) []Got {
	started := time.Now()
	m := getMany{c: c, keys: keys, limit: limit, got: make([]Got, len(keys)), left: make([]int, len(keys))}
	for i := range keys {
		m.left[i] = i
	}
	if at == nil {
		at = c.run
	}
	if err := m.ask(ctx, at, c.timeout); err != nil {
		_ = c.persist(ctx, err, func(within time.Duration) error { // the errors are in got
			for _, i := range m.left {
				m.got[i].Again = true
			}
			return m.ask(ctx, c.run, within)
		})
	}
	m.failed(ctx, started)
	return m.got
}

// A getMany is one GetMany.
type getMany struct {
	c     *Client
	keys  []Key
	limit int
	got   []Got
	left  []int // the indices of those that are to be asked for
}

// ask asks for those that are left. Those that may be asked for again are then left,
// and the error is that of one of them.
func (m *getMany) ask(ctx context.Context, at Runner, within time.Duration) (last error) {
	cmds := make([]redis.Cmder, len(m.left))
	values := make([]*redis.StringCmd, len(m.left))
	for j, i := range m.left {
		values[j] = redis.NewStringCmd(ctx, "getrange", m.keys[i].Value, 0, m.limit)
		cmds[j] = values[j]
	}
	var errs []error
	if len(cmds) == 1 {
		errs = []error{at.Read(ctx, within, values[0])} // it may share the reply of an equal one
	} else {
		errs = at.Each(ctx, within, cmds)
	}
	left := m.left[:0]
	for j, i := range m.left {
		err := Discreet(errs[j])
		if err != nil && redis.HasErrorPrefix(err, "WRONGTYPE") {
			err = ErrType
		}
		m.got[i].Err = err
		switch {
		case err == nil && values[j].Val() != "":
			m.got[i].Value, _ = values[j].Bytes()
		case err != nil && (passing(err) || cut(err)):
			left, last = append(left, i), err
		}
	}
	m.left = left
	return last
}

// failed reports the keys that have failed, and one error of Redis among theirs.
func (m *getMany) failed(ctx context.Context, started time.Time) {
	var one error
	for i, got := range m.got {
		if got.Err == nil || got.Err == ErrType { //nolint:errorlint // it is ours, as it is
			continue
		}
		if one == nil {
			one = m.c.failed(ctx, call{"read", m.keys[i].Value, started}, got.Err)
			m.got[i].Err = one
		} else {
			m.got[i].Err = m.c.run.Failed(ctx, m.keys[i].Value, time.Since(started), got.Err) // it may be of another node
		}
	}
}

// A State says what an Acquire found.
type State byte

// What an Acquire finds.
const (
	Stored State = iota + 1 // there is a value: Value holds it
	Large                   // there is a value, too long for this answer: Get it
	Leased                  // we hold the lease: Fence, Now
	Wait                    // another holds it: Fence, Left, Now
	Failed                  // a failure is shared: Failure, Left
)

// An Acquired is the answer to an Acquire.
type Acquired struct {
	State   State
	Value   []byte
	Fence   int64
	Now     time.Time     // of the server; zero if the request was sent twice, or the answer has none
	Left    time.Duration // how long the lease or the failure lasts, if nobody touches it
	Failure Failure
}

// A PassOver is a value that an Acquire is to pass over, and no other: it is
// known by how it begins, and Head is empty if it is no string. Stale says that it
// could be used, and is to be refreshed. Ended is when this schema's segment should have ended,
// in ms since 1970, if it has by the caller's clock: the value is passed over if the server's
// clock says so, too.
type PassOver struct {
	Head   []byte
	Stale  bool
	Ended  int64
	Others bool // the value may have segments of other schemas, which FILL keeps
}

// Acquire looks for the value once more and, if there is none, tries to become
// the one who fetches it. If another process was faster, this one is now
// registered for its message.
func (c *Client) Acquire(ctx context.Context, k Key, owner string, lease time.Duration, over *PassOver) (Acquired, error) {
	mode, head, share := "miss", []byte(nil), c.ErrorTTL
	if over != nil {
		mode, head = "force", over.Head[:min(len(over.Head), envelope.Size)]
		if over.Stale {
			mode, share = "stale", max(share, c.Backoff)
		}
	}
	argv := []any{owner, lease.Milliseconds(), c.process, mode, mostWaiters + 2, stageAbove, head, share.Milliseconds()}
	switch { // what is not needed is not sent
	case over != nil && over.Others:
		argv = append(argv, over.Ended, 1)
	case over != nil && over.Ended != 0:
		argv = append(argv, over.Ended)
	}
	reply, err := c.script(ctx, acquire, nil, []string{k.Value, k.meta(), k.marks()}, argv...)
	if err != nil {
		return Acquired{}, err
	}
	return parseAcquired(reply)
}

func parseAcquired(reply any) (Acquired, error) {
	r := answer{reply: reply}
	var a Acquired
	switch r.text(0) {
	case "value":
		a = Acquired{State: Stored, Value: []byte(r.text(1)), Now: r.optionalTime(2)}
	case "large":
		a = Acquired{State: Large, Now: r.optionalTime(1)}
	case "leased":
		a = Acquired{State: Leased, Fence: r.number(1)}
		if now := r.number(2); now > 0 {
			a.Now = time.UnixMicro(now)
		}
	case "wait":
		a = Acquired{State: Wait, Fence: r.number(1), Left: r.millis(2), Now: time.UnixMicro(r.number(3))}
	case "failed":
		a = Acquired{State: Failed, Failure: ParseFailure(r.text(1)), Left: r.millis(2)}
	default:
		r.bad = true
	}
	return a, r.err()
}

// A Filled is the answer to a Fill.
type Filled struct {
	Stored  bool  // the lease was ours: the value is stored, unless Refused, and the waiters are notified
	Refused error // why Redis did not store it, as a full one
}

// Fill stores a value, ends the lease and tells the waiters, if the lease is
// still the owner's. Without a ttl it stores nothing, and only tells them.
func (c *Client) Fill(ctx context.Context, k Key, owner string, fence int64, sealed []byte, ttl time.Duration) (Filled, error) {
	ttl = max(ttl, 0)
	keys, inline, before := c.inlineOrStaged(ctx, k, owner, sealed, ttl, k.Value, k.meta())
	argv := []any{
		owner, bigEndian(fence), inline, ttl.Milliseconds(), c.ns.channels,
		messageHead(KindValue, fence, k.Value), messageHead(KindRetry, fence, k.Value), c.tell, tellWaiters, c.ns.changes,
	}
	if len(inline) == 0 {
		argv = append(argv, bigEndian(int64(k.digest)))
	}
	reply, err := c.script(ctx, fill, before, keys, argv...)
	if err != nil && reply == nil {
		return Filled{}, err
	}
	f, shape := parseFilled(reply)
	f.Refused = cmp.Or(err, f.Refused) // err is of the SET before it
	return f, shape
}

func parseFilled(reply any) (Filled, error) {
	r := answer{reply: reply}
	var f Filled
	switch r.text(0) {
	case "stored":
		f.Stored = true
	case "refused":
		f.Stored, f.Refused = true, answeredError(r.text(2))
	case "lost":
	default:
		r.bad = true
	}
	return f, r.err()
}

// Set stores a value whatever else is going on: a lease on the key ends. The
// server stamps the value with its time and a fence.
func (c *Client) Set(ctx context.Context, k Key, owner string, sealed []byte, ttl time.Duration) error {
	keys, inline, before := c.inlineOrStaged(ctx, k, owner, sealed, ttl, k.Value, k.meta(), k.marks())
	var head, tail []byte
	if len(inline) > 0 {
		head, tail = inline[:envelope.StampStart], inline[envelope.StampEnd:]
	}
	_, err := c.script(ctx, set, before, keys,
		head, tail, ttl.Milliseconds(), c.ns.channels, messageHead(KindValue, 0, k.Value)[9:],
		messageHead(KindRetry, AnyFence, k.Value), messageHead(KindLost, 0, k.Value), c.tell, tellWaiters, c.ns.changes)
	return err
}

// inlineOrStaged decides how a value travels: as an argument of the script, or
// into a key of its own by a SET just before it, which the script renames.
func (c *Client) inlineOrStaged(ctx context.Context, k Key, owner string, sealed []byte, ttl time.Duration, names ...string) (keys []string, inline []byte, before redis.Cmder) {
	keys = names
	switch {
	case len(sealed) <= stageAbove:
		return keys, sealed, nil
	case ttl <= 0:
		return keys, nil, nil // too large to tell, and not to be kept
	}
	staged := k.staged(owner)
	return append(keys, staged), nil, redis.NewStatusCmd(ctx, "set", staged, sealed, "px", stagedFor.Milliseconds())
}

// Release ends the owner's lease without a value and tells the waiters to look
// again. It reports whether there was such a lease.
func (c *Client) Release(ctx context.Context, k Key, owner string, fence int64) (bool, error) {
	return c.release(ctx, k, owner, messageHead(KindRetry, fence, k.Value), "", 0, false)
}

// ReleaseFailed ends the owner's lease with a failure, which the waiters are
// told and later callers get for as long as share: with pause, only those who
// have an old value at hand.
func (c *Client) ReleaseFailed(ctx context.Context, k Key, owner string, fence int64, f Failure, share time.Duration, pause bool) (bool, error) {
	failure := f.encode()
	return c.release(ctx, k, owner, append(messageHead(KindFailure, fence, k.Value), failure...), failure, share, pause)
}

func (c *Client) release(ctx context.Context, k Key, owner string, message []byte, failure string, share time.Duration, pause bool) (bool, error) {
	reply, err := c.script(ctx, release, nil, []string{k.meta()}, owner, c.ns.channels, message, failure, share.Milliseconds(), pause)
	return reply == int64(1), err
}

// Renew makes the owner's lease last from now. It reports whether there still
// is such a lease. It takes at most a third of lease.
func (c *Client) Renew(ctx context.Context, k Key, owner string, lease time.Duration) (bool, error) {
	reply, err := c.renewing(lease).script(ctx, renew, nil, []string{k.meta()}, owner, lease.Milliseconds())
	return reply == int64(1), err
}

// Invalidate deletes the value and the lease of a key, and tells the holder
// and the waiters.
func (c *Client) Invalidate(ctx context.Context, k Key) error {
	_, err := c.script(ctx, invalidate, nil, []string{k.Value, k.meta()},
		c.ns.channels, messageHead(KindRetry, AnyFence, k.Value), messageHead(KindLost, 0, k.Value), c.ns.changes)
	return err
}

// Mark marks a key as being written at its source: until the mark is taken off,
// or for as long as lasts, no value that is fetched is stored. What was there is
// invalidated first. Each mark of a key has an end of its own.
func (c *Client) Mark(ctx context.Context, k Key, mark string, lasts time.Duration) error {
	_, err := c.script(ctx, invalidate, nil, []string{k.Value, k.meta(), k.marks()},
		c.ns.channels, messageHead(KindRetry, AnyFence, k.Value), messageHead(KindLost, 0, k.Value), c.ns.changes, mark, lasts.Milliseconds())
	return err
}

// Remark renews a mark. It takes at most a third of lasts.
func (c *Client) Remark(ctx context.Context, k Key, mark string, lasts time.Duration) error {
	return c.renewing(lasts).Mark(ctx, k, mark, lasts)
}

// Unmark invalidates the key and takes the mark off.
func (c *Client) Unmark(ctx context.Context, k Key, mark string) error {
	return c.Mark(ctx, k, mark, 0)
}

func bigEndian(n int64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(n))
}
