//go:build unix

package main_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/chaos/origin"
)

// A step is a point of an Update at which its process dies.
type step string

const (
	beforeMark   step = "before the mark is sent"
	duringMark   step = "while the mark is sent"
	afterMark    step = "after the mark, before the write"
	inWrite      step = "in the write, before the commit"
	duringCommit step = "while it commits"
	afterCommit  step = "in the write, after the commit"
	longWrite    step = "after the commit of a write longer than a lease"
	beforeUnmark step = "after the write, before the unmark is sent"
	duringUnmark step = "while the unmark is sent"
	afterUnmark  step = "after the unmark, before Update returns"
	afterUpdate  step = "after Update"
)

var steps = []step{
	beforeMark, duringMark, afterMark, inWrite, duringCommit, afterCommit, longWrite,
	beforeUnmark, duringUnmark, afterUnmark, afterUpdate,
}

// commits says which version the source has after a death at a step: the old, the new, or either.
var commits = map[step]string{
	beforeMark: "old", duringMark: "old", afterMark: "old", inWrite: "old", duringCommit: "either",
	afterCommit: "new", longWrite: "new", beforeUnmark: "new", duringUnmark: "new", afterUnmark: "new", afterUpdate: "new",
}

// die kills this process.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives
}

// dieSoon kills this process within 150 µs.
func dieSoon() {
	go func() {
		for end := history.Now().Add(rand.N(150 * time.Microsecond)); history.Now() < end; {
		}
		die()
	}()
}

// A killer is a hook of the client of an Update. It kills the process at a step.
type killer struct {
	step  step
	marks atomic.Int64
	long  chan struct{} // closed when the mark has been renewed for longer than a lease
}

// renewals is a number of marks that take longer than a lease. One is sent every third of a lease.
const renewals = 6

// markOrUnmark recognises the scripts of an Update.
func markOrUnmark(cmd redis.Cmder) (mark, unmark bool) {
	args := cmd.Args()
	if name := cmd.Name(); name != "evalsha" && name != "eval" || args[2] != 3 {
		return false, false
	}
	lasts, ok := args[len(args)-1].(int64) // only their last argument is a time, of all scripts with three keys
	return ok && lasts > 0, ok && lasts == 0
}

// send sends a script, or kills the process before, during or after that.
func (k *killer) send(cmd redis.Cmder, next func() error) error {
	mark, unmark := markOrUnmark(cmd)
	switch {
	case k.step == beforeMark && mark, k.step == beforeUnmark && unmark:
		die()
	case k.step == duringMark && mark, k.step == duringUnmark && unmark:
		dieSoon()
		_ = next()
		select {} // until the process dies
	}
	err := next()
	if cmd.Err() != nil {
		return err // NOSCRIPT: the client sends the text next
	}
	if k.step == afterMark && mark || k.step == afterUnmark && unmark {
		die()
	}
	if mark && k.marks.Add(1) == renewals {
		close(k.long)
	}
	return err
}

func (k *killer) DialHook(next redis.DialHook) redis.DialHook { return next }

func (k *killer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return k.send(cmd, func() error { return next(ctx, cmd) })
	}
}

func (k *killer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) == 0 {
			return next(ctx, cmds)
		}
		return k.send(cmds[0], func() error { return next(ctx, cmds) })
	}
}

// write is the role of a process that Updates one key and dies at a step.
func write(ctx context.Context, j job, _ *bufio.Scanner) error {
	a, err := newActor(j)
	if err != nil {
		return err
	}
	k := &killer{step: j.Step, long: make(chan struct{})}
	a.rdb.AddHook(k)
	other, err := newActor(j) // reads during the write, like another process
	if err != nil {
		return err
	}
	key := j.Keys[0]
	began := history.Now()
	e := history.Event{Key: key, Writer: origin.Writer(j.Process, 1, true), Update: true}
	err = a.loader.Update(ctx, key, func(ctx context.Context) error {
		return a.source.Next(ctx, a.log, j.Process, &e, func(commit func() error) error {
			other.get(ctx, key)
			switch j.Step {
			case inWrite:
				die()
			case duringCommit:
				dieSoon()
				_ = commit()
				select {}
			case longWrite:
				select {
				case <-k.long:
				case <-time.After(4 * j.Lease): // in a mutant without renewals
				}
				other.get(ctx, key)
			}
			if err := commit(); err != nil {
				return err
			}
			if j.Step == afterCommit || j.Step == longWrite {
				die()
			}
			return nil
		})
	})
	e.Op, e.Began, e.Err = history.Updated, began, text(err)
	a.log.Write(e)
	if j.Step == afterUpdate {
		die()
	}
	return fmt.Errorf("did not die %s", j.Step)
}

// read is the role of a process that reads the keys in the last line of its input, with one goroutine
// for each.
func read(ctx context.Context, j job, in *bufio.Scanner) error {
	a, err := newActor(j)
	if err != nil {
		return err
	}
	var (
		all  sync.WaitGroup
		stop = func() {}
	)
	for in.Scan() {
		stop()
		var ended atomic.Bool
		for key := range strings.FieldsSeq(in.Text()) {
			all.Go(func() {
				for !ended.Load() {
					a.get(ctx, key)
					time.Sleep(rand.N(2 * time.Millisecond))
				}
			})
		}
		stop = func() {
			ended.Store(true)
			all.Wait()
		}
	}
	stop()
	return a.close()
}

// A matrix is the crashes of all steps.
type matrix struct {
	*scene
	readers []*worker
	left    map[step]map[string]int // how often the source had the "old" or "new" version
}

func startMatrix(s *scene) *matrix {
	s.t.Helper()
	m := &matrix{scene: s, left: make(map[step]map[string]int)}
	for n := range processes {
		m.readers = append(m.readers, s.start("read", "r"+strconv.Itoa(n), func(*job) {}))
	}
	for _, step := range steps {
		m.left[step] = make(map[string]int)
	}
	return m
}

// round starts one writer for each step, on its own key, all at the same time.
func (m *matrix) round(n int) {
	m.t.Helper()
	keys := make([]string, len(steps))
	for i := range steps {
		keys[i] = fmt.Sprintf("%d/%d", n, i)
	}
	m.create(keys...)
	for _, r := range m.readers {
		r.send(keys...)
	}
	m.awaitAll("all readers have read all keys", 1, keys, func(history.Event) bool { return true })

	dying := make([]*worker, len(steps))
	for i, step := range steps {
		dying[i] = m.start("write", "w"+keys[i], func(j *job) { j.Step, j.Keys = step, keys[i:i+1] })
	}
	for i, w := range dying {
		w.killed()
		m.recordDeath(w)
		version, err := m.source.Version(m.t.Context(), keys[i])
		if err != nil {
			m.t.Fatal(err)
		}
		m.left[steps[i]][map[int64]string{1: "old", 2: "new"}[version]]++
	}
	over := history.Now().Add(m.job.Lease)
	m.awaitAll("all readers have read all keys again", 3, keys, func(e history.Event) bool { return e.Began > over })
}

// awaitAll waits until each process has made n Gets of each key for which ok holds.
func (m *matrix) awaitAll(what string, n int, keys []string, ok func(history.Event) bool) {
	m.t.Helper()
	missing := make(map[string]int)
	for _, r := range m.readers {
		for _, key := range keys {
			missing[r.name+" "+key] = n
		}
	}
	m.await(what, func(e history.Event) bool {
		if id := e.Process + " " + e.Key; e.Op == history.Got && missing[id] > 0 && ok(e) {
			if missing[id]--; missing[id] == 0 {
				delete(missing, id)
			}
		}
		return len(missing) == 0
	})
}

func (m *matrix) stop() {
	m.t.Helper()
	for _, r := range m.readers {
		r.stop()
	}
}

// A writer is killed at every step of an Update, while 4 processes read. No read is stale.
//
//test:long
func TestDeathInAnUpdateCausesNoStaleRead(t *testing.T) {
	rounds := 5
	if full() {
		rounds = 50
	}
	m := startMatrix(newScene(t, 300*time.Millisecond))
	for n := range rounds {
		m.round(n)
	}
	m.stop()
	found, count := m.judge()
	m.wantNone(found)
	t.Log(count)
	if count.Deaths != rounds*len(steps) || count.Late < 3*processes*rounds*len(steps)/3 {
		t.Errorf("%v: too few to prove anything", count)
	}
	for _, step := range steps {
		left := m.left[step]
		t.Logf("%-50s old %2d, new %2d", step, left["old"], left["new"])
		if want := commits[step]; want != "either" && left[want] != rounds {
			t.Errorf("after a death %s, the source has the %s version %d times of %d", step, want, left[want], rounds)
		}
	}
	wantEveryKeyToExpire(m.scene)
}
