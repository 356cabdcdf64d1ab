package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A bulk is an origin for batch fetches. Its value for a key is "v of" and the key, unless the
// test sets answer.
type bulk struct {
	mu      sync.Mutex
	batches [][]string
	fetched map[string]int
	answer  func(ctx context.Context, keys []string) (map[string]string, error) // nil: valuesOf
}

func (b *bulk) fetch(ctx context.Context, keys []string) (map[string]string, error) {
	b.mu.Lock()
	if b.fetched == nil {
		b.fetched = make(map[string]int)
	}
	keys = slices.Sorted(slices.Values(keys))
	b.batches = append(b.batches, keys)
	for _, key := range keys {
		b.fetched[key]++
	}
	answer := b.answer
	b.mu.Unlock()
	if answer != nil {
		return answer(ctx, keys)
	}
	return valuesOf(keys), nil
}

func (b *bulk) counts() (batches int, fetched map[string]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.batches), maps.Clone(b.fetched)
}

func valuesOf(keys []string) map[string]string {
	values := make(map[string]string)
	for _, key := range keys {
		values[key] = "v of " + key
	}
	return values
}

func numbered(from, to int) []string {
	var keys []string
	for i := from; i < to; i++ {
		keys = append(keys, "key"+strconv.Itoa(i))
	}
	return keys
}

func wantMany(t *testing.T, l loader, keys []string, b *bulk) {
	t.Helper()
	got, err := l.GetMany(t.Context(), keys, b.fetch)
	if err != nil || !maps.Equal(got, valuesOf(keys)) {
		t.Errorf("GetMany of %d keys = %d values, %v", len(keys), len(got), err)
	}
}

func TestGetManyFetchesInOneBatch(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		b := &bulk{}
		l, other := newLoader(t, r), newLoader(t, r)
		keys := numbered(0, 100)
		wantMany(t, l, append(keys, keys...), b) // each key twice
		if n, _ := b.counts(); n != 1 || len(b.batches[0]) != 100 {
			t.Errorf("fetched in %d batches", n)
		}
		wantMany(t, other, keys, b)
		wantMany(t, other, nil, b)
		wantMany(t, l, numbered(50, 150), b)
		if n, _ := b.counts(); n != 2 || !slices.Equal(b.batches[1], slices.Sorted(slices.Values(numbered(100, 150)))) {
			t.Errorf("fetched %v in %d batches; want the fifty that were missing", b.batches[1:], n)
		}
		testkit.WantNoKeyForEver(t, r)
	})
}

// Hits cost one round trip per node.
func TestGetManyReadsInOneRoundTrip(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		b := &bulk{}
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb)
		keys := numbered(0, 500)
		wantMany(t, l, keys, b)
		wire := redistest.WireOf(rdb)
		wantMany(t, l, keys, b) // each node has a connection
		wire.Reset()
		wantMany(t, l, keys, b)
		if trips := wire.RoundTrips(); trips > 3 || trips > 1 && !isCluster(rdb) {
			t.Errorf("500 hits took %d round trips", trips)
		}
		if n, _ := b.counts(); n != 1 {
			t.Errorf("%d batches", n)
		}
	})
}

// Fifty overlapping GetManys in four processes fetch each key once.
func TestOverlappingBatchesFetchEachKeyOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		b := &bulk{answer: func(_ context.Context, keys []string) (map[string]string, error) {
			if r.Fake() {
				time.Sleep(50 * time.Millisecond)
			}
			return valuesOf(keys), nil
		}}
		loaders := []loader{newLoader(t, r), newLoader(t, r), newLoader(t, r), newLoader(t, r)}
		all := numbered(0, 500)
		var running sync.WaitGroup
		for i := range 50 {
			from := rand.N(450)
			keys := all[from : from+50]
			running.Go(func() { wantMany(t, loaders[i%4], keys, b) })
			running.Go(func() {
				got, err := loaders[(i+1)%4].Get(t.Context(), keys[0], func(ctx context.Context, key string) (string, error) {
					values, err := b.fetch(ctx, []string{key})
					return values[key], err
				})
				if got != "v of "+keys[0] || err != nil {
					t.Errorf("Get = %q, %v", got, err)
				}
			})
		}
		running.Wait()
		_, fetched := b.counts()
		twice := 0
		for _, n := range fetched {
			if n != 1 {
				twice++
			}
		}
		if twice > 0 {
			t.Errorf("%d of %d keys were fetched more than once", twice, len(fetched))
		}
	})
}

func TestGetManyReturnsTheValuesBesideItsErrors(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		boom := errors.New("boom")
		b := &bulk{answer: func(context.Context, []string) (map[string]string, error) {
			return map[string]string{"a": "v of a"}, boom
		}}
		l := newLoader(t, r)
		if err := l.Set(t.Context(), "kept", "v of kept"); err != nil {
			t.Fatal(err)
		}
		got, err := l.GetMany(t.Context(), []string{"a", "b", "c", "kept"}, b.fetch)
		if !maps.Equal(got, valuesOf([]string{"a", "kept"})) {
			t.Errorf("GetMany = %v", got)
		}
		many, ok := errors.AsType[*fetchonce.ManyError](err)
		if !ok || !errors.Is(err, boom) || len(many.Errors) != 2 || many.Errors["b"] != boom || many.Errors["c"] != boom {
			t.Errorf("GetMany = %v, want an error that lists b and c", err)
		}

		// A failure is not cached. A key that the result lacks is cached as not found.
		b.answer = func(context.Context, []string) (map[string]string, error) {
			return map[string]string{"b": "v of b"}, nil
		}
		got, err = l.GetMany(t.Context(), []string{"a", "b", "c"}, b.fetch)
		if !maps.Equal(got, valuesOf([]string{"a", "b"})) || err != nil {
			t.Errorf("GetMany = %v, %v", got, err)
		}
		testkit.Get(t, t.Context(), l, "c", testkit.NewOrigin(t)).WantErr(fetchonce.ErrNotFound)
		if _, fetched := b.counts(); fetched["a"] != 1 || fetched["c"] != 2 {
			t.Errorf("fetched %v", fetched)
		}
	})
}

func TestPanicOfABatchFetchReachesItsCallers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		b := &bulk{answer: func(context.Context, []string) (map[string]string, error) { panic("oh no") }}
		l := newLoader(t, r)
		func() {
			defer func() {
				if p, ok := recover().(*fetchonce.PanicError); !ok || p.Value != "oh no" {
					t.Errorf("panicked with %v", p)
				}
			}()
			_, _ = l.GetMany(t.Context(), numbered(0, 10), b.fetch)
		}()
		b.answer = nil
		wantMany(t, l, numbered(0, 10), b)
	})
}

// A batch fetch is cancelled when no caller waits for any of its keys.
func TestLastCallerThatLeavesCancelsTheBatchFetch(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		began, ended := make(chan struct{}), make(chan error, 1)
		b := &bulk{}
		b.answer = func(ctx context.Context, keys []string) (map[string]string, error) {
			if n, _ := b.counts(); n > 1 {
				return valuesOf(keys), nil
			}
			close(began)
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return nil, ctx.Err()
		}
		l := newLoader(t, r, func(opt *options) { opt.Lease = time.Minute })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := l.GetMany(ctx, numbered(0, 10), b.fetch)
			done <- err
		}()
		<-began
		joined := testkit.Get(t, t.Context(), l, "key3", testkit.NewOrigin(t))
		r.Until("it has joined", func() bool { return l.Callers("key3") == 2 })
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("GetMany = %v", err)
		}
		r.Settle()
		if r.Fake() && len(ended) > 0 {
			t.Error("the fetch was cancelled, although a caller waits for one of its keys")
		}
		wantMany(t, newLoader(t, r), numbered(0, 3), &bulk{}) // the leases of the other keys are free
		if !r.Fake() {
			return // the Get may have joined too late
		}
		if err := l.Delete(t.Context(), "key3"); err != nil { // ends the last lease of the batch fetch
			t.Fatal(err)
		}
		if cause := <-ended; !errors.Is(cause, fetchonce.ErrLockLost) {
			t.Errorf("the fetch was cancelled because of %v", cause)
		}
		joined.Want("v of key3")
	})
}

// A process dies during a batch fetch. Another process fetches the keys in a few batch fetches.
func TestGetManyTakesOverFromADeadProcess(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		began := make(chan struct{}, 1000)
		dead := &bulk{answer: func(ctx context.Context, _ []string) (map[string]string, error) {
			began <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		rdb := r.Client()
		holder := testkit.LoaderOf(t, rdb, testkit.ShortLease(r))
		go func() { _, _ = holder.GetMany(t.Context(), numbered(0, 200), dead.fetch) }()
		<-began
		redistest.WireOf(rdb).Down()
		b := &bulk{}
		wantMany(t, newLoader(t, r, testkit.ShortLease(r)), numbered(0, 200), b)
		n, fetched := b.counts()
		if len(fetched) != 200 || n > 100 {
			t.Errorf("%d keys were fetched in %d batches", len(fetched), n)
		}
		_ = holder.Close()
		redistest.WireOf(rdb).Up()
		if r.Fake() {
			time.Sleep(2 * time.Second) // until go-redis has reconnected
		}
	})
}

//test:long
func TestGetManyOfTenThousandKeys(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		b := &bulk{}
		l := testkit.LoaderOf(t, r.Plain(), func(opt *options) { opt.RedisTimeout, opt.Lease = time.Minute, time.Minute }) // the machine may be busy
		keys := numbered(0, 10_000)
		wantMany(t, l, keys, b)
		wantMany(t, l, keys, b)
		if n, fetched := b.counts(); n != 1 || len(fetched) != 10_000 {
			t.Errorf("%d keys in %d batches", len(fetched), n)
		}
	})
}

// One node of a cluster is down. GetMany returns the keys of the other nodes.
func TestGetManyReturnsTheKeysOfTheNodesThatAreUp(t *testing.T) {
	c := redistest.Cluster(t)
	l := testkit.LoaderOf(t, c.Client(), testkit.WithPolicy(fetchonce.FailClosed))
	keys := numbered(0, 100)
	if _, err := l.GetMany(t.Context(), keys, (&bulk{}).fetch); err != nil {
		t.Fatal(err)
	}
	c.Nodes()[0].Kill()
	got, err := l.GetMany(t.Context(), keys, (&bulk{}).fetch)
	many, ok := errors.AsType[*fetchonce.ManyError](err)
	if !ok || len(got) < 30 || len(got)+len(many.Errors) != len(keys) {
		t.Errorf("GetMany = %d values, %v", len(got), err)
	}
	for key := range many.Errors {
		if _, ok := got[key]; ok {
			t.Errorf("%s has a value and an error", key)
		}
	}
}

// One node is down, and all keys have near entries. Those of the lost node are not used.
func TestGetManyNearWithANodeDown(t *testing.T) {
	c := redistest.Cluster(t)
	l := testkit.LoaderOf(t, c.Client(), testkit.WithNear, testkit.WithPolicy(fetchonce.FailClosed))
	keys := numbered(0, 100)
	wantMany(t, l, keys, &bulk{})
	warmMany(t, c.Backend(), l, keys)
	c.Nodes()[0].Kill()
	c.Backend().Until("the loss is noticed", func() bool {
		_, err := l.GetMany(t.Context(), keys, (&bulk{}).fetch)
		return err != nil
	})
	for range 3 {
		got, err := l.GetMany(t.Context(), keys, (&bulk{}).fetch)
		many, ok := errors.AsType[*fetchonce.ManyError](err)
		if !ok || len(got) < 30 || len(got)+len(many.Errors) != len(keys) {
			t.Errorf("GetMany = %d values, %v", len(got), err)
		}
	}
}

func TestGetManyWithAStore(t *testing.T) {
	storeForms(t, func(t *testing.T, r backend, s *table, with func(*options)) {
		s.rows["key1"] = "v of key1"
		b := &bulk{}
		l := newLoader(t, r, with)
		wantMany(t, l, numbered(0, 4), b)
		if _, fetched := b.counts(); len(fetched) != 3 || fetched["key1"] != 0 {
			t.Errorf("fetched %v; want the three without a row", fetched)
		}
		if got := s.row("key3"); got != "v of key3" {
			t.Errorf("the row is %q", got)
		}
		wantMany(t, l, numbered(0, 4), b)
		if n, _ := b.counts(); n != 1 {
			t.Errorf("%d batches", n)
		}
	})
}

func TestGetManyOfStaleValues(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, aging(func(opt *options) {
			opt.StaleWhileRevalidate, opt.StaleIfError, opt.SoftTimeout = time.Minute, time.Hour, time.Second
		}))
		for _, key := range numbered(0, 3) {
			_ = l.Set(t.Context(), key, "v of "+key)
		}
		boom := &bulk{answer: func(context.Context, []string) (map[string]string, error) { return nil, errors.New("boom") }}
		time.Sleep(61 * time.Second) // refreshed in the background
		wantMany(t, l, numbered(0, 3), boom)
		time.Sleep(2 * time.Minute) // the fallback value is returned instead of the error
		wantMany(t, l, numbered(0, 3), boom)
		if n, fetched := boom.counts(); n != 2 || fetched["key1"] != 2 {
			t.Errorf("%d batches, fetched %v", n, fetched)
		}
		time.Sleep(5 * time.Minute)
		slow := &bulk{answer: func(_ context.Context, keys []string) (map[string]string, error) {
			time.Sleep(10 * time.Second)
			return valuesOf(keys), nil
		}}
		started := time.Now()
		wantMany(t, l, numbered(0, 3), slow)
		if waited := time.Since(started); waited != time.Second {
			t.Errorf("waited %v, want the soft timeout", waited)
		}
		time.Sleep(10 * time.Second)
		if got, err := l.Peek(t.Context(), "key1"); got.Stale || err != nil {
			t.Errorf("Peek = %+v, %v; want the new value", got, err)
		}
	})
}

func TestGetManyTakesOnePermitOfMaxFetches(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, func(opt *options) { opt.MaxFetches = 1 })
		wantMany(t, l, numbered(0, 20), &bulk{}) // a batch fetch takes one permit
		o := testkit.NewOrigin(t)
		g := testkit.Get(t, t.Context(), l, "other", o)
		c := o.Next()
		done := make(chan struct{})
		b := &bulk{}
		go func() {
			defer close(done)
			wantMany(t, l, numbered(20, 40), b)
		}()
		r.Until("the GetMany has looked up its keys", func() bool { return testkit.Gets(r) >= 41 })
		r.Settle()
		if n, _ := b.counts(); n != 0 {
			t.Error("two fetches at once")
		}
		c.Returns("v")
		g.Want("v")
		<-done
	})
}

func TestReentrantGetManyIsRefused(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r)
		_, err := l.GetMany(t.Context(), numbered(0, 3), func(ctx context.Context, keys []string) (map[string]string, error) {
			return l.GetMany(ctx, keys, (&bulk{}).fetch)
		})
		if many, ok := errors.AsType[*fetchonce.ManyError](err); !ok || len(many.Errors) != 3 {
			t.Errorf("GetMany = %v, want an error for each key", err)
		}
	})
}

func ExampleLoader_GetMany() {
	rdb, end := newRedis()
	defer end()
	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{Prefix: "things"})
	if err != nil {
		panic(err)
	}
	defer things.Close()

	fetch := func(_ context.Context, names []string) (map[string]Thing, error) {
		found := make(map[string]Thing) // one call for all names that are not kept
		for _, name := range names {
			if name != "unicorn" {
				found[name] = Thing{Name: name}
			}
		}
		return found, nil
	}
	found, err := things.GetMany(context.Background(), []string{"teapot", "kettle", "unicorn"}, fetch)
	fmt.Println(len(found), found["teapot"].Name, err)
	// Output: 2 teapot <nil>
}

// A GetMany is late for a flight, so it looks up the key again. The Store panics in that lookup,
// and the GetMany panics.
func TestPanicOfASecondStoreLookupReachesItsCaller(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		s := &panicky{slowTable: newSlowTable()}
		l := newLoader(t, r, func(opt *options) { opt.TTL, opt.Store = fetchonce.Off, s })
		g := testkit.Get(t, t.Context(), l, "k", o)
		o.Next().Returns("v")
		c := s.next(t)
		many := make(chan any, 1)
		go func() {
			defer func() { many <- recover() }()
			got, err := l.GetMany(t.Context(), []string{"k"}, func(context.Context, []string) (map[string]string, error) { return nil, nil })
			t.Errorf("GetMany = %v, %v; want a panic", got, err)
		}()
		synctest.Wait()
		if err := newLoader(t, r).Delete(t.Context(), "k"); err != nil { // so FILL is refused, and later callers look up again
			t.Fatal(err)
		}
		synctest.Wait()
		s.panics.Store(true)
		c.end <- nil
		g.Want("v")
		if p, ok := (<-many).(*fetchonce.PanicError); !ok || p.Value != "the Store" {
			t.Errorf("GetMany panicked with %v, want a PanicError of the Store", p)
		}
	})
}

// A panicky is a slowTable whose Lookup panics if panics is set.
type panicky struct {
	*slowTable
	panics atomic.Bool
}

func (s *panicky) Lookup(ctx context.Context, key string) (string, error) {
	if s.panics.Load() {
		panic("the Store")
	}
	return s.slowTable.Lookup(ctx, key)
}

// delays is a hook that delays each round trip and can hold back scripts.
type delays struct {
	takes time.Duration
	hold  func() bool // reports whether the next script receives no reply
}

func (delays) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d delays) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		d.delay(ctx, cmd)
		return next(ctx, cmd)
	}
}

func (d delays) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		d.delay(ctx, cmds[0])
		return next(ctx, cmds)
	}
}

func (d delays) delay(ctx context.Context, cmd redis.Cmder) {
	time.Sleep(d.takes)
	if cmd.Name() == "evalsha" && d.hold() {
		<-ctx.Done()
	}
}

// 10,000 loads at once keep Redis busy for longer than RedisTimeout: it answers 300 of them in
// 100 ms. None fails. If Redis hangs meanwhile, all end within seconds.
//
//test:long
func TestGetManyOfManyColdKeys(t *testing.T) {
	for name, hangs := range map[string]bool{"Redis answers": false, "Redis hangs meanwhile": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rdb := redistest.Bubble(t).Client()
				var sent atomic.Int64
				rdb.AddHook(delays{100 * time.Millisecond, func() bool { return hangs && sent.Add(1) > 4 }})
				l := testkit.LoaderOf(t, rdb, func(opt *options) {
					opt.RedisTimeout, opt.OnRedisDown, opt.Lease = 500*time.Millisecond, fetchonce.FailClosed, time.Minute
				})
				keys := make([]string, 10_000)
				for i := range keys {
					keys[i] = fmt.Sprint("k", i)
				}
				start := time.Now()
				got, err := l.GetMany(t.Context(), keys, (&bulk{}).fetch)
				took := time.Since(start)
				switch {
				case hangs && (err == nil || took > 4*time.Second):
					t.Errorf("GetMany = %d values, an error: %v, after %v", len(got), err != nil, took)
				case !hangs && (err != nil || len(got) != len(keys) || took < time.Second):
					t.Errorf("GetMany = %d values, %.200v, after %v", len(got), err, took)
				}
			})
		})
	}
}
