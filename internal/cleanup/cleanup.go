// Package cleanup undoes operations that Redis did not answer. Such an operation may have left
// a lease, a write mark, or a place in a queue.
//
// A [List] runs its tasks in the background. It has one goroutine, and none while it is empty:
//
//	list := &cleanup.List{IsFinal: protocol.IsFinal}
//	list.Add(cleanup.Task{
//		Undo:  func(ctx context.Context) error { ... }, // nil: done
//		Lasts: opt.Lease,                                // then it has expired
//		Again: opt.RedisTimeout,                         // only if the request may still arrive
//	})
//	list.Close(opt.RedisTimeout) // tries each task once more, within that time
//
// A caller adds no task for a request that was never sent: see protocol.NotSent.
//
// The list runs up to groupSize tasks at once, so they share round trips. A pause follows each
// group. A failed task runs again after its own pause, which doubles with each failure. If no
// task of a group succeeds, Redis is probably unavailable, and the pause between groups
// doubles. So an outage costs few requests, and its end causes no stampede. A task ends when it
// succeeds, when its error is final, or when the result of its operation has expired.
//
// The package knows nothing of Redis, locks or loads.
package cleanup

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	groupSize = 64     // tasks that run at once
	maxSize   = 10_000 // tasks on a list; a full list drops the one that expires first

	firstPause   = 10 * time.Millisecond // between groups
	longestPause = time.Second           // while all tasks fail
	firstRetry   = 50 * time.Millisecond // before a task runs again
	longestRetry = 5 * time.Second
)

// A Task undoes one operation.
type Task struct {
	// Undo returns nil when it has succeeded. The list calls it on its own goroutines. Its
	// context ends when the time given to Close is over.
	Undo func(ctx context.Context) error

	// Lasts is how long the result of the operation lasts in Redis, from the Add.
	Lasts time.Duration

	// Again, if it is not 0, is how long after a success the list calls Undo once more: the
	// undone request may arrive in between.
	Again time.Duration

	expires time.Time
	due     time.Time // zero before the first try: new tasks run first
	order   uint64
	retry   time.Duration // the next pause
}

// A List has the tasks that are not done. It must be closed, and must not be copied.
type List struct {
	// IsFinal reports whether a task that failed with this error can never succeed. It may be
	// nil. It is set before the first Add.
	IsFinal func(error) bool

	mu      sync.Mutex
	tasks   tasks
	added   uint64
	closed  bool
	running bool
	changed chan struct{}      // with a buffer of one: a task was added, or the list was closed
	done    chan struct{}      // closed when the goroutine ends
	ctx     context.Context    // of the tasks
	cancel  context.CancelFunc // of ctx
}

// Add puts a task on the list. It runs at once, unless many others are due. On a closed list,
// Add does nothing.
func (l *List) Add(t Task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.added++
	t.order, t.expires, t.retry = l.added, time.Now().Add(t.Lasts), firstRetry
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

// Len returns the number of tasks on the list, without running ones.
func (l *List) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.tasks)
}

// Close runs each task once more. It returns when all have returned or the time has passed.
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

// signal wakes the goroutine. The caller holds l.mu.
func (l *List) signal() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// push puts a task on the list. A full list drops the task that expires first. The caller
// holds l.mu.
func (l *List) push(t *Task) {
	if len(l.tasks) >= maxSize {
		l.dropFirstToExpire()
	}
	heap.Push(&l.tasks, t)
}

// dropFirstToExpire makes room for a task. The caller holds l.mu.
func (l *List) dropFirstToExpire() {
	first := 0
	for i, t := range l.tasks {
		if t.expires.Before(l.tasks[first].expires) {
			first = i
		}
	}
	heap.Remove(&l.tasks, first)
}

// run runs tasks until there are none.
func (l *List) run() {
	pause := firstPause
	for {
		next, more := l.next()
		if !more {
			return
		}
		if len(next.group) == 0 {
			l.sleep(next.wait, true)
			continue
		}
		if l.try(next.group) > 0 {
			pause = firstPause
		} else {
			pause = min(2*pause, longestPause)
		}
		l.sleep(pause/2+rand.N(pause), false)
	}
}

// A step is what the goroutine of a List does next: it runs a group, or waits.
type step struct {
	group []*Task
	wait  time.Duration // until a task is due, if the group is empty
}

// next returns the next step, with up to groupSize tasks that are due. If the list is empty or
// the time given to Close is over, more is false.
func (l *List) next() (next step, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for len(l.tasks) > 0 && len(next.group) < groupSize && (l.closed || !l.tasks[0].due.After(now)) {
		t := heap.Pop(&l.tasks).(*Task)
		if t.expires.After(now) {
			next.group = append(next.group, t)
		}
	}
	if len(next.group) == 0 && len(l.tasks) == 0 || l.ctx.Err() != nil {
		l.running = false
		close(l.done)
		return step{}, false
	}
	if len(next.group) == 0 {
		next.wait = l.tasks[0].due.Sub(now)
	}
	return next, true
}

// sleep waits for d. Close ends the wait. An Add ends it if changes is true.
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

// try runs all tasks of a group at once, and returns how many have succeeded.
func (l *List) try(group []*Task) (succeeded int) {
	errs := make([]error, len(group))
	var others sync.WaitGroup
	for i, t := range group[1:] {
		others.Go(func() { errs[i+1] = t.Undo(l.ctx) })
	}
	errs[0] = group[0].Undo(l.ctx)
	others.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for i, t := range group {
		if errs[i] == nil {
			succeeded++
		}
		if l.tryAgain(t, errs[i], now) {
			l.push(t)
		}
	}
	return succeeded
}

// tryAgain reports whether a task that returned err stays on the list, and sets when it is
// due. The caller holds l.mu.
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

// tasks is a heap of tasks, ordered by when they are due.
type tasks []*Task

func (t tasks) Len() int      { return len(t) }
func (t tasks) Swap(i, j int) { t[i], t[j] = t[j], t[i] }

func (t tasks) Less(i, j int) bool {
	if !t[i].due.Equal(t[j].due) {
		return t[i].due.Before(t[j].due)
	}
	return t[i].order < t[j].order
}

// Push implements heap.Interface.
func (t *tasks) Push(x any) { *t = append(*t, x.(*Task)) }

// Pop implements heap.Interface.
func (t *tasks) Pop() any {
	old := *t
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	return last
}
