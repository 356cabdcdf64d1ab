package batch

import (
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	maxInFlight = 4   // pipelines
	maxEager    = 2   // pipelines that are sent without lingering
	maxCommands = 300 // in a pipeline

	// The first batch of the queue lingers, see lingers. It is sent with the first command that
	// arrives after linger, or after maxLinger. In an idle process, a finer timer fires late.
	linger    = 200 * time.Microsecond
	maxLinger = 2 * time.Millisecond
)

// A request is the commands of one caller.
type request struct {
	cmds  []redis.Cmder
	one   [1]redis.Cmder // the array of cmds, if it is a read
	read  bool           // it may share the reply to an equal read
	until time.Duration  // when its time limit is over, since epoch
	done  chan struct{}  // receives when it is answered or refused

	// Guarded by the Batcher's mu.
	state state
	err   error // if refused
	batch *batch
	place int // the index among the requests of the batch
}

// A state is the progress of a request.
type state byte

const (
	queued   state = iota // in the queue, or in flight in a pipeline
	inline                // sent on its caller's goroutine
	answered              // its commands have their replies
	refused               // failed with err
	left                  // its caller has returned
)

// A batch is some requests that are sent in one pipeline. They have the same time limit, so they
// time out in their order.
type batch struct {
	arrived  time.Duration // when the first request arrived, since epoch
	within   time.Duration // the time limit of each
	until    time.Duration // when the time limit of the last request is over
	floor    time.Duration // in flight, no request times out before; see timesOut
	sent     time.Duration
	requests []*request // nil where the caller has left the queue
	live     int        // how many requests are not nil
	size     int        // how many commands
	key      string     // the key, if all requests read the same one
	expired  int        // how many requests, from the first, have timed out
	stuck    bool       // see markStuck
	limit    limit
	first    [1]*request // the array of requests while there is one
}

func (b *Batcher) request() *request {
	if r, ok := b.free.Get().(*request); ok {
		return r
	}
	return &request{done: make(chan struct{}, 1)}
}

// enqueue appends a request to the queue and starts pipelines. If it returns a batch, the caller
// sends that inline; it has this request only. end is the deadline of the caller's context, if
// ends. The error is that of a closed Batcher.
func (b *Batcher) enqueue(r *request, within time.Duration, end time.Time, ends bool) (*batch, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return nil, unsent{b.closed}
	}
	b.join(r, within)
	b.setAlarm(r.until)
	f := b.claim()
	switch {
	case f == nil:
		return nil, nil
	case b.maySendInline(r, f):
		b.setInline(f, end, ends)
		return f, nil
	}
	go b.run(f) // ends when the queue is empty
	b.flush()
	return nil, nil
}

// join adds a request to the last batch of the queue, or to a new one. The caller holds
// b.mu.
func (b *Batcher) join(r *request, within time.Duration) {
	var last *batch
	if n := len(b.queue); n > 0 {
		last = b.queue[n-1]
	}
	if last == nil || last.size >= maxCommands || last.within != within {
		last = &batch{arrived: r.until - within, within: within}
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
}

// reads returns the key of a read, or "".
func (r *request) reads() string {
	if !r.read {
		return ""
	}
	key, _ := r.cmds[0].Args()[1].(string)
	return key
}

// flush starts a pipeline for each batch that it can claim. The caller holds b.mu.
func (b *Batcher) flush() {
	for f := b.claim(); f != nil; f = b.claim() {
		go b.run(f) // ends when the queue is empty
	}
}

// claim takes the next batch from the queue, for a pipeline. It returns nil if the queue is empty or
// lingers, or if maxInFlight pipelines are in flight. The caller holds b.mu.
func (b *Batcher) claim() *batch {
	switch {
	case len(b.queue) == 0 || b.pipelines == maxInFlight:
		return nil
	case b.lingers():
		b.setAlarm(b.queue[0].arrived + maxLinger)
		return nil
	}
	f := b.queue[0]
	b.queue = slices.Delete(b.queue, 0, 1)
	b.pipelines++
	b.setInFlight(f)
	return f
}

// lingers reports whether the queue waits for more commands. If the first batch is smaller than one
// in flight, it waits for the callers of that one, which often send again. A small pipeline costs
// the process and Redis as much as a large one. Reads of a key wait for a read of it in flight. The
// wait is at most linger: what is in flight may be stuck or large. Without it, a hit on loopback
// costs Redis 1.38 times the CPU at 16 callers, and 1.19 at 64. The caller holds b.mu.
func (b *Batcher) lingers() bool {
	first := b.queue[0]
	if b.pipelines == 0 || now() >= first.arrived+b.linger {
		return false
	}
	return b.pipelines >= maxEager || slices.ContainsFunc(b.inFlight, func(f *batch) bool {
		return !f.stuck && (f.size > first.size || f.key != "" && f.key == first.key)
	})
}

// leave is called when a caller returns without a reply. It reports whether its request is not sent:
// it was in the queue, or refused.
func (b *Batcher) leave(r *request) (unsent bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.state == queued {
		r.state = left
		return b.unqueue(r)
	}
	return r.state == refused && NotSent(r.err)
}

// unqueue removes a request from the queue. It reports whether the request was there. The caller
// holds b.mu.
func (b *Batcher) unqueue(r *request) bool {
	f := r.batch
	if f.isSent() {
		return false
	}
	f.requests[r.place] = nil
	if f.live--; f.live == 0 {
		i := slices.Index(b.queue, f)
		b.queue = slices.Delete(b.queue, i, i+1)
	}
	return true
}

// refuse fails a request. The caller holds the Batcher's mu.
func (r *request) refuse(err error) {
	r.state, r.err = refused, err
	r.done <- struct{}{} // has room
}
