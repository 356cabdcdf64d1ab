package fetchonce_test

import (
	"context"
	"errors"
	"hash/crc32"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

type (
	backend = redistest.Backend
	options = fetchonce.Options[string]
	loader  = *fetchonce.Loader[string]
)

// newLoader returns the loader of a new process. If its Redis answers, the process
// hears what others say: a busy machine may take longer for that than a first miss
// waits, and what is said meanwhile would be missed.
func newLoader(t *testing.T, r backend, change ...func(*options)) loader {
	t.Helper()
	l := loaderOf(t, r.Client(), change...)
	if r.Fake() {
		return l
	}
	for end := time.Now().Add(2 * time.Second); !l.Listen() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	return l
}

// loaderOf returns a loader over a client. What it has to say to its log is said
// to nobody. It is patient with Redis: the machine may be busy with other tests.
func loaderOf(t *testing.T, rdb redis.UniversalClient, change ...func(*options)) loader {
	t.Helper()
	opt := options{Prefix: "test", RedisTimeout: 10 * time.Second, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&opt)
	}
	l, err := fetchonce.New(rdb, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// shortLease makes leases as short as a test can bear to wait for their end: in
// a bubble that costs nothing.
func shortLease(r backend) func(*options) {
	return func(opt *options) { opt.Lease = leaseLength(r) }
}

func leaseLength(r backend) time.Duration {
	if r.Fake() {
		return 5 * time.Second
	}
	return time.Second // a busy machine renews it in time
}

// An origin is the slow remote thing. Its fetch counts, and waits until it is
// told what to answer.
type origin struct {
	t      *testing.T
	began  chan *call // receives each fetch when it begins
	ignore bool       // the contexts of the fetches

	mu    sync.Mutex
	calls []*call
}

// A call is one fetch.
type call struct {
	ctx    context.Context
	key    string
	number int // from 1
	answer chan reply
}

type reply struct {
	value string
	err   error
	do    func() // in the place of an answer
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	return &origin{t: t, began: make(chan *call, 10_000)}
}

func (o *origin) fetch(ctx context.Context, key string) (string, error) {
	o.mu.Lock()
	c := &call{ctx: ctx, key: key, number: len(o.calls) + 1, answer: make(chan reply, 1)}
	o.calls = append(o.calls, c)
	o.mu.Unlock()
	o.began <- c
	if o.ignore {
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case a := <-c.answer:
		if a.do != nil {
			a.do()
		}
		return a.value, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (o *origin) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.calls)
}

// next returns the next fetch once it has begun.
func (o *origin) next() *call {
	o.t.Helper()
	select {
	case c := <-o.began:
		return c
	case <-time.After(time.Minute):
		o.t.Fatal("no fetch began")
		return nil
	}
}

// want fails the test unless there were n fetches.
func (o *origin) want(n int) {
	o.t.Helper()
	if got := o.count(); got != n {
		o.t.Errorf("%d fetches, want %d", got, n)
	}
}

func (c *call) returns(value string) { c.answer <- reply{value: value} }
func (c *call) fails(err error)      { c.answer <- reply{err: err} }
func (c *call) does(do func())       { c.answer <- reply{do: do} }

// An outcome is what one Get came to.
type outcome struct {
	value    string
	err      error
	panicked any
}

// A getter is one Get under way.
type getter struct {
	t    *testing.T
	done chan outcome
}

func get(t *testing.T, ctx context.Context, l loader, key string, o *origin) *getter {
	t.Helper()
	g := &getter{t, make(chan outcome, 1)}
	go func() {
		var out outcome
		defer func() {
			out.panicked = recover()
			g.done <- out
		}()
		out.value, out.err = l.Get(ctx, key, o.fetch)
	}()
	return g
}

func (g *getter) outcome() outcome {
	g.t.Helper()
	select {
	case out := <-g.done:
		return out
	case <-time.After(2 * time.Minute):
		g.t.Fatal("a Get never returned")
		return outcome{}
	}
}

func (g *getter) want(value string) {
	g.t.Helper()
	if out := g.outcome(); out.value != value || out.err != nil || out.panicked != nil {
		g.t.Errorf("Get = %q, %v, panic %v; want %q, nil", out.value, out.err, out.panicked, value)
	}
}

func (g *getter) wantErr(want error) {
	g.t.Helper()
	if out := g.outcome(); !errors.Is(out.err, want) {
		g.t.Errorf("Get = %q, %v; want error %v", out.value, out.err, want)
	}
}

// returned reports whether the Get has returned.
func (g *getter) returned() bool { return len(g.done) > 0 }

// scripts returns how many scripts a client has sent.
func scripts(rdb redis.UniversalClient) int {
	n := 0
	for _, name := range redistest.WireOf(rdb).Commands() {
		if name == "EVALSHA" || name == "EVAL" {
			n++
		}
	}
	return n
}

// A gate stops scripts of a client on their way to Redis.
type gate struct {
	mu      sync.Mutex
	closed  chan struct{} // nil while it is open; closed when it opens
	stopped chan struct{} // receives when a script has been stopped
}

func newGate(rdb redis.UniversalClient) *gate {
	g := &gate{stopped: make(chan struct{}, 1000)}
	addHook(rdb, g)
	return g
}

// addHook adds a hook to a client that has not been used. The library sends by the
// clients of a cluster's nodes, so those have it.
func addHook(rdb redis.UniversalClient, hook redis.Hook) {
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(hook) })
		return
	}
	rdb.AddHook(hook)
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.closed)
	g.closed = nil
}

func (g *gate) pass(cmd redis.Cmder) {
	g.mu.Lock()
	closed := g.closed
	g.mu.Unlock()
	if closed != nil && cmd.Name() == "evalsha" {
		g.stopped <- struct{}{}
		<-closed
	}
}

func (g *gate) DialHook(next redis.DialHook) redis.DialHook { return next }

func (g *gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		g.pass(cmd)
		return next(ctx, cmd)
	}
}

func (g *gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			g.pass(cmd)
		}
		return next(ctx, cmds)
	}
}

// keys returns all keys in Redis.
func keys(t *testing.T, r backend) []string {
	t.Helper()
	var mu sync.Mutex
	var all []string
	list := func(ctx context.Context, c redis.Cmdable) error {
		found, err := c.Keys(ctx, "*").Result()
		mu.Lock()
		defer mu.Unlock()
		all = append(all, found...)
		return err
	}
	rdb := r.Client()
	var err error
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error { return list(ctx, c) })
	} else {
		err = list(t.Context(), rdb)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// awaitWaiters waits until n processes are registered as waiting for a key.
func awaitWaiters(t *testing.T, r backend, key string, n int) {
	t.Helper()
	rdb := r.Client()
	r.Until("processes wait in Redis", func() bool {
		fields := rdb.HKeys(t.Context(), "test:m:{"+key+"}").Val()
		waiting := 0
		for _, field := range fields {
			if strings.HasPrefix(field, "w") {
				waiting++
			}
		}
		return waiting == n
	})
}

// crcUpdate goes on with the checksum that an envelope has.
func crcUpdate(sum uint32, b []byte) uint32 {
	return crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), b)
}

func isCluster(rdb redis.UniversalClient) bool {
	_, ok := rdb.(*redis.ClusterClient)
	return ok
}

// free lets other scripts pass. The one that was stopped goes on when arrive is called.
func (g *gate) free() (arrive func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	closed := g.closed
	g.closed = nil
	return func() { close(closed) }
}
