// Package batch lets many commands at once share a round trip. One command
// alone goes straight to a connection; those that come while others are on
// their way wait for a free hand and then go together, in one pipeline.
//
// It is also what makes a caller's context and a time limit hold: go-redis
// notices neither a cancellation nor, by default, a deadline while it waits for
// an answer, so the callers wait here, and leave when they must. Only one who is
// alone, in front of a Redis that has just answered others at once, sends himself,
// if the client heeds deadlines: he notices a cancellation with the answer, or
// when his time is over.
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

	"github.com/fetchonce/fetchonce/internal/client"
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

	// A Redis that has answered within this time is one whose answer a caller may
	// wait for without a hand between them.
	soon = 5 * time.Millisecond
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
	punctual bool // conn is: callers may send themselves
	once     bool // conn does not retry
	straggle time.Duration

	// Requests for use again. Not one pool for the whole program: a request has
	// a channel, which belongs to the synctest bubble it was made in.
	free sync.Pool

	mu     sync.Mutex
	queue  []*batch      // in order, none of them empty; the last may still be joined
	flying []*batch      // in the hands
	busy   int           // hands at work and in time
	stuck  int           // hands whose callers have given up on them
	prompt bool          // what was answered last was answered soon
	heard  time.Duration // when Redis answered last, since epoch
	closed error
	idle   chan struct{} // closed when the batcher is, and busy is 0
	over   chan struct{} // for the next limit: the last one's, if that was kept

	// One clock for all requests: a timer for each would cost more than
	// everything else here. It rings for the first whose time is over.
	alarm *time.Timer
	rings time.Duration // when, since epoch; 0: it is off
}

// A request is one caller's commands.
type request struct {
	cmds  []redis.Cmder
	one   [1]redis.Cmder // the room of cmds, if it is a read
	read  bool           // it is one that may share the reply of an equal one
	until time.Duration  // when its time is over, since epoch
	done  chan struct{}  // receives when it has an outcome

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
	carried        // by its caller, who waits for nobody
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
	floor    time.Duration // and not before this, once it was sent; see Batcher.ends
	sent     time.Duration // when it was
	requests []*request    // nil where a caller has left in the queue
	live     int           // how many are not nil
	size     int           // commands
	key      string        // that all of them read, or ""
	overdue  int           // how many of the requests, from the first, have had their time
	stuck    bool          // its hand is
	limit    limit
	first    [1]*request // the room of requests, as long as it is one
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
	b := &Batcher{conn: conn, punctual: isPunctual(conn), once: sendsOnce(conn), straggle: straggle, heard: never, idle: make(chan struct{})}
	b.alarm = time.AfterFunc(time.Hour, b.ring)
	b.alarm.Stop()
	return b
}

// epoch is where this room's time begins: it is monotonic, and is read in one
// step.
var epoch = time.Now()

func now() time.Duration { return time.Since(epoch) }

// never is before every other time, also in a synctest bubble, which begins in 2000.
const never time.Duration = -1 << 62

func (b *Batcher) request() *request {
	if r, ok := b.free.Get().(*request); ok {
		return r
	}
	return &request{done: make(chan struct{}, 1)}
}

// Do sends commands, in their order and on one connection, and returns the
// first error among theirs. It returns early with ctx's error when ctx ends,
// and with [ErrTimeout] when within is over: it counts from the call or, if the
// commands had to wait in the queue, from the last answer of Redis before they were
// sent. So a queue times out only while Redis answers nobody. The commands may then still be
// executed, and must not be touched any more. On a closed batcher it returns the
// cause given to Close. [NotSent] says of which errors it is known that no command
// was sent.
func (b *Batcher) Do(ctx context.Context, within time.Duration, cmds ...redis.Cmder) error {
	return b.do(ctx, within, nil, cmds)
}

// Read is Do of one command that only reads, from the key that it is given
// first. If others ask for the same while it waits in the queue, it is sent once,
// and all have the same reply: its bytes are not to be changed. What has been sent
// is shared with nobody who comes later, as what it reads may have been deleted
// since.
func (b *Batcher) Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error {
	return b.do(ctx, within, cmd, nil)
}

func (b *Batcher) do(ctx context.Context, within time.Duration, read *redis.StringCmd, cmds []redis.Cmder) error {
	if within <= 0 {
		return unsent{ErrTimeout}
	}
	if err := ctx.Err(); err != nil {
		return unsent{err}
	}
	r := b.request()
	if read != nil {
		r.one[0] = read
		cmds = r.one[:]
	}
	r.cmds, r.read, r.until, r.state = cmds, read != nil, now()+within, waiting
	end, ends := ctx.Deadline() // before the mutex is held: the context is the caller's code
	own, err := b.enqueue(r, within, end, ends)
	if err != nil {
		return err
	}
	if own != nil {
		b.carry(own)
		err = orEnd(ctx, b.failure(firstError(cmds)))
	} else {
		select {
		case <-r.done:
		case <-ctx.Done():
			if b.leave(r) {
				return unsent{ctx.Err()}
			}
			return ctx.Err()
		}
		if r.state == refused {
			return r.err
		}
		err = b.failure(firstError(cmds))
	}
	r.cmds, r.one[0], r.batch = nil, nil, nil
	b.free.Put(r)
	return err
}

// orEnd returns the end of a context in the place of an error, if it has ended.
func orEnd(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) && ctx.Done() != nil {
		<-ctx.Done() // the connection may have noticed it a moment sooner
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
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

// enqueue puts a request into the queue. If it returns a batch, that is the
// request alone, for its caller to carry; end is then the caller's own deadline, if
// it has one. The error says that the batcher is closed.
func (b *Batcher) enqueue(r *request, within time.Duration, end time.Time, ends bool) (*batch, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return nil, unsent{b.closed}
	}
	var last *batch
	if n := len(b.queue); n > 0 {
		last = b.queue[n-1]
	}
	if last == nil || last.size >= most || last.within != within {
		last = &batch{came: r.until - within, within: within}
		last.requests = last.first[:0]
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
	f := b.claim()
	switch {
	case f == nil:
		return nil, nil
	case b.isAlone(r, f):
		b.entrust(f, end, ends)
		return f, nil
	}
	go b.work(f) // ends when the queue is empty
	b.hire()
	return nil, nil
}

// isAlone reports whether the caller of a request may send the next batch himself:
// if it is his alone, he can be sure of an answer in time, and it is likely that it
// comes soon. The caller holds b.mu.
func (b *Batcher) isAlone(r *request, f *batch) bool {
	return b.punctual && b.prompt && len(f.requests) == 1 && f.requests[0] == r &&
		!slices.ContainsFunc(b.flying, func(other *batch) bool { return f.sent-other.sent > soon })
}

// entrust leaves a batch to the caller of its only request. Its time is over at the
// caller's own deadline, if that is sooner. The caller holds b.mu.
func (b *Batcher) entrust(f *batch, end time.Time, ends bool) {
	r := f.requests[0]
	r.state = carried
	if ends && end.Before(f.limit.until) {
		r.until, f.floor = end.Sub(epoch), never
		f.until, f.limit.until = r.until, end
		b.ringAt(r.until)
	}
}

// carry sends a batch on its caller's own goroutine. Who came meanwhile is left to
// a hand.
func (b *Batcher) carry(f *batch) {
	ok := false
	defer func() { b.handOver(f, ok) }() // also if a hook panics
	ok = f.send(b.conn)
}

// handOver notes that a batch that its caller has carried has landed.
func (b *Batcher) handOver(f *batch, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.land(f, ok)
	if b.isFree(f) {
		b.hire()
		b.checkIdle()
	}
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
	if b.over == nil {
		b.over = make(chan struct{})
	}
	f.floor = b.heard + f.within
	f.sent, f.limit, b.over = now(), limit{until: epoch.Add(max(f.until, f.floor)), over: b.over}, nil
	b.flying = append(b.flying, f)
	return f
}

// leave notes that the caller of a request has left, and reports whether the
// request was still queued or was refused: then it is not sent.
func (b *Batcher) leave(r *request) (unsent bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.state == waiting {
		r.state = left
		return b.unqueue(r)
	}
	return r.state == refused && NotSent(r.err)
}

// unqueue takes a request out of the queue, and reports whether it was in it. The
// caller holds b.mu.
func (b *Batcher) unqueue(r *request) bool {
	f := r.batch
	if f.limit.over != nil { // it was sent
		return false
	}
	f.requests[r.place] = nil
	if f.live--; f.live == 0 {
		i := slices.Index(b.queue, f)
		b.queue = slices.Delete(b.queue, i, i+1)
	}
	return true
}

// work carries batches until there are none.
func (b *Batcher) work(f *batch) {
	for f != nil {
		ok := f.send(b.conn)
		n := f.live
		for _, r := range b.landed(f, ok) {
			r.done <- struct{}{} // never blocks: there is room for one
		}
		f = b.again(f, n)
	}
}

// land notes that a batch is not under way any more, and whether Redis has
// answered. The caller holds b.mu.
func (b *Batcher) land(f *batch, ok bool) {
	i := slices.Index(b.flying, f)
	b.flying = slices.Delete(b.flying, i, i+1)
	t := now()
	b.prompt = ok && t-f.sent <= soon
	if ok {
		b.heard = t
	}
	if f.limit.Err() == nil {
		b.over = f.limit.over
	}
}

// landed is land, and returns the requests whose callers wait for that.
func (b *Batcher) landed(f *batch, ok bool) []*request {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.land(f, ok)
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
	if !b.isFree(f) {
		return nil
	}
	next := b.claim()
	b.checkIdle()
	return next
}

// isFree reports whether the hand that has carried f is free for more: else its
// place was given to another. The caller holds b.mu.
func (b *Batcher) isFree(f *batch) bool {
	if f.stuck {
		b.stuck--
		return false
	}
	b.busy--
	return true
}

// checkIdle tells Close when it need not wait any more. The caller holds b.mu.
func (b *Batcher) checkIdle() {
	if b.busy == 0 && b.closed != nil {
		close(b.idle)
	}
}

// send sends a batch, and reports whether Redis has answered. If the client
// panics, that is the error of all the batch's commands.
func (f *batch) send(conn Conn) (answered bool) {
	defer func() {
		if p := recover(); p != nil {
			f.fail(client.Panicked(p))
			answered = false
		}
	}()
	if len(f.requests) == 1 && len(f.requests[0].cmds) == 1 {
		return isAnswer(conn.Process(&f.limit, f.requests[0].cmds[0])) // its error is the command's
	}
	cmds, copies := f.commands()
	err := f.process(conn, cmds)
	for _, c := range copies {
		c.to.SetVal(c.from.Val())
		c.to.SetErr(c.from.Err())
	}
	return isAnswer(err)
}

// fail sets the error of all the batch's commands.
func (f *batch) fail(err error) {
	for _, r := range f.requests {
		if r == nil {
			continue
		}
		for _, cmd := range r.cmds {
			cmd.SetErr(err)
		}
	}
}

// process sends commands, and returns one of their errors.
func (f *batch) process(conn Conn, cmds []redis.Cmder) error {
	if len(cmds) == 1 {
		return conn.Process(&f.limit, cmds[0])
	}
	pipeline := conn.Pipeline()
	_ = pipeline.BatchProcess(&f.limit, cmds...) // only queues them
	_, err := pipeline.Exec(&f.limit)
	return err
}

// isAnswer reports whether the error of a command came from Redis, if it is one.
func isAnswer(err error) bool {
	if err == nil || err == redis.Nil { //nolint:errorlint // for speed
		return true
	}
	_, ok := errors.AsType[redis.Error](err)
	return ok
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

// ends returns when a request's time is over: what it was given, from its arrival,
// but in the queue at least from the last answer of Redis. To wait while Redis works
// off what came before is no timeout. Once a request was sent, no other's answer
// prolongs its time. The caller holds b.mu.
func (b *Batcher) ends(f *batch, r *request) time.Duration {
	if f.limit.over != nil {
		return max(r.until, f.floor)
	}
	return max(r.until, b.heard+f.within)
}

// expire sends the callers of one batch away whose time is over. The caller
// holds b.mu.
func (b *Batcher) expire(f *batch, t time.Duration) {
	for ; f.overdue < len(f.requests); f.overdue++ {
		r := f.requests[f.overdue]
		switch {
		case r == nil:
			continue
		case b.ends(f, r) > t:
			b.ringAt(b.ends(f, r))
			return
		case f.limit.over != nil:
			b.giveUp(f)
		}
		if r.state == waiting {
			if b.unqueue(r) {
				r.refuse(unsent{ErrTimeout})
			} else {
				r.refuse(ErrTimeout)
			}
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
				r.refuse(unsent{cause})
			}
		}
	}
	b.queue = nil
	b.checkIdle()
	b.mu.Unlock()
	<-b.idle
	b.alarm.Stop()
}
