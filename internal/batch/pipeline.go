package batch

import (
	"errors"
	"runtime"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/guard"
)

// yields is how often the goroutine of a pipeline yields before it claims the next batch.
const yields = 4

// run sends a batch, and then the next ones, until the queue is empty.
func (b *Batcher) run(f *batch) {
	for f != nil {
		ok := f.send(b.conn)
		n := f.live
		for _, r := range b.takeAnswered(f, ok) {
			r.done <- struct{}{} // has room
		}
		f = b.next(f, n)
	}
}

// setInFlight notes that a batch is in flight from now. The caller holds b.mu.
func (b *Batcher) setInFlight(f *batch) {
	f.floor = b.replied + f.within
	f.sent, f.limit = now(), limit{until: epoch.Add(max(f.until, f.floor)), over: make(chan struct{})}
	b.inFlight = append(b.inFlight, f)
}

// isSent reports whether a batch is or was in flight.
func (f *batch) isSent() bool { return f.limit.over != nil }

// noteReply notes that a batch is no longer in flight, and whether Redis has answered it. The
// caller holds b.mu.
func (b *Batcher) noteReply(f *batch, ok bool) {
	i := slices.Index(b.inFlight, f)
	b.inFlight = slices.Delete(b.inFlight, i, i+1)
	t := now()
	b.prompt = ok && t-f.sent <= promptReply
	if ok {
		b.replied = t
		if t < max(f.until, f.floor) {
			b.inTime = t
		}
	}
}

// takeAnswered is noteReply. It returns the requests whose callers still wait.
func (b *Batcher) takeAnswered(f *batch, ok bool) []*request {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noteReply(f, ok)
	still := f.requests[:0]
	for _, r := range f.requests {
		if r != nil && r.state == queued {
			r.state = answered
			still = append(still, r)
		}
	}
	return still
}

// next returns the next batch for the pipeline that has sent f with n requests, or nil. It first
// yields to their callers: if they send again at once, they share the next pipeline.
func (b *Batcher) next(f *batch, n int) *batch {
	for i := 0; n > 1 && i < yields; i++ {
		runtime.Gosched()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.finish(f) {
		return nil
	}
	next := b.claim()
	b.checkIdle()
	return next
}

// finish ends the pipeline of a batch. It reports whether the pipeline counted as in flight, and so
// may claim the next batch: a stuck one may not. The caller holds b.mu.
func (b *Batcher) finish(f *batch) bool {
	if f.stuck {
		b.stuck--
		return false
	}
	b.pipelines--
	return true
}

// send sends a batch, and reports whether Redis has answered. If the client panics, all commands of
// the batch fail with that.
func (f *batch) send(conn Conn) (answered bool) {
	defer func() {
		if p := recover(); p != nil {
			f.fail(guard.Panicked(p))
			answered = false
		}
	}()
	if len(f.requests) == 1 && len(f.requests[0].cmds) == 1 {
		return isAnswer(conn.Process(&f.limit, f.requests[0].cmds[0])) // Process also sets the command's error
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

// process sends commands and returns one of their errors.
func (f *batch) process(conn Conn, cmds []redis.Cmder) error {
	if len(cmds) == 1 {
		return conn.Process(&f.limit, cmds[0])
	}
	pipeline := conn.Pipeline()
	_ = pipeline.BatchProcess(&f.limit, cmds...) // only queues them
	_, err := pipeline.Exec(&f.limit)
	return err
}

// isAnswer reports whether Redis has answered: err is nil or an error reply.
func isAnswer(err error) bool {
	if err == nil || err == redis.Nil { //nolint:errorlint // the common case, without unwrapping
		return true
	}
	_, ok := errors.AsType[redis.Error](err)
	return ok
}

// A reply is copied from one of several equal reads to another.
type reply struct{ from, to *redis.StringCmd }

// firsts has maps to reuse; see commands.
var firsts = sync.Pool{New: func() any { return make(map[string]*redis.StringCmd) }}

// commands returns the commands that a batch sends. Of equal reads it sends the first one only;
// copies says which of them receive its reply.
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
