// Package batch lets many commands at once share a round trip. One command
// alone goes straight to a connection; those that come while others are on
// their way wait for a free hand and then go together, in one pipeline.
//
// It is also what makes a caller's context and a time limit hold: go-redis
// notices neither a cancellation nor, by default, a deadline while it waits for
// an answer, so the callers wait here, and leave when they must.
//
// It knows nothing of what the commands mean. It is used by internal/protocol.
package batch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	hands   = 4   // requests or pipelines under way at once
	few     = 2   // of them, that go as soon as there is something to carry
	most    = 300 // commands in a pipeline
	overdue = 8   // hands that may be stuck with a Redis that does not answer, beside the others
	yields  = 4   // how often a hand lets others run before it takes what they have queued

	// How long commands wait for more to go with them, see worthwhile: if others
	// come meanwhile, and if nobody does. Only the latter needs a timer, and a
	// finer one would ring late anyway in a process that is idle.
	straggle = 200 * time.Microsecond
	patience = 2 * time.Millisecond
)

// ErrTimeout says that Redis did not answer in time. It is an
// [os.ErrDeadlineExceeded], and not a [context.DeadlineExceeded]: it was not
// the caller's time that was over.
var ErrTimeout = fmt.Errorf("no answer from Redis in time: %w", os.ErrDeadlineExceeded)

// A Conn is what the batcher needs of a go-redis client.
type Conn interface {
	Process(ctx context.Context, cmd redis.Cmder) error
	Pipeline() redis.Pipeliner
}

// A Batcher sends commands. It is made by [New], and must be closed.
type Batcher struct {
	conn     Conn
	straggle time.Duration

	// Requests for use again. Not one pool for the whole program: a request has
	// a channel, which belongs to the synctest bubble it was made in.
	free sync.Pool

	mu     sync.Mutex
	queue  []*batch // in order, none of them empty; the last may still be joined
	flying []*batch // in the hands
	busy   int      // hands at work and in time
	stuck  int      // hands whose callers have given up on them
	closed error
	idle   chan struct{} // closed when the batcher is, and busy is 0

	// One clock for all requests: a timer for each would cost more than
	// everything else here. It rings for the first whose time is over.
	alarm *time.Timer
	rings time.Duration // when, since epoch; 0: it is off
}

// A request is one caller's commands.
type request struct {
	cmds  []redis.Cmder
	read  bool          // it is one that may share the reply of an equal one
	until time.Duration // when its time is over, since epoch
	done  chan struct{} // receives when it has an outcome

	// Guarded by the batcher's mu.
	state state
	err   error // if it is refused
	batch *batch
	place int // among the batch's requests
}

// A state is how far a request has come.
type state byte

const (
	waiting  state = iota
	answered       // the commands have their replies
	refused        // for the reason in err
	left           // its caller did
)

// A batch is requests that go together. They have been given the same time, so
// the earlier one came, the earlier its time is over.
type batch struct {
	came     time.Duration // when the first did, since epoch
	within   time.Duration // that each of them was given
	until    time.Duration // when the time of the last is over
	requests []*request    // nil where a caller has left in the queue
	live     int           // how many are not nil
	size     int           // commands
	key      string        // that all of them read, or ""
	overdue  int           // how many of the requests, from the first, have had their time
	stuck    bool          // its hand is
	limit    limit
}

// A limit is the context of a batch that is sent. The callers' own stay with
// them: one that leaves must not cut off the connection on which others wait.
type limit struct {
	until time.Time
	over  chan struct{} // closed once the time is over
}

func (l *limit) Deadline() (time.Time, bool) { return l.until, true }
func (l *limit) Done() <-chan struct{}       { return l.over }
func (l *limit) Value(any) any               { return nil }

func (l *limit) Err() error {
	select {
	case <-l.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// New returns a batcher over a client.
func New(conn Conn) *Batcher {
	b := &Batcher{conn: conn, straggle: straggle, idle: make(chan struct{})}
	b.alarm = time.AfterFunc(time.Hour, b.ring)
	b.alarm.Stop()
	return b
}

// epoch is where this room's time begins: it is monotonic, and is read in one
// step.
var epoch = time.Now()

func now() time.Duration { return time.Since(epoch) }

func (b *Batcher) request() *request {
	if r, ok := b.free.Get().(*request); ok {
		return r
	}
	return &request{done: make(chan struct{}, 1)}
}

// Do sends commands, in their order and on one connection, and returns the
// first error among theirs. It returns early with ctx's error when ctx ends,
// and with [ErrTimeout] when within is over; the commands may then still be
// executed, and must not be touched any more. On a closed batcher it returns the
// cause given to Close.
func (b *Batcher) Do(ctx context.Context, within time.Duration, cmds ...redis.Cmder) error {
	return b.do(ctx, within, false, cmds)
}

// Read is Do of one command that only reads, from the key that it is given
// first. If others ask for the same while it waits in the queue, it is sent once,
// and all have the same reply: its bytes are not to be changed. What has been sent
// is shared with nobody who comes later, as what it reads may have been deleted
// since.
func (b *Batcher) Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error {
	return b.do(ctx, within, true, []redis.Cmder{cmd})
}

func (b *Batcher) do(ctx context.Context, within time.Duration, read bool, cmds []redis.Cmder) error {
	if within <= 0 {
		return ErrTimeout
	}
	r := b.request()
	r.cmds, r.read, r.until, r.state = cmds, read, now()+within, waiting
	if err := b.enqueue(r, within); err != nil {
		return err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		b.leave(r)
		return ctx.Err()
	}
	if r.state == refused {
		return r.err
	}
	r.cmds, r.batch = nil, nil
	b.free.Put(r)
	return firstError(cmds)
}

func firstError(cmds []redis.Cmder) error {
	for _, cmd := range cmds {
		switch err := cmd.Err(); {
		case err == nil:
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
			// The hand's own time was over, a moment before or after the caller's, or
			// the client's ReadTimeout.
			return fmt.Errorf("%w: %v", ErrTimeout, err) //nolint:errorlint // it is not the caller's deadline, see ErrTimeout
		default:
			return err
		}
	}
	return nil
}

// enqueue puts a request into the queue. Its error is that the batcher is closed.
func (b *Batcher) enqueue(r *request, within time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return b.closed
	}
	var last *batch
	if n := len(b.queue); n > 0 {
		last = b.queue[n-1]
	}
	if last == nil || last.size >= most || last.within != within {
		last = &batch{came: r.until - within, within: within}
		b.queue = append(b.queue, last)
	}
	if key := r.reads(); last.live == 0 {
		last.key = key
	} else if last.key != key {
		last.key = ""
	}
	r.batch, r.place = last, len(last.requests)
	last.requests = append(last.requests, r)
	last.until = r.until
	last.live++
	last.size += len(r.cmds)
	b.ringAt(r.until)
	b.hire()
	return nil
}

// hire sets hands to work if there is work for them. The caller holds b.mu.
func (b *Batcher) hire() {
	for f := b.claim(); f != nil; f = b.claim() {
		go b.work(f) // ends when the queue is empty
	}
}

// claim returns the next batch for a free hand, or nil if there is neither, or it
// is better to wait. The caller holds b.mu.
func (b *Batcher) claim() *batch {
	switch {
	case len(b.queue) == 0 || b.busy == hands:
		return nil
	case !b.worthwhile():
		b.ringAt(b.queue[0].came + patience)
		return nil
	}
	b.busy++
	return b.next()
}

// worthwhile reports whether what is queued should go now. A few who come while
// many are on their way do better to go with those when they come again: hands
// that carry little keep the others, and Redis, from their work. The same holds for
// many who ask for one key while it is being read: they are one command, and may be
// more when that is answered. But they do not wait for long, as what is on its way may be stuck, or large, or Redis far away.
// The caller holds b.mu.
func (b *Batcher) worthwhile() bool {
	first := b.queue[0]
	if b.busy == 0 || now() >= first.came+b.straggle {
		return true
	}
	return b.busy < few && !slices.ContainsFunc(b.flying, func(f *batch) bool {
		return !f.stuck && (f.size > first.size || f.key != "" && f.key == first.key)
	})
}

// reads returns the key that a request reads, if it may share the reply.
func (r *request) reads() string {
	if !r.read {
		return ""
	}
	key, _ := r.cmds[0].Args()[1].(string)
	return key
}

// next takes the next batch out of the queue. The caller holds b.mu, and has
// seen that there is one.
func (b *Batcher) next() *batch {
	f := b.queue[0]
	b.queue = slices.Delete(b.queue, 0, 1)
	f.limit = limit{until: epoch.Add(f.until), over: make(chan struct{})}
	b.flying = append(b.flying, f)
	return f
}

// leave notes that the caller of a request has left. What is still in the queue
// will not be sent.
func (b *Batcher) leave(r *request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.state == waiting {
		r.state = left
		b.unqueue(r)
	}
}

// unqueue takes a request out of the queue, if it is in it. The caller holds b.mu.
func (b *Batcher) unqueue(r *request) {
	f := r.batch
	if f.limit.over != nil { // it is on its way
		return
	}
	f.requests[r.place] = nil
	if f.live--; f.live == 0 {
		i := slices.Index(b.queue, f)
		b.queue = slices.Delete(b.queue, i, i+1)
	}
}

// work carries batches until there are none.
func (b *Batcher) work(f *batch) {
	for f != nil {
		b.send(f)
		n := f.live
		for _, r := range b.landed(f) {
			r.done <- struct{}{} // never blocks: there is room for one
		}
		f = b.again(f, n)
	}
}

// landed notes that a batch is answered, and returns the requests whose callers
// wait for that.
func (b *Batcher) landed(f *batch) []*request {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.flying, f)
	b.flying = slices.Delete(b.flying, i, i+1)
	still := f.requests[:0]
	for _, r := range f.requests {
		if r != nil && r.state == waiting {
			r.state = answered
			still = append(still, r)
		}
	}
	return still
}

// again returns the next batch for the hand that has carried f, with n callers,
// or nil if it may rest. Those callers are likely to ask again in a moment, and
// are given the chance to come together.
func (b *Batcher) again(f *batch, n int) *batch {
	for i := 0; n > 1 && i < yields; i++ {
		runtime.Gosched()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if f.stuck {
		b.stuck-- // its place was given to another
		return nil
	}
	b.busy--
	next := b.claim()
	b.checkIdle()
	return next
}

// checkIdle tells Close when it need not wait any more. The caller holds b.mu.
func (b *Batcher) checkIdle() {
	if b.busy == 0 && b.closed != nil {
		close(b.idle)
	}
}

func (b *Batcher) send(f *batch) {
	ctx := &f.limit
	if len(f.requests) == 1 && len(f.requests[0].cmds) == 1 {
		_ = b.conn.Process(ctx, f.requests[0].cmds[0]) // its error is the command's
		return
	}
	cmds, copies := f.commands()
	if len(cmds) == 1 {
		_ = b.conn.Process(ctx, cmds[0])
	} else {
		pipeline := b.conn.Pipeline()
		_ = pipeline.BatchProcess(ctx, cmds...) // only queues them
		_, _ = pipeline.Exec(ctx)               // the errors are the commands'
	}
	for _, c := range copies {
		c.to.SetVal(c.from.Val())
		c.to.SetErr(c.from.Err())
	}
}

// A reply is to be copied from one command to another.
type reply struct{ from, to *redis.StringCmd }

// firsts has maps for use again; see commands.
var firsts = sync.Pool{New: func() any { return make(map[string]*redis.StringCmd) }}

// commands returns what a batch sends: of equal reads only the first. The others
// have its reply.
func (f *batch) commands() (cmds []redis.Cmder, copies []reply) {
	first := firsts.Get().(map[string]*redis.StringCmd)
	defer firsts.Put(first)
	defer clear(first)
	cmds = make([]redis.Cmder, 0, f.size)
	for _, r := range f.requests {
		if r == nil {
			continue
		}
		if r.read {
			cmd := r.cmds[0].(*redis.StringCmd)
			switch same := first[r.reads()]; {
			case same == nil:
				first[r.reads()] = cmd
			case slices.Equal(same.Args(), cmd.Args()):
				copies = append(copies, reply{same, cmd})
				continue
			}
		}
		cmds = append(cmds, r.cmds...)
	}
	return cmds, copies
}

// ringAt sets the alarm, if it would ring later. The caller holds b.mu.
func (b *Batcher) ringAt(t time.Duration) {
	if b.rings == 0 || t < b.rings {
		b.rings = t
		b.alarm.Reset(t - now())
	}
}

// ring sends those away whose time is over, and sets the alarm for the next.
func (b *Batcher) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rings = 0
	t := now()
	for _, f := range slices.Clone(b.queue) { // some may go
		b.expire(f, t)
	}
	for _, f := range b.flying {
		b.expire(f, t)
	}
	b.hire()
}

// expire sends the callers of one batch away whose time is over. The caller
// holds b.mu.
func (b *Batcher) expire(f *batch, t time.Duration) {
	for ; f.overdue < len(f.requests); f.overdue++ {
		r := f.requests[f.overdue]
		switch {
		case r == nil:
			continue
		case r.until > t:
			b.ringAt(r.until)
			return
		case f.limit.over != nil:
			b.giveUp(f)
		}
		if r.state == waiting {
			b.unqueue(r)
			r.refuse(ErrTimeout)
		}
	}
	if f.limit.over != nil {
		f.limit.end()
	}
}

// refuse gives a request that waits an error for its outcome. The caller holds
// the batcher's mu.
func (r *request) refuse(err error) {
	r.state, r.err = refused, err
	r.done <- struct{}{} // never blocks: there is room for one
}

// end ends the context. The caller holds the batcher's mu.
func (l *limit) end() {
	if l.Err() == nil {
		close(l.over)
	}
}

// giveUp no longer counts on the hand that carries a batch: it may be stuck for
// as long as the client's own timeouts and retries allow, and nobody else must be
// stuck behind it once Redis answers again. The caller holds b.mu.
func (b *Batcher) giveUp(f *batch) {
	if !f.stuck && b.stuck < overdue {
		f.stuck = true
		b.stuck++
		b.busy--
		b.checkIdle()
		b.hire()
	}
}

// Close sends away those who wait in the queue, with the cause, and returns
// when the others have their answers, or their time is over. A hand that is stuck
// in go-redis by then ends when the client's ReadTimeout does: that is not
// waited for.
func (b *Batcher) Close(cause error) {
	b.mu.Lock()
	if b.closed != nil {
		b.mu.Unlock()
		return
	}
	b.closed = cause
	for _, f := range b.queue {
		for _, r := range f.requests {
			if r != nil {
				r.refuse(cause)
			}
		}
	}
	b.queue = nil
	b.checkIdle()
	b.mu.Unlock()
	<-b.idle
	b.alarm.Stop()
}
