//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/chaos/origin"
	"github.com/fetchonce/fetchonce/oncesql"
)

// What the workers promise each other.
var rules = history.Rules{
	Lease:        500 * time.Millisecond,
	FetchTimeout: 1500 * time.Millisecond,
	Deadline:     4 * time.Second,
	Grace:        250 * time.Millisecond,
	Recovery:     time.Second,
	RedisTimeout: redisTimeout,
}

const (
	prefix       = "chaos"
	keys         = 8
	callers      = 10 // goroutines of a worker
	redisTimeout = 500 * time.Millisecond
	drainLimit   = 10 * time.Second
	slow         = 100 * time.Millisecond // what answers later is
	canary       = "canary-5dd1f0a7"      // is in every value and in every password
)

// jobVariable is the environment variable that makes this program a worker.
const jobVariable = "FETCHONCE_CHAOS_WORKER"

// What a worker says, apart from "at" and a point.
const (
	ready    = "ready"
	disarmed = "disarmed"
)

// A job is what a worker is told when it starts.
type job struct {
	Process string
	Seed    uint64
	Redis   place
	Proxies map[string]string // the address to dial for each of Redis'
	DSN     string
	Dir     string // has the history and the logs
}

// A thing is a value. It says whose it is.
type thing struct {
	Key     string
	Version int64
	Secret  string
}

// A worker is one of the processes that use the library.
type worker struct {
	job
	rdb     redis.UniversalClient
	source  *origin.Source
	things  *fetchonce.Loader[thing]
	created *fetchonce.Loader[string]
	locker  *fetchonce.Locker
	log     *history.Log
	points  points

	number atomic.Int64 // of writes, fetches and locks
	calls  atomic.Int64 // under way
	ended  atomic.Bool
	faults chan history.Fault // for the next fetches
}

// work is the whole life of a worker: it reads orders line by line, and ends when
// there are no more.
func work(description string) error {
	logging.Disable() // go-redis tells standard error what its callers are told
	w := &worker{faults: make(chan history.Fault, 100)}
	if err := json.Unmarshal([]byte(description), &w.job); err != nil {
		return err
	}
	before := runtime.NumGoroutine()
	if err := w.open(); err != nil {
		return err
	}
	var all sync.WaitGroup
	for n := range callers {
		rng := rand.New(rand.NewPCG(w.Seed, uint64(n)))
		all.Go(func() { w.call(rng) })
	}
	all.Go(w.pulse)
	fmt.Println(ready)
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		w.obey(orders.Text())
	}
	w.ended.Store(true)
	drained := make(chan struct{})
	go func() {
		all.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(drainLimit):
		w.dump("calls")
		w.log.Write(history.Event{Op: history.Ended, Calls: int(w.calls.Load())})
		return errors.New("calls did not return")
	}
	if err := w.close(); err != nil {
		return err
	}
	left := w.await(before)
	if left > 0 {
		w.dump("goroutines")
	}
	w.log.Write(history.Event{Op: history.Ended, Count: left})
	return nil
}

func (w *worker) open() (err error) {
	if w.log, err = history.OpenLog(filepath.Join(w.Dir, "history"), w.Process); err != nil {
		return err
	}
	said, err := os.OpenFile(filepath.Join(w.Dir, "log-"+w.Process), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.rdb = w.Redis.client(w.Proxies)
	mutant, err := swapOf(swapVariable)
	if err != nil {
		return err
	}
	addHooks(w.rdb, &w.points)
	if mutant != nil {
		addHooks(w.rdb, mutant) // the points know the scripts as they were
	}
	if w.source, err = origin.Open(w.DSN); err != nil {
		return err
	}
	table, err := oncesql.New(w.source.DB, oncesql.Options[string]{Dialect: oncesql.Postgres, Table: "created"})
	if err != nil {
		return err
	}
	w.things, err = fetchonce.New(w.rdb, fetchonce.Options[thing]{
		Prefix: prefix, TTL: time.Hour, Lease: rules.Lease, FetchTimeout: rules.FetchTimeout, RedisTimeout: redisTimeout, Logger: logger,
		OnRedisDown: w.onRedisDown(),
	})
	if err != nil {
		return err
	}
	w.created, err = fetchonce.New(w.rdb, fetchonce.Options[string]{
		Prefix: prefix + "-created", TTL: time.Hour, Lease: rules.Lease, FetchTimeout: rules.FetchTimeout, RedisTimeout: redisTimeout,
		Logger: logger, Store: timed{table, w.log},
	})
	if err != nil {
		return err
	}
	w.locker, err = fetchonce.NewLocker(w.rdb, fetchonce.LockOptions{
		Prefix: prefix, Lease: rules.Lease, RedisTimeout: redisTimeout, Logger: logger,
	})
	return err
}

// timed is a Store that writes down when the source of truth is slow by itself: a fetch
// may then take too long without anybody's fault.
type timed struct {
	fetchonce.Store[string]
	log *history.Log
}

func (s timed) Lookup(ctx context.Context, key string) (string, error) {
	defer s.since(history.Now())
	return s.Store.Lookup(ctx, key)
}

func (s timed) Create(ctx context.Context, key, v string) (string, error) {
	defer s.since(history.Now())
	return s.Store.Create(ctx, key, v)
}

func (s timed) since(began history.Time) {
	if history.Now().Sub(began) > slow {
		s.log.Write(history.Event{Op: history.Hit, Fault: history.SourceSlow, Process: history.Everyone, Began: began})
	}
}

func (w *worker) close() error {
	return errors.Join(w.things.Close(), w.created.Close(), w.locker.Close(), w.rdb.Close(), w.source.DB.Close())
}

// await waits for goroutines to end, and returns how many did not.
func (w *worker) await(before int) (left int) {
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if left = runtime.NumGoroutine() - before; left <= 0 || time.Now().After(end) {
			return max(left, 0)
		}
	}
}

// dump keeps the stacks of all goroutines.
func (w *worker) dump(name string) {
	f, err := os.Create(filepath.Join(w.Dir, name+"-"+w.Process))
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	_ = pprof.Lookup("goroutine").WriteTo(f, 2)
}

// obey executes an order of the supervisor's.
func (w *worker) obey(order string) {
	what, rest, _ := strings.Cut(order, " ")
	switch what {
	case "fetch":
		w.faults <- history.Fault(rest)
	case "arm":
		w.points.arm(rest)
	case "disarm":
		if w.points.disarm() {
			fmt.Println(disarmed)
		}
	}
}

// pulse writes down when this process did not run.
func (w *worker) pulse() {
	const beat = 10 * time.Millisecond
	last := history.Now()
	for !w.ended.Load() {
		time.Sleep(beat)
		now := history.Now()
		if now.Sub(last) > slow {
			w.log.Write(history.Event{Op: history.Hit, Fault: history.Starved, Began: last})
		}
		last = now
	}
}

// call calls the library, one way or another, until it is over.
func (w *worker) call(rng *rand.Rand) {
	popular := rand.NewZipf(rng, 1.3, 2, keys-1)
	mix := mixOf(w.Redis.Profile)
	for !w.ended.Load() {
		time.Sleep(rand.N(20 * time.Millisecond))
		key := keyName(int(popular.Uint64()))
		w.calls.Add(1)
		switch n := rng.IntN(1000); {
		case n < mix.updates:
			w.update(key)
		case n < mix.deletes:
			w.delete(key)
		case n < mix.locks:
			w.lock("lock "+strconv.Itoa(rng.IntN(lockNames(w.Redis.Profile))), rng)
		case n < mix.creates:
			w.create()
		default:
			w.get(key)
		}
		w.calls.Add(-1)
	}
}

func keyName(n int) string { return "key " + strconv.Itoa(n) }

func (w *worker) name() string { return origin.Writer(w.Process, w.number.Add(1), false) }

// began is the key of a context's value that says when its Get began.
type began struct{}

func (w *worker) get(key string) {
	e := history.Event{Op: history.Got, Key: key, Began: history.Now()}
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), began{}, e.Began), rules.Deadline)
	defer cancel()
	r, err := guarded(func() (fetchonce.Result[thing], error) { return w.things.Load(ctx, key, w.fetch) })
	e.Version, e.Source, e.Err = r.Value.Version, r.Source.String(), text(err)
	if err == nil && r.Value.Key != key {
		e.Err = history.WrongValue + ": " + r.Value.Key
	}
	w.log.Write(e)
}

// guarded calls f, and makes a panic of it an error.
func guarded[V any](f func() (V, error)) (v V, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %.100v", p)
		}
	}()
	return f()
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// fetch reads the source, in one of many ways.
func (w *worker) fetch(ctx context.Context, f *fetchonce.Fetch[thing]) (v thing, err error) {
	if ctx.Err() != nil {
		return v, context.Cause(ctx) // it never began
	}
	since, _ := ctx.Value(began{}).(history.Time)
	e := history.Event{Op: history.Fetching, Key: f.Key, Fence: f.Fence, Began: since, Writer: w.name()}
	w.log.Write(e)
	start := history.Now()
	unwatch, cut := watch(ctx)
	err = errNoReturn // unless a return says otherwise
	defer func() {
		unwatch()
		e.Op, e.Version, e.Cut, e.Err = history.Fetched, v.Version, history.Time(cut.Load()), text(err)
		w.log.Write(e)
	}()
	select {
	case fault := <-w.faults:
		if err := fail(ctx, fault); err != nil {
			return v, err
		}
	default:
	}
	version, failed := w.source.Version(context.WithoutCancel(ctx), f.Key)
	if failed != nil {
		return v, failed
	}
	w.points.pass(atFetch)
	w.linger(ctx)
	if history.Now().Sub(start) > rules.Lease && ctx.Err() != nil && rand.N(2) == 0 {
		panic(history.Injected + " panic after the lease") // as somebody's check for an error may
	}
	return thing{f.Key, version, canary}, nil
}

var errNoReturn = errors.New("it did not return")

// watch notes when a context ends.
func watch(ctx context.Context) (unwatch func() bool, ended *atomic.Int64) {
	ended = new(atomic.Int64)
	return context.AfterFunc(ctx, func() { ended.Store(int64(history.Now())) }), ended
}

// fail fails as it is told to.
func fail(ctx context.Context, fault history.Fault) error {
	switch fault {
	case history.FetchPanic:
		panic(history.Injected + " panic")
	case history.FetchGoexit:
		runtime.Goexit()
	case history.FetchHang:
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return errors.New(history.Injected + " error")
}

// linger takes a moment most often, and sometimes longer than a lease. One time
// in four it does not heed its context.
func (w *worker) linger(ctx context.Context) {
	took := rand.N(2 * time.Millisecond)
	switch n := rand.N(100); {
	case n < 65 && w.Redis.Profile == full: // so that much is held when Redis becomes full, and long after that
		took = rules.Lease + rand.N(rules.Lease)
	case n < 3:
		took = rules.Lease + rand.N(rules.Lease/2)
	case n < 20:
		took = rand.N(rules.Lease)
	case n < 40:
		took = rand.N(50 * time.Millisecond)
	}
	done := ctx.Done()
	if rand.N(4) == 0 {
		done = nil
	}
	timer := time.NewTimer(took)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-done:
	}
}

func (w *worker) update(key string) {
	e := history.Event{Key: key, Writer: origin.Writer(w.Process, w.number.Add(1), true), Update: true}
	start := history.Now()
	e.Op = history.Invalidating
	w.log.Write(e)
	err := w.things.Update(context.Background(), key, func(ctx context.Context) error {
		w.points.pass(atMark)
		w.linger(ctx)
		err := w.source.Next(ctx, w.log, w.Process, &e, nil)
		w.points.pass(atWritten)
		w.linger(ctx)
		return err
	})
	e.Op, e.Began, e.Err = history.Updated, start, text(err)
	w.log.Write(e)
}

func (w *worker) delete(key string) {
	e := history.Event{Key: key, Writer: w.name()}
	err := w.source.Next(context.Background(), w.log, w.Process, &e, nil)
	e.Op, e.Version, e.Began = history.Invalidating, 0, history.Now()
	w.log.Write(e)
	if err == nil {
		err = w.things.Delete(context.Background(), key)
	}
	e.Op, e.Err = history.Deleted, text(err)
	w.log.Write(e)
}

// lock does under a lock what is wrong without: it reads, computes and writes.
func (w *worker) lock(name string, rng *rand.Rand) {
	e := history.Event{Op: history.Refused, Key: name, Began: history.Now(), Writer: w.name()}
	ctx, cancel := context.WithTimeout(context.Background(), rules.Deadline)
	defer cancel()
	acquire := w.locker.Acquire
	if rng.IntN(4) == 0 {
		acquire = w.locker.TryAcquire
	}
	held, lease, err := acquire(ctx, name)
	if err != nil {
		if !errors.Is(err, fetchonce.ErrLocked) { // others had it, as they may
			e.Err = err.Error()
		}
		w.log.Write(e)
		return
	}
	e.Op, e.Fence = history.Locked, lease.Fence()
	w.log.Write(e)
	unwatch, cut := watch(held)
	err = w.section(held, name, lease.Fence())
	unwatch()
	e.Op, e.Began, e.Cut = history.Unlocked, history.Now(), history.Time(cut.Load())
	w.points.pass(atUnlock)
	if back := lease.Release(); err == nil {
		err = back
	}
	e.Err = text(err)
	w.log.Write(e)
}

// section counts. It claims the row with its fence first, so that the write of
// whoever had the lock before changes nothing any more.
func (w *worker) section(ctx context.Context, name string, fence int64) error {
	var n int64
	db := w.source.DB
	rows, err := db.Query(`UPDATE counters SET fence = $2 WHERE name = $1 AND fence < $2 RETURNING n`, name, fence)
	if err != nil {
		return err
	}
	claimed := rows.Next()
	if claimed {
		err = rows.Scan(&n)
	}
	if err := errors.Join(err, rows.Err(), rows.Close()); err != nil || !claimed {
		return err
	}
	w.points.pass(atLocked)
	w.linger(ctx)
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	done, err := tx.Exec(`UPDATE counters SET n = $2 WHERE name = $1 AND fence = $3`, name, n+1, fence)
	if err != nil {
		return err
	}
	if changed, err := done.RowsAffected(); err != nil || changed == 0 {
		return err
	}
	if _, err := tx.Exec(`INSERT INTO sections VALUES ($1, $2, $3)`, name, fence, w.Process); err != nil {
		return err
	}
	return tx.Commit()
}

// create Gets what is created once, by whoever comes first. All do that in the
// order of time, so that they meet.
func (w *worker) create() {
	e := history.Event{Op: history.Created, Key: fmt.Sprintf("created %d", history.Now()/history.Time(100*time.Millisecond)), Began: history.Now()}
	ctx, cancel := context.WithTimeout(context.Background(), rules.Deadline)
	defer cancel()
	v, err := w.created.Get(ctx, e.Key, func(ctx context.Context, _ string) (string, error) {
		w.linger(ctx)
		return w.name(), nil
	})
	e.Value, e.Err = v, text(err)
	w.log.Write(e)
}
