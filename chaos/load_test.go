//go:build unix

package main_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/chaos/origin"
)

const (
	loadKeys = 8
	readers  = 4 // in each process
	writers  = 1
)

// An actor is the clients with which a worker reads and writes.
type actor struct {
	job
	rdb    *redis.Client
	loader *fetchonce.Loader[thing]
	source *origin.Source
	log    *history.Log
	writes atomic.Int64
}

// A thing is a value. It has its key, so that a wrong value is noticed.
type thing struct {
	Key     string
	Version int64
}

func newActor(j job) (*actor, error) {
	opt, err := redis.ParseURL(j.Redis)
	if err != nil {
		return nil, err
	}
	opt.ContextTimeoutEnabled = true
	if j.Late {
		dial := redis.NewDialer(opt)
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return lateConn{conn}, err
		}
	}
	a := &actor{job: j, rdb: redis.NewClient(opt)}
	// With a short RedisTimeout, a stop or a busy machine would look like an outage of
	// Redis, during which less is promised.
	a.loader, err = fetchonce.New(a.rdb, fetchonce.Options[thing]{
		Prefix: "chaos", Lease: j.Lease, RedisTimeout: 10 * time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	if a.source, err = origin.Open(j.DSN); err != nil {
		return nil, err
	}
	a.log, err = history.OpenLog(j.History, j.Process)
	return a, err
}

// A lateConn is a connection on which replies and messages are sometimes late. Commands are not.
type lateConn struct{ net.Conn }

func (c lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if rand.N(10) == 0 {
		time.Sleep(rand.N(20 * time.Millisecond))
	}
	return n, err
}

func (a *actor) close() error {
	return errors.Join(a.loader.Close(), a.rdb.Close(), a.source.DB.Close(), a.log.Close())
}

// get Gets a key and records the result.
func (a *actor) get(ctx context.Context, key string) {
	e := history.Event{Op: history.Got, Key: key, Began: history.Now()}
	v, err := a.loader.Get(ctx, key, a.fetch)
	switch {
	case err != nil:
		e.Err = err.Error()
	case v.Key != key:
		e.Err = "the value of " + v.Key
	default:
		e.Version = v.Version
	}
	a.log.Write(e)
}

// fetch reads the source and returns the version after a pause, so that it may be old by then. It
// ignores its context.
func (a *actor) fetch(ctx context.Context, key string) (thing, error) {
	version, err := a.source.Version(context.WithoutCancel(ctx), key)
	pause()
	return thing{key, version}, err
}

// pause waits for up to 2 ms in two of five calls, and for up to 20 ms in one of twenty.
func pause() {
	switch n := rand.N(20); {
	case n == 0:
		time.Sleep(rand.N(20 * time.Millisecond))
	case n < 9:
		time.Sleep(rand.N(2 * time.Millisecond))
	}
}

// update writes the next version of a key in an Update.
func (a *actor) update(ctx context.Context, key string) {
	began := history.Now()
	e := history.Event{Key: key, Writer: origin.Writer(a.Process, a.writes.Add(1), true), Update: true}
	err := a.loader.Update(ctx, key, func(ctx context.Context) error {
		err := a.source.Next(ctx, a.log, a.Process, &e, nil)
		pause()
		return err
	})
	e.Op, e.Began, e.Err = history.Updated, began, text(err)
	a.log.Write(e)
}

// writeAndDelete writes the next version of a key and then Deletes the key.
func (a *actor) writeAndDelete(ctx context.Context, key string) {
	e := history.Event{Key: key, Writer: origin.Writer(a.Process, a.writes.Add(1), false)}
	err := a.source.Next(ctx, a.log, a.Process, &e, nil)
	e = history.Event{Op: history.Deleted, Key: key, Began: history.Now()}
	if err == nil {
		err = a.loader.Delete(ctx, key)
	}
	e.Err = text(err)
	a.log.Write(e)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// load is the role of a process that reads and writes until its input ends.
func load(ctx context.Context, j job, in *bufio.Scanner) error {
	a, err := newActor(j)
	if err != nil {
		return err
	}
	var (
		all   sync.WaitGroup
		ended atomic.Bool
		key   = func() string { return j.Keys[rand.N(len(j.Keys))] }
	)
	for range readers {
		all.Go(func() {
			for !ended.Load() {
				a.get(ctx, key())
				if rand.N(4) == 0 {
					time.Sleep(rand.N(time.Millisecond))
				}
			}
		})
	}
	for range writers {
		all.Go(func() {
			for !ended.Load() {
				if rand.N(2) == 0 {
					a.update(ctx, key())
				} else {
					a.writeAndDelete(ctx, key())
				}
				time.Sleep(rand.N(20 * time.Millisecond))
			}
		})
	}
	for in.Scan() {
	}
	ended.Store(true)
	all.Wait()
	return a.close()
}

// A loading is a scene under load.
type loading struct {
	*scene
	keys    []string
	workers []*worker
	number  int // of workers so far
	late    bool
}

func startLoad(s *scene, late bool) *loading {
	s.t.Helper()
	l := &loading{scene: s, late: late}
	for n := range loadKeys {
		l.keys = append(l.keys, "key "+strconv.Itoa(n))
	}
	s.create(l.keys...)
	for range processes {
		l.workers = append(l.workers, l.another())
	}
	return l
}

func (l *loading) another() *worker {
	l.t.Helper()
	l.number++
	return l.start("load", "p"+strconv.Itoa(l.number), func(j *job) { j.Keys, j.Late = l.keys, l.late })
}

// run lets the load run for a duration and calls do repeatedly.
func (l *loading) run(d time.Duration, do func()) {
	l.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		do()
		l.read()
	}
}

// stopOne stops one of the first two workers, sometimes for longer than a lease.
func (l *loading) stopOne() {
	l.t.Helper()
	w := l.workers[rand.N(2)]
	w.signal(syscall.SIGSTOP)
	time.Sleep(rand.N([]time.Duration{10 * time.Millisecond, 10 * time.Millisecond, 2 * l.job.Lease}[rand.N(3)]))
	w.signal(syscall.SIGCONT)
	time.Sleep(rand.N(50 * time.Millisecond))
}

func (l *loading) stop() {
	l.t.Helper()
	for _, w := range l.workers {
		w.stop()
	}
}

// 16 readers and 4 writers in 4 processes use eight keys. Every Get that begins after an Update or a
// Delete has returned returns its version or a later one. Each of the three loads takes 4 seconds, or a
// minute in full length.
//
//test:long
func TestNoStaleReads(t *testing.T) {
	length := 4 * time.Second
	if full() {
		length = time.Minute
	}
	for name, late := range map[string]bool{"no faults": false, "late replies": true} {
		t.Run(name, func(t *testing.T) {
			l := startLoad(newScene(t, 400*time.Millisecond), late)
			l.run(length, func() { time.Sleep(100 * time.Millisecond) })
			l.stop()
			found, count := l.judge()
			l.wantNone(found)
			t.Log(count)
			if least := int(length.Seconds()); count.Gets < 200*least || count.Updates < 10*least || count.Deletes < 10*least {
				t.Errorf("%v: too few to prove anything", count)
			}
		})
	}

	// Two of the processes are stopped, sometimes for longer than a lease. The other two
	// are killed. No process is stopped and killed: after a stop in an Update for longer
	// than a lease, and death, no lease prevents a stale read.
	t.Run("stops and kills", func(t *testing.T) {
		l := startLoad(newScene(t, 400*time.Millisecond), false)
		stops := 0
		l.run(length, func() {
			if rand.N(3) > 0 {
				l.stopOne()
				stops++
				return
			}
			time.Sleep(rand.N(100 * time.Millisecond))
			n := 2 + rand.N(2)
			w := l.workers[n]
			w.signal(syscall.SIGKILL)
			w.killed()
			l.recordDeath(w)
			l.workers[n] = l.another()
		})
		l.stop()
		found, count := l.judge()
		l.wantNone(found)
		t.Log(count, "and", stops, "stops")
		if least := int(length.Seconds()); count.Gets < 200*least || count.Updates < least || count.Deletes < least || count.Deaths < least/2 || stops < least/2 {
			t.Errorf("%v and %d stops: too few to prove anything", count, stops)
		}
		wantEveryKeyToExpire(l.scene)
	})
}

// wantEveryKeyToExpire fails the test if a key in Redis has no TTL.
func wantEveryKeyToExpire(s *scene) {
	s.t.Helper()
	rdb := s.redis.Client()
	names, err := rdb.Keys(s.t.Context(), "*").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, name := range names {
		if left, err := rdb.PTTL(s.t.Context(), name).Result(); err != nil || left == -1 {
			s.t.Errorf("%s has no TTL (%v, %v)", name, left, err)
		}
	}
}

// printLine prints a line for the test.
func printLine(words ...any) { fmt.Println(words...) }
