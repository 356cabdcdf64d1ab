// Package cleanup takes back, in the background, what an operation in Redis may have
// left behind: a lease or a place in a queue of which the answer never came.
//
// A [List] has one goroutine, however many tasks are on it, and none while it is empty.
// It is used so:
//
//	list := &cleanup.List{IsFinal: protocol.IsFinal}
//	list.Add(cleanup.Task{
//		TakeBack: func(ctx context.Context) error { ... }, // nil: done
//		Lasts:    opt.Lease,                               // then it has ended by itself
//		Again:    opt.RedisTimeout,                        // only if the request may still arrive
//	})
//	list.Close(opt.RedisTimeout) // tries what is left once more, for so long
//
// The caller adds no task for a request that was never sent: see protocol.NotSent.
//
// Up to width tasks are tried at once, so that they share round trips; the next ones
// follow after a pause. A task that fails is tried again after a pause of its own, which
// doubles. When no task of a round succeeds, Redis is most likely down: then the pause
// between rounds doubles, too. So an outage costs few requests, and its end starts no
// stampede. A task ends when it succeeds, when its error is final, or when what it is
// about has ended by itself.
//
// The package knows nothing of Redis, locks and loads.
package cleanup

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	width   = 64     // tasks tried at once
	maxSize = 10_000 // tasks on a list; the one that ends first makes room for another

	pace         = 10 * time.Millisecond // between rounds,
	longestPace  = time.Second           // doubled up to this while all fail
	firstRetry   = 50 * time.Millisecond // before a task is tried again,
	longestRetry = 5 * time.Second       // doubled up to this
)

// A Task takes one thing back.
type Task struct {
	// TakeBack returns nil once it is done. It is called on a goroutine of the list's.
	// Its context ends when the time given to Close is over.
	TakeBack func(ctx context.Context) error

	// Lasts is how long the thing lasts by itself, from the Add.
	Lasts time.Duration

	// Again, if it is not 0, has TakeBack called once more after it has succeeded, that
	// much later: the request that it takes back may arrive in between.
	Again time.Duration

	ends  time.Time
	due   time.Time // zero if it was not tried yet: such tasks come first
	order uint64
	retry time.Duration // the next pause
}

// A List is tasks that are not done. It must be closed, and not be copied.
type List struct {
	// IsFinal reports whether an error stays the same however often a task is tried.
	// It is set before the first Add, or nil.
	IsFinal func(error) bool

	mu      sync.Mutex
	tasks   tasks
	added   uint64
	closed  bool
	running bool
	changed chan struct{}      // has room for one: the goroutine is to look again
	done    chan struct{}      // closed when the goroutine ends
	ctx     context.Context    // of the tasks
	cancel  context.CancelFunc // ends it
}

// Add puts a task on the list, and starts it at once if there are few others. On a
// closed list it does nothing.
func (l *List) Add(t Task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.added++
	t.order, t.ends, t.retry = l.added, time.Now().Add(t.Lasts), firstRetry
	l.push(&t)
	if l.running {
		l.signal()
		return
	}
	if l.ctx == nil {
		l.ctx, l.cancel = context.WithCancel(context.Background())
		l.changed = make(chan struct{}, 1)
	}
	l.running, l.done = true, make(chan struct{})
	go l.run() // ends when the list is empty, or soon after Close
}

// Len returns how many tasks are on the list, without those that are being tried.
func (l *List) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.tasks)
}

// Close tries each task once more, and returns when they are done or the time is over.
func (l *List) Close(within time.Duration) {
	l.mu.Lock()
	l.closed = true
	running, done, cancel := l.running, l.done, l.cancel
	if running {
		l.signal()
	}
	l.mu.Unlock()
	if cancel == nil {
		return
	}
	if running {
		timer := time.NewTimer(within)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
		}
	}
	cancel()
}

// signal has the goroutine look again. The caller holds l.mu.
func (l *List) signal() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// push puts a task on the list. A full list drops the task that ends first. The caller
// holds l.mu.
func (l *List) push(t *Task) {
	if len(l.tasks) >= maxSize {
		l.dropFirstToEnd()
	}
	heap.Push(&l.tasks, t)
}

// dropFirstToEnd makes room. The caller holds l.mu.
func (l *List) dropFirstToEnd() {
	first := 0
	for i, t := range l.tasks {
		if t.ends.Before(l.tasks[first].ends) {
			first = i
		}
	}
	heap.Remove(&l.tasks, first)
}

// run tries tasks until there are none.
func (l *List) run() {
	pause := pace
	for {
		round, wait, more := l.next()
		if !more {
			return
		}
		if len(round) == 0 {
			l.sleep(wait, true)
			continue
		}
		if l.try(round) > 0 {
			pause = pace
		} else {
			pause = min(2*pause, longestPace)
		}
		l.sleep(pause/2+rand.N(pause), false)
	}
}

// next returns the tasks that are due, up to width of them; or how long it takes until
// one is. There are no more when the list is empty, or its time is over.
func (l *List) next() (round []*Task, wait time.Duration, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for len(l.tasks) > 0 && len(round) < width && (l.closed || !l.tasks[0].due.After(now)) {
		t := heap.Pop(&l.tasks).(*Task)
		if t.ends.After(now) {
			round = append(round, t)
		}
	}
	if len(round) == 0 && len(l.tasks) == 0 || l.ctx.Err() != nil {
		l.running = false
		close(l.done)
		return nil, 0, false
	}
	if len(round) == 0 {
		wait = l.tasks[0].due.Sub(now)
	}
	return round, wait, true
}

// sleep waits for d. If changes count, a task that is added ends the wait; Close always
// does.
func (l *List) sleep(d time.Duration, changes bool) {
	if l.isClosed() {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-l.changed:
			if changes || l.isClosed() {
				return
			}
		}
	}
}

func (l *List) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// try tries tasks, all at once, and reports how many have succeeded.
func (l *List) try(round []*Task) (succeeded int) {
	errs := make([]error, len(round))
	var others sync.WaitGroup
	for i, t := range round[1:] {
		others.Go(func() { errs[i+1] = t.TakeBack(l.ctx) })
	}
	errs[0] = round[0].TakeBack(l.ctx)
	others.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for i, t := range round {
		if errs[i] == nil {
			succeeded++
		}
		if l.tryAgain(t, errs[i], now) {
			l.push(t)
		}
	}
	return succeeded
}

// tryAgain reports whether a task that has come to err stays on the list, and sets when
// it is due. The caller holds l.mu.
func (l *List) tryAgain(t *Task, err error, now time.Time) bool {
	switch {
	case l.closed:
		return false
	case err == nil && t.Again > 0:
		t.due, t.Again, t.retry = now.Add(t.Again), 0, firstRetry
	case err == nil, l.IsFinal != nil && l.IsFinal(err):
		return false
	default:
		t.due = now.Add(t.retry/2 + rand.N(t.retry))
		t.retry = min(2*t.retry, longestRetry)
	}
	return true
}

// tasks is a heap: the task that is due first is its first.
type tasks []*Task

func (t tasks) Len() int      { return len(t) }
func (t tasks) Swap(i, j int) { t[i], t[j] = t[j], t[i] }

func (t tasks) Less(i, j int) bool {
	if !t[i].due.Equal(t[j].due) {
		return t[i].due.Before(t[j].due)
	}
	return t[i].order < t[j].order
}

// Push is heap.Interface's.
func (t *tasks) Push(x any) { *t = append(*t, x.(*Task)) }

// Pop is heap.Interface's.
func (t *tasks) Pop() any {
	old := *t
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	return last
}
