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

// rules are the limits that a run must keep.
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
	redisBreaker = 500 * time.Millisecond // so that a probe succeeds within Recovery
	drainLimit   = 10 * time.Second
	slow         = 100 * time.Millisecond // a longer reply counts as slow
	canary       = "canary-5dd1f0a7"      // in every value and in every password
)

// jobVariable is the environment variable that makes this program a worker.
const jobVariable = "FETCHONCE_CHAOS_WORKER"

// The lines that a worker prints, besides "at" and a point.
const (
	ready    = "ready"
	disarmed = "disarmed"
)

// A job tells a worker what to do.
type job struct {
	Process string
	Build   int // decides the type of its values; see build.go
	Seed    uint64
	Redis   place
	Proxies map[string]string // the address to dial for each address of Redis
	DSN     string
	Dir     string // of the history and the logs
}

// A worker is one of the processes that use the library.
type worker struct {
	job
	rdb     redis.UniversalClient
	source  *origin.Source
	things  things
	created *fetchonce.Loader[string]
	locker  *fetchonce.Locker
	log     *history.Log
	points  points

	number atomic.Int64 // of writes, fetches and locks
	calls  atomic.Int64 // that run
	ended  atomic.Bool
	faults chan history.Fault // for the next fetches
}

// work runs a worker. It reads orders line by line until its input ends.
func work(description string) error {
	logging.Disable() // go-redis also logs the errors that it returns
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
	all.Go(w.recordStalls)
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
	logFile, err := os.OpenFile(filepath.Join(w.Dir, "log-"+w.Process), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(logFile, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.rdb = w.Redis.client(w.Proxies)
	mutant, err := swapOf(swapVariable)
	if err != nil {
		return err
	}
	addHooks(w.rdb, sendHook(w.points.around))
	if mutant != nil {
		addHooks(w.rdb, sendHook(mutant.around)) // after the points, which know only the library's scripts
	}
	if w.source, err = origin.Open(w.DSN); err != nil {
		return err
	}
	table, err := oncesql.New(w.source.DB, oncesql.Options[string]{Dialect: oncesql.Postgres, Table: "created"})
	if err != nil {
		return err
	}
	if w.things, err = w.openThings(logger); err != nil {
		return err
	}
	w.created, err = fetchonce.New(w.rdb, fetchonce.Options[string]{
		Prefix: prefix + "-created", TTL: time.Hour, Lease: rules.Lease, FetchTimeout: rules.FetchTimeout, RedisTimeout: redisTimeout, RedisBreaker: redisBreaker,
		Logger: logger, Store: timed{table, w.log},
	})
	if err != nil {
		return err
	}
	w.locker, err = fetchonce.NewLocker(w.rdb, fetchonce.LockOptions{
		Prefix: prefix, Lease: rules.Lease, RedisTimeout: redisTimeout, RedisBreaker: redisBreaker, Logger: logger,
	})
	return err
}

// timed is a Store that records when the database is slow, which excuses a fetch that takes too
// long.
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

// await waits for goroutines to end and returns how many have not.
func (w *worker) await(before int) (left int) {
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if left = runtime.NumGoroutine() - before; left <= 0 || time.Now().After(end) {
			return max(left, 0)
		}
	}
}

// dump writes the stacks of all goroutines to a file.
func (w *worker) dump(name string) {
	f, err := os.Create(filepath.Join(w.Dir, name+"-"+w.Process))
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	_ = pprof.Lookup("goroutine").WriteTo(f, 2)
}

// obey executes an order of the supervisor.
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

// recordStalls records when this process did not run.
func (w *worker) recordStalls() {
	const interval = 10 * time.Millisecond
	last := history.Now()
	for !w.ended.Load() {
		time.Sleep(interval)
		now := history.Now()
		if now.Sub(last) > slow {
			w.log.Write(history.Event{Op: history.Hit, Fault: history.Starved, Began: last})
		}
		last = now
	}
}

// call calls random methods of the library until the worker ends.
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

// began is the context key of the time at which a Get began.
type began struct{}
