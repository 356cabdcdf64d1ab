package cleanup_test

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/cleanup"
)

var (
	errDown  = errors.New("redis is down")
	errFinal = errors.New("final")
)

// A server counts tries and answers them.
type server struct {
	answer              atomic.Pointer[error] // nil: it succeeds
	tries, running, top atomic.Int64          // tries so far, running tries, and the most that ran at once
	took                atomic.Int64          // ns, by each
}

func (s *server) answerWith(err error) { s.answer.Store(&err) }

func (s *server) undo(ctx context.Context) error {
	s.tries.Add(1)
	n := s.running.Add(1)
	defer s.running.Add(-1)
	for top := s.top.Load(); n > top && !s.top.CompareAndSwap(top, n); top = s.top.Load() {
	}
	if took := time.Duration(s.took.Load()); took > 0 {
		select {
		case <-time.After(took):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := s.answer.Load(); err != nil {
		return *err
	}
	return nil
}

func (s *server) task() cleanup.Task {
	return cleanup.Task{Undo: s.undo, Lasts: 10 * time.Minute}
}

func (s *server) want(t *testing.T, what string, tries int64) {
	t.Helper()
	synctest.Wait()
	if got := s.tries.Load(); got != tries {
		t.Errorf("%s: tried %d times, want %d", what, got, tries)
	}
}

func test(t *testing.T, f func(t *testing.T, l *cleanup.List, s *server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &cleanup.List{IsFinal: func(err error) bool { return err == errFinal }}
		defer l.Close(0)
		f(t, l, &server{})
	})
}

func TestTaskRunsUntilItSucceeds(t *testing.T) {
	test(t, func(t *testing.T, l *cleanup.List, s *server) {
		l.Add(s.task())
		s.want(t, "at once", 1)
		time.Sleep(time.Hour)
		s.want(t, "after it has succeeded", 1)
		s.answerWith(errDown)
		l.Add(s.task())
		s.want(t, "at once, again", 2)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := s.tries.Load() - 1; n < 10 || n > 30 {
			t.Errorf("tried %d times in a minute in which all tries failed", n)
		}
		s.answerWith(nil)
		time.Sleep(10 * time.Second)
		tries := s.tries.Load()
		time.Sleep(time.Hour)
		s.want(t, "after it has succeeded", tries)
		if l.Len() > 0 {
			t.Error("it is still on the list")
		}
	})
}

func TestTaskEndsWhenItExpires(t *testing.T) {
	test(t, func(t *testing.T, l *cleanup.List, s *server) {
		s.answerWith(errDown)
		l.Add(s.task())
		time.Sleep(11 * time.Minute)
		tries := s.tries.Load()
		time.Sleep(time.Hour)
		s.want(t, "after its end", tries)
		if l.Len() > 0 {
			t.Error("it is still on the list")
		}
	})
}

func TestFinalErrorEndsATask(t *testing.T) {
	test(t, func(t *testing.T, l *cleanup.List, s *server) {
		s.answerWith(errFinal)
		l.Add(s.task())
		time.Sleep(time.Hour)
		s.want(t, "after a final error", 1)
	})
}

func TestTaskWithAgainRunsTwice(t *testing.T) {
	test(t, func(t *testing.T, l *cleanup.List, s *server) {
		task := s.task()
		task.Again = time.Second
		l.Add(task)
		time.Sleep(time.Second - 1)
		s.want(t, "before", 1)
		time.Sleep(2 * time.Nanosecond)
		s.want(t, "after that time", 2)
		time.Sleep(time.Hour)
		s.want(t, "an hour later", 2)
	})
}

// Many tasks cost few goroutines and few requests in an outage, and its end starts no
// stampede.
func TestOutageCostsFewRequests(t *testing.T) {
	for name, took := range map[string]time.Duration{"refused": 0, "hung": 500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			test(t, func(t *testing.T, l *cleanup.List, s *server) {
				s.answerWith(errDown)
				s.took.Store(int64(took))
				before := runtime.NumGoroutine()
				for range 110 {
					for range 100 {
						l.Add(s.task())
					}
					time.Sleep(50 * time.Millisecond)
					if n := runtime.NumGoroutine() - before; n > 65 {
						t.Fatalf("there are %d goroutines more", n)
					}
				}
				if n := l.Len(); n > 10_000 {
					t.Errorf("there are %d tasks", n)
				}
				tries := s.tries.Load()
				time.Sleep(10 * time.Second)
				if n := s.tries.Load() - tries; n > 64*20 {
					t.Errorf("%d tries in 10 s of an outage", n)
				}
				s.answerWith(nil)
				s.took.Store(int64(time.Millisecond))
				for l.Len() > 0 {
					tries := s.tries.Load()
					time.Sleep(100 * time.Millisecond)
					if n := s.tries.Load() - tries; n > 64*20 {
						t.Fatalf("%d tries in 100 ms", n)
					}
				}
				if s.top.Load() > 64 {
					t.Errorf("%d tries at once", s.top.Load())
				}
			})
		})
	}
}

// Tasks that fail do not delay new ones, which may be for other nodes of a cluster.
func TestFailedTasksDoNotDelayNewOnes(t *testing.T) {
	test(t, func(t *testing.T, l *cleanup.List, s *server) {
		s.answerWith(errDown)
		s.took.Store(int64(500 * time.Millisecond))
		for range 1000 {
			l.Add(s.task())
		}
		time.Sleep(20 * time.Second)
		healthy := &server{}
		l.Add(healthy.task())
		time.Sleep(2500 * time.Millisecond)
		healthy.want(t, "beside a node that hangs", 1)
	})
}

func TestCloseRunsEachTaskOnceMore(t *testing.T) {
	test(t, func(t *testing.T, l *cleanup.List, s *server) {
		s.answerWith(errDown)
		for range 200 {
			l.Add(s.task())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		s.answerWith(nil)
		tries, left := s.tries.Load(), int64(l.Len())
		l.Close(time.Second)
		s.want(t, "after Close", tries+left)
		l.Add(s.task())
		s.want(t, "after an Add to a closed list", tries+left)
	})
}

func TestCloseReturnsWithinItsTime(t *testing.T) {
	test(t, func(t *testing.T, l *cleanup.List, s *server) {
		s.took.Store(int64(time.Hour))
		l.Add(s.task())
		synctest.Wait()
		start := time.Now()
		l.Close(time.Second)
		if took := time.Since(start); took != time.Second {
			t.Errorf("Close took %v, want 1s", took)
		}
		synctest.Wait()
		if s.running.Load() > 0 {
			t.Error("the task's context has not ended")
		}
	})
}
