//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/chaos/origin"
)

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

// guarded calls f and turns a panic into an error.
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

// fetch reads the source. It may fail, be slow or ignore its context.
func (w *worker) fetch(ctx context.Context, key string, fence int64) (v thing, err error) {
	if ctx.Err() != nil {
		return v, context.Cause(ctx) // the fetch does not begin
	}
	since, _ := ctx.Value(began{}).(history.Time)
	e := history.Event{Op: history.Fetching, Key: key, Fence: fence, Build: w.Build, Began: since, Writer: w.name()}
	w.log.Write(e)
	start := history.Now()
	unwatch, cut := watch(ctx)
	err = errNoReturn // recorded if the fetch panics or exits
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
	version, failed := w.source.Version(context.WithoutCancel(ctx), key)
	if failed != nil {
		return v, failed
	}
	w.points.pass(atFetch)
	w.delay(ctx)
	if history.Now().Sub(start) > rules.Lease && ctx.Err() != nil && rand.N(2) == 0 {
		panic(history.Injected + " panic after the lease") // as user code may
	}
	return thing{key, version, canary}, nil
}

var errNoReturn = errors.New("the fetch did not return")

// watch records when a context ends.
func watch(ctx context.Context) (unwatch func() bool, ended *atomic.Int64) {
	ended = new(atomic.Int64)
	return context.AfterFunc(ctx, func() { ended.Store(int64(history.Now())) }), ended
}

// fail makes a fetch fail with the given fault.
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

// delay waits, mostly for milliseconds and sometimes for longer than a lease. One time in four it
// ignores the context.
func (w *worker) delay(ctx context.Context) {
	took := rand.N(2 * time.Millisecond)
	switch n := rand.N(100); {
	case n < 65 && w.Redis.Profile == full: // so that much is held when Redis becomes full and long after
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
		w.delay(ctx)
		err := w.source.Next(ctx, w.log, w.Process, &e, nil)
		w.points.pass(atWritten)
		w.delay(ctx)
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

// lock reads, computes and writes under a lock, which would lose writes without one.
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
		if !errors.Is(err, fetchonce.ErrLocked) { // another holder is no error
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

// section increments a counter. It claims the row with its fence first, so that a late write of an
// earlier holder changes nothing.
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
	w.delay(ctx)
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

// create Gets a value that is created once. The key follows from the time, so that workers create it
// at the same moment.
func (w *worker) create() {
	e := history.Event{Op: history.Created, Key: fmt.Sprintf("created %d", history.Now()/history.Time(100*time.Millisecond)), Began: history.Now()}
	ctx, cancel := context.WithTimeout(context.Background(), rules.Deadline)
	defer cancel()
	v, err := w.created.Get(ctx, e.Key, func(ctx context.Context, _ string) (string, error) {
		w.delay(ctx)
		return w.name(), nil
	})
	e.Value, e.Err = v, text(err)
	w.log.Write(e)
}
