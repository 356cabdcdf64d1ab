package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// drop measures how long a near entry is served after its value was deleted.
var drop = &run.Workload{
	Name:    "drop",
	About:   "A process deletes a value, through the library or with DEL from another client, while a second process Gets it repeatedly from its near cache. The time is from the end of the deletion to the beginning of the last Get that returned the old value.",
	Full:    run.Times(run.Grid("processes", 2), "by", "delete", "del"),
	Short:   run.Times(run.Grid("processes", 2), "by", "delete"),
	Peers:   loaders(func(l peer.Loader) bool { return l.Kind.Subscribes }),
	Run:     runDrop,
	Columns: []run.Column{run.P99, run.P50, run.Max, {Figure: "ops", Title: "of so many"}, run.Errors},
	Base:    "fetchonce",
}

func runDrop(ctx context.Context, w *run.Worker) error {
	a, err := openLoader(ctx, w, forLong, true)
	if err != nil {
		return err
	}
	d := &dropper{w: w, a: a, rdb: redis.NewClient(&redis.Options{Addr: w.Redis})}
	if err := d.run(ctx); err != nil {
		return err
	}
	if err := d.rdb.Close(); err != nil {
		return err
	}
	return a.Close()
}

// A dropper is one of the two processes. The first deletes, the second reads.
type dropper struct {
	w       *run.Worker
	a       peer.Adapter
	rdb     *redis.Client // another client
	fetches atomic.Int64
	samples *run.Samples // nil while nothing is measured
}

const dropKey = "dropped"

// dropTimeout is after how long an entry counts as never dropped.
const dropTimeout = 5 * time.Second

func (d *dropper) run(ctx context.Context) error {
	if err := d.round(ctx); err != nil { // to warm up
		return err
	}
	d.samples = d.w.Samples("")
	if err := d.w.Begin(); err != nil {
		return err
	}
	for {
		more, err := d.w.Meet(strconv.FormatBool(time.Since(d.w.Begun()) < d.w.For))
		if err != nil {
			return err
		}
		if more[0] != "true" {
			return d.w.End()
		}
		if err := d.round(ctx); err != nil {
			return err
		}
	}
}

func (d *dropper) round(ctx context.Context) error {
	if d.w.Index == 0 {
		return d.deleter(ctx)
	}
	return d.reader(ctx)
}

func (d *dropper) deleter(ctx context.Context) error {
	if _, err := d.w.Meet(""); err != nil { // the reader has its copy
		return err
	}
	time.Sleep(time.Duration(rand.Int64N(int64(2 * time.Millisecond)))) // at a random moment of any polling interval
	if err := d.delete(ctx); err != nil {
		return err
	}
	_, err := d.w.Meet(strconv.FormatInt(time.Now().UnixNano(), 10))
	return err
}

func (d *dropper) delete(ctx context.Context) error {
	if d.w.Params["by"] == "delete" {
		return d.a.(peer.Deleter).Delete(ctx, dropKey)
	}
	keys, err := d.rdb.Keys(ctx, "*"+dropKey+"*").Result() // under any name that the library uses
	if err != nil {
		return err
	}
	return d.rdb.Del(ctx, keys...).Err()
}

func (d *dropper) reader(ctx context.Context) error {
	old, err := d.settle(ctx)
	if err != nil {
		return err
	}
	if _, err := d.w.Meet(""); err != nil {
		return err
	}
	last := time.Now() // when a Get began that returned the old value
	for began := last; ; began = time.Now() {
		t, err := d.get(ctx)
		if err != nil {
			return err
		}
		if t.ID != old {
			break
		}
		if last = began; time.Since(last) > dropTimeout {
			return fmt.Errorf("the old value is still there after %v", dropTimeout)
		}
		runtime.Gosched()
	}
	notes, err := d.w.Meet("")
	if err != nil || d.samples == nil {
		return err
	}
	deleted, err := strconv.ParseInt(notes[0], 10, 64)
	if err != nil {
		return err
	}
	d.samples.Add(time.Duration(last.UnixNano() - deleted)) // if before it, 0
	d.w.Ops(1)
	return nil
}

// settle waits until the reader Gets the same value repeatedly without a fetch, and returns that value.
func (d *dropper) settle(ctx context.Context) (id int64, err error) {
	const same = 100
	for n := 0; n < same; n++ {
		before := d.fetches.Load()
		t, err := d.get(ctx)
		if err != nil {
			return 0, err
		}
		if t.ID != id || d.fetches.Load() != before {
			id, n = t.ID, 0
		}
	}
	return id, nil
}

func (d *dropper) get(ctx context.Context) (peer.Thing, error) {
	return d.a.Get(ctx, dropKey, func(_ context.Context, key string) (peer.Thing, error) {
		t := thing(key, 0)
		t.ID = d.fetches.Add(1)
		return t, nil
	})
}
