package main

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// outage measures calls while Redis is unavailable, and after it is available again.
var outage = &run.Workload{
	Name: "outage",
	About: "64 callers, each a Get and a Do of its own lock in turn with pauses of 5 ms, while Redis is unavailable for 3 seconds, or for as long as -for says. " +
		"A fetch takes 1 ms. Half of the Gets are of one key. refused: no listener. hung: connections are accepted, nothing is answered. blackholed: no SYN is answered. slow: answers take 600 ms.",
	Full:    append(run.Times(outageGrid("refused", "hung", "blackholed", "slow"), "near", 0), run.Times(outageGrid("refused", "hung"), "near", 1)...),
	Short:   run.Times(outageGrid("refused", "hung"), "near", 0),
	Peers:   outagePeers,
	Run:     runOutage,
	Finish:  finishOutage,
	Columns: outageColumns,
	Base:    ours,
}

var outageColumns = []run.Column{
	{Figure: "get_p50_us", Title: "Get after the first failure: p50 µs", Less: true},
	{Figure: "get_p99_us", Title: "p99 µs", Less: true},
	{Figure: "before_p50_us", Title: "before: p50 µs", Less: true},
	{Figure: "before_p99_us", Title: "p99 µs", Less: true},
	{Figure: "failure_ms", Title: "first failure after ms", Less: true},
	{Figure: "hit_ms", Title: "first hit, ms after Redis is back", Less: true},
	{Figure: "back_ms", Title: "last fetch, ms after it", Less: true},
	{Figure: "do_p50_us", Title: "Do's error: p50 µs", Less: true},
	{Figure: "fetches_per_get", Title: "fetches/Get in the outage", Less: true},
	{Figure: "overlaps", Title: "fetches of a key while it was fetched", Less: true},
	{Figure: "near_hits", Title: "near hits in the outage"},
	{Figure: "near_ms", Title: "the last after ms"},
}

func outageGrid(kinds ...any) []run.Params { return run.Grid("redis", kinds...) }

// outagePeers are fetchonce with the recommended settings of the client and with go-redis'
// own, with a circuit breaker and without.
func outagePeers(p run.Params) []string {
	if p["near"] == "1" {
		return []string{ours, ours + "-no-breaker"}
	}
	return []string{ours, ours + "-defaults", ours + "-no-breaker", ours + "-defaults-no-breaker"}
}

const (
	outageCallers = 64
	outageKeys    = 1000
	outagePause   = 5 * time.Millisecond
	originTakes   = time.Millisecond
	leastOutage   = 3 * time.Second
	beforeOutage  = time.Second
	afterOutage   = 5 * time.Second
)

// outageClient returns a client with the settings that the name of a peer says: go-redis' own, or
// those that docs/production.md recommends.
func outageClient(name, addr string) *redis.Client {
	if strings.Contains(name, "-defaults") {
		return redis.NewClient(&redis.Options{Addr: addr})
	}
	return redis.NewClient(&redis.Options{
		Addr:                  addr,
		DialTimeout:           time.Second,
		ReadTimeout:           time.Second,
		WriteTimeout:          time.Second,
		DialerRetries:         1,
		MaxRetries:            1,
		ContextTimeoutEnabled: true,
	})
}

// An outageRun is one process that meets an outage.
type outageRun struct {
	w      *run.Worker
	relay  *relay
	loader *fetchonce.Loader[peer.Thing]
	locker *fetchonce.Locker
	keys   []string

	fetching map[string]*atomic.Int64 // fetches of a key that run
	fetches  atomic.Int64
	overlaps atomic.Int64
	ended    atomic.Bool

	mu  sync.Mutex
	ops []outageOp
}

// An outageOp is one call. Its times are since Begin.
type outageOp struct {
	began, ended time.Duration
	source       fetchonce.Source // of a Get
	isDo, failed bool
}

func runOutage(ctx context.Context, w *run.Worker) (err error) {
	logging.Disable()
	o := &outageRun{w: w, keys: someKeys(outageKeys), fetching: make(map[string]*atomic.Int64)}
	for _, key := range o.keys {
		o.fetching[key] = new(atomic.Int64)
	}
	if o.relay, err = newRelay(w.Redis); err != nil {
		return err
	}
	defer o.relay.close()
	rdb := outageClient(w.Peer, o.relay.addr)
	defer func() { _ = rdb.Close() }()
	if err := o.open(rdb); err != nil {
		return err
	}
	defer func() { _, _ = o.loader.Close(), o.locker.Close() }()
	for range 2 { // the second makes near entries
		if err := o.warm(ctx); err != nil {
			return err
		}
	}
	return o.run(ctx)
}

func (o *outageRun) open(rdb *redis.Client) (err error) {
	quiet := slog.New(slog.DiscardHandler)
	opt := fetchonce.Options[peer.Thing]{Prefix: "outage", TTL: forLong, Logger: quiet}
	locks := fetchonce.LockOptions{Prefix: "outage", Logger: quiet}
	if strings.HasSuffix(o.w.Peer, "-no-breaker") {
		opt.RedisBreaker, locks.RedisBreaker = fetchonce.Off, fetchonce.Off
	}
	if o.w.Params["near"] == "1" {
		opt.Near = fetchonce.Near{Entries: 2 * outageKeys}
	}
	if o.loader, err = fetchonce.New(rdb, opt); err != nil {
		return err
	}
	o.locker, err = fetchonce.NewLocker(rdb, locks)
	return err
}

// warm stores all values and makes the callers connect.
func (o *outageRun) warm(ctx context.Context) error {
	for _, key := range o.keys {
		if _, err := o.loader.Load(ctx, key, o.fetch); err != nil {
			return err
		}
	}
	var callers sync.WaitGroup
	for g := range outageCallers {
		callers.Go(func() {
			for i := range 10 {
				_, _ = o.loader.Load(ctx, o.keys[g*10+i], o.fetch)
				_ = o.locker.Do(ctx, lockOf(g), nothing)
			}
		})
	}
	callers.Wait()
	return nil
}

func lockOf(caller int) string { return "lock:" + strconv.Itoa(caller) }

func nothing(context.Context) error { return nil }

func (o *outageRun) fetch(_ context.Context, f *fetchonce.Fetch[peer.Thing]) (peer.Thing, error) {
	running := o.fetching[f.Key]
	if running.Add(1) > 1 {
		o.overlaps.Add(1)
	}
	defer running.Add(-1)
	o.fetches.Add(1)
	time.Sleep(originTakes)
	return thing(f.Key, 0), nil
}

// run makes the callers call before, during and after the outage.
func (o *outageRun) run(ctx context.Context) error {
	if err := o.w.Begin(); err != nil {
		return err
	}
	o.fetches.Store(0)
	o.overlaps.Store(0)
	var callers sync.WaitGroup
	for g := range outageCallers {
		callers.Go(func() { o.call(ctx, g) })
	}
	time.Sleep(beforeOutage)
	down := time.Since(o.w.Begun())
	err := o.relay.fail(o.w.Params["redis"])
	if err == nil {
		time.Sleep(max(o.w.For, leastOutage))
		err = o.relay.serve()
	}
	o.w.Count("fetches", float64(o.fetches.Load()))
	back := time.Since(o.w.Begun())
	time.Sleep(afterOutage)
	o.ended.Store(true)
	callers.Wait()
	if err != nil {
		return err
	}
	o.report(down, back)
	return o.w.End()
}

// call is one caller.
func (o *outageRun) call(ctx context.Context, caller int) {
	since := func() time.Duration { return time.Since(o.w.Begun()) }
	var ops []outageOp
	for !o.ended.Load() {
		time.Sleep(outagePause)
		key := o.keys[0]
		if rand.IntN(2) == 0 {
			key = o.keys[rand.IntN(len(o.keys))]
		}
		op := outageOp{began: since()}
		got, err := o.loader.Load(ctx, key, o.fetch)
		op.ended, op.source, op.failed = since(), got.Source, err != nil
		if err != nil {
			o.w.Failed(err)
		}
		ops = append(ops, op)
		time.Sleep(outagePause)
		op = outageOp{began: since(), isDo: true}
		op.failed = o.locker.Do(ctx, lockOf(caller), nothing) != nil
		op.ended = since()
		ops = append(ops, op)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ops = append(o.ops, ops...)
}

// report counts the calls by when they were made.
func (o *outageRun) report(down, back time.Duration) {
	failure := o.firstFailure(down)
	before, get, do := o.w.Samples("before"), o.w.Samples("get"), o.w.Samples("do")
	hit, last, near := back+afterOutage, back, down
	for _, op := range o.ops {
		took := op.ended - op.began
		during := op.began >= down && op.began < back
		switch {
		case during && op.isDo && op.failed && op.began > failure:
			do.Add(took)
		case op.isDo:
		case op.ended < down:
			before.Add(took)
		case during:
			o.w.Count("gets", 1)
			if op.began > failure {
				get.Add(took)
			}
			if op.source == fetchonce.SourceNear {
				o.w.Count("near_hits", 1)
				near = max(near, op.began)
			}
		case op.began >= back && op.source == fetchonce.SourceRedis:
			hit = min(hit, op.ended)
		}
		if op.source == fetchonce.SourceFetch {
			last = max(last, op.ended)
		}
	}
	o.w.Ops(int64(len(o.ops)))
	o.w.Count("overlaps", float64(o.overlaps.Load()))
	for figure, d := range map[string]time.Duration{"failure_ms": failure - down, "hit_ms": hit - back, "back_ms": last - back, "near_ms": near - down} {
		o.w.Count(figure, float64(d)/float64(time.Millisecond))
	}
}

// firstFailure returns when the first call that met the outage returned.
func (o *outageRun) firstFailure(down time.Duration) time.Duration {
	first := down + time.Hour
	for _, op := range o.ops {
		if op.ended > down && (op.failed || op.source == fetchonce.SourceFetch) {
			first = min(first, op.ended)
		}
	}
	return first
}

func finishOutage(_ run.Params, _ *run.Result, f run.Figures) error {
	f["fetches_per_get"] = f["fetches"] / f["gets"]
	return nil
}
