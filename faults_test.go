package fetchonce_test

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// policies runs a test with each policy, on each kind of Redis.
func policies(t *testing.T, test func(t *testing.T, r backend, policy fetchonce.Policy)) {
	t.Helper()
	for name, policy := range map[string]fetchonce.Policy{"FailOpen": fetchonce.FailOpen, "FailClosed": fetchonce.FailClosed} {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, r backend) { test(t, r, policy) })
		})
	}
}

func withPolicy(policy fetchonce.Policy) func(*options) {
	return func(opt *options) { opt.OnRedisDown, opt.RedisTimeout = policy, 200*time.Millisecond }
}

// grace is what a caller may wait beyond its own deadline.
const grace = 250 * time.Millisecond

// wantInTime has a Get, whatever it comes to, return soon after its deadline.
func wantInTime(t *testing.T, r backend, l loader, o *origin) outcome {
	t.Helper()
	const limit = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	started := time.Now()
	out := get(t, ctx, l, "k", o).outcome()
	if waited := time.Since(started); r.Fake() && waited > limit+grace {
		t.Errorf("a caller with a deadline of %v waited %v", limit, waited)
	}
	return out
}

// Redis is killed while a process fetches and another waits for it.
func TestRedisKilledDuringFetch(t *testing.T) {
	policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		o := newOrigin(t)
		holder, other := newLoader(t, r, withPolicy(policy)), newLoader(t, r, withPolicy(policy))
		here := get(t, t.Context(), holder, "k", o)
		c := o.next()
		there := get(t, t.Context(), other, "k", o)
		awaitWaiters(t, r, "k", 1)
		r.Kill()

		if policy == fetchonce.FailOpen {
			o.next().returns("blind") // the other goes on by itself
			there.want("blind")
		} else {
			wantRedisDown(t, there.outcome())
		}
		c.returns("v")
		here.want("v") // nothing fetched is lost
		late := get(t, t.Context(), holder, "k", o)
		if policy == fetchonce.FailOpen {
			o.next().returns("blind")
			late.want("blind")
		} else {
			wantRedisDown(t, late.outcome())
		}

		r.Restart()
		wantWorking(t, r, holder, other)
	})
}

func wantRedisDown(t *testing.T, out outcome) {
	t.Helper()
	if e, ok := errors.AsType[*fetchonce.Error](out.err); !ok || e.Op != "read" && e.Op != "acquire" {
		t.Errorf("Get = %q, %v; want an *Error of Redis", out.value, out.err)
	}
}

// wantWorking has both loaders share a key, once they have found that Redis is
// back.
func wantWorking(t *testing.T, r backend, a, b loader) {
	t.Helper()
	for _, l := range []loader{a, b} {
		r.Until("Redis is found again", func() bool { return l.Set(t.Context(), "back", "v") == nil })
	}
	o := newOrigin(t)
	g := get(t, t.Context(), a, "again", o)
	c := o.next()
	waiter := get(t, t.Context(), b, "again", o)
	awaitWaiters(t, r, "again", 1)
	c.returns("v")
	g.want("v")
	waiter.want("v")
	o.want(1)
}

// Redis is killed and comes back empty, while a process fetches.
func TestRedisRestartedEmptyDuringFetch(t *testing.T) {
	policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		o := newOrigin(t)
		o.ignore = true
		holder, other := newLoader(t, r, withPolicy(policy)), newLoader(t, r, withPolicy(policy))
		here := get(t, t.Context(), holder, "k", o)
		old := o.next()
		r.Kill()
		r.Restart()
		r.Until("Redis is found again", func() bool { return other.Set(t.Context(), "back", "v") == nil })

		there := get(t, t.Context(), other, "k", o) // nobody has the lease
		c := o.next()
		old.returns("old")
		here.want("old")
		r.Settle()
		c.returns("new")
		there.want("new")
		wantKept(t, other, "new") // the old FILL was refused
		o.want(2)
	})
}

func TestRedisHangs(t *testing.T) {
	policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		o := newOrigin(t)
		holder, other := newLoader(t, r, withPolicy(policy)), newLoader(t, r, withPolicy(policy))
		here := get(t, t.Context(), holder, "k", o)
		c := o.next()
		r.Pause()

		ctx, cancel := context.WithCancel(t.Context())
		leaver := get(t, ctx, other, "other", o)
		cancel()
		leaver.wantErr(context.Canceled)
		if policy == fetchonce.FailClosed {
			wantRedisDown(t, wantInTime(t, r, other, o))
		} else {
			done := make(chan outcome)
			go func() { done <- wantInTime(t, r, other, o) }()
			o.next().returns("blind")
			if out := <-done; out.value != "blind" && !errors.Is(out.err, context.DeadlineExceeded) {
				t.Errorf("a caller got %q, %v", out.value, out.err)
			}
		}
		c.returns("v")
		here.want("v")
		r.Resume()
		wantWorking(t, r, holder, other)
	})
}

// A Get whose ACQUIRE was sent, but never answered, leaves no lease behind.
func TestUnansweredAcquireIsTakenBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		rdb := r.Client()
		l := loaderOf(t, rdb, func(opt *options) { opt.Lease, opt.RedisTimeout = time.Minute, 100*time.Millisecond })
		warmScripts(t, r, l)
		redistest.WireOf(rdb).LoseReplies(2, "EVALSHA")
		g := get(t, t.Context(), l, "k", o)
		o.next().returns("blind")
		g.want("blind")
		other := get(t, t.Context(), newLoader(t, r), "k", o)
		o.next().returns("v") // a minute of lease is no obstacle
		other.want("v")
	})
}

// warmScripts makes the scripts known to the server, on all nodes.
func warmScripts(t *testing.T, r backend, l loader) {
	t.Helper()
	for i := range 12 {
		key := strings.Repeat("w", i+1)
		_, err := l.Get(t.Context(), key, func(context.Context, string) (string, error) { return "v", nil })
		if err := errors.Join(err, l.Set(t.Context(), key, "v"), l.Delete(t.Context(), key)); err != nil {
			t.Fatal(err)
		}
	}
}

// The reply to each script is lost once: it is sent again, and means the same.
func TestLostRepliesAreAskedForAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, other := loaderOf(t, rdb), newLoader(t, r)
		warmScripts(t, r, l)
		o := newOrigin(t)
		wire := redistest.WireOf(rdb)
		wire.LoseReplies(1, "EVALSHA")
		g := get(t, t.Context(), l, "k", o)
		c := o.next()
		wire.LoseReplies(1, "EVALSHA")
		c.returns("v")
		g.want("v")
		get(t, t.Context(), other, "k", o).want("v")
		o.want(1)
		wire.LoseReplies(1, "EVALSHA")
		if err := l.Delete(t.Context(), "k"); err != nil {
			t.Error(err)
		}
		wire.LoseReplies(1, "EVALSHA")
		if err := l.Set(t.Context(), "k", "set"); err != nil {
			t.Error(err)
		}
		get(t, t.Context(), other, "k", o).want("set")
	})
}

// What Redis says for a while is waited for.
func TestPassingErrorsOfRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		for _, text := range []string{"LOADING Redis is loading the dataset in memory", "TRYAGAIN Multiple keys request during rehashing of slot"} {
			rdb := r.Client()
			l := loaderOf(t, rdb, withPolicy(fetchonce.FailClosed))
			o := newOrigin(t)
			redistest.WireOf(rdb).Fail(2, text, "EVALSHA")
			g := get(t, t.Context(), l, text[:4], o)
			o.next().returns("v")
			g.want("v")
		}
	})
}

// What Redis says for good is the policy's: a caller always gets a value that was
// fetched.
func TestLastingErrorsOfRedis(t *testing.T) {
	policies(t, func(t *testing.T, r backend, policy fetchonce.Policy) {
		rdb := r.Client()
		l := loaderOf(t, rdb, withPolicy(policy))
		o := newOrigin(t)
		wire := redistest.WireOf(rdb)
		for _, text := range []string{"OOM command not allowed when used memory > 'maxmemory'.", "NOPERM this user has no permissions", "BUSY Redis is busy running a script"} {
			wire.Fail(redistest.All, text, "EVALSHA", "EVAL")
			g := get(t, t.Context(), l, "acquire", o)
			if policy == fetchonce.FailClosed {
				wantRedisDown(t, g.outcome())
			} else {
				o.next().returns("v")
				g.want("v")
			}
			wire.Heal()
			g = get(t, t.Context(), l, "fill "+text[:4], o)
			c := o.next()
			wire.Fail(redistest.All, text, "EVALSHA", "EVAL")
			c.returns("v")
			g.want("v")
			if err := l.Delete(t.Context(), "acquire"); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("Delete = %v, want %q", err, text)
			}
			wire.Heal()
		}
	})
}

// Whatever lies where our values and leases belong is replaced, or does no harm
// for longer than a lease.
//
//test:long
func TestHostileDataAtEveryKey(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		admin := r.Client()
		put := func(key string, data []byte) {
			if err := admin.Set(t.Context(), key, data, time.Minute).Err(); err != nil {
				t.Fatal(err)
			}
		}
		do := func(args ...any) {
			if err := admin.Do(t.Context(), args...).Err(); err != nil {
				t.Fatal(err)
			}
		}
		hostile := map[string]func(key string){
			"a list":           func(key string) { do("RPUSH", key, "x") },
			"a hash":           func(key string) { do("HSET", key, "o", "x", "f", "nonsense", "wnobody", "1") },
			"a stream":         func(key string) { do("XADD", key, "*", "a", "b") },
			"garbage":          func(key string) { put(key, []byte("garbage")) },
			"the magic alone":  func(key string) { put(key, []byte("fo")) },
			"random bytes":     func(key string) { put(key, randomBytes(5000)) },
			"much":             func(key string) { put(key, randomBytes(100_000)) },
			"a rueidis marker": func(key string) { put(key, []byte("rueidisid:1")) },
		}
		for name, place := range hostile {
			for _, kind := range []string{"v", "m"} {
				t.Log(name, kind)
				l, other := newLoader(t, r, shortLease(r)), newLoader(t, r, shortLease(r))
				key := "test:" + kind + ":{k}"
				place(key)
				o := newOrigin(t)
				here, there := get(t, t.Context(), l, "k", o), get(t, t.Context(), other, "k", o)
				c := o.next()
				c.returns("v")
				here.want("v")
				there.want("v")
				o.want(1)
				wantKept(t, l, "v")
				if err := l.Delete(t.Context(), "k"); err != nil {
					t.Error(err)
				}
				wantNoKeyForEver(t, r)
				admin.Del(t.Context(), "test:v:{k}", "test:m:{k}")
			}
		}
	})
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.N(256))
	}
	return b
}

// Every damage to a stored value is a miss, whichever byte it befalls, and the
// value of another key or of another codec too.
func TestDamagedValueIsAMiss(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, admin := newLoader(t, r), r.Client()
		if err := l.Set(t.Context(), "k", "value"); err != nil {
			t.Fatal(err)
		}
		good, err := admin.Get(t.Context(), "test:v:{k}").Bytes()
		if err != nil {
			t.Fatal(err)
		}
		bad := [][]byte{good[:len(good)-1], append(slices.Clone(good), 0), good[:10]}
		for i := range good {
			if i >= 16 && i < 32 {
				continue // the stamp: the server's, and no part of the value
			}
			b := slices.Clone(good)
			b[i] ^= 0x40
			bad = append(bad, b)
		}
		for _, b := range bad {
			admin.Set(t.Context(), "test:v:{k}", b, time.Minute)
			if _, err := l.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
				t.Errorf("Peek of %q: %v", b, err)
			}
			got, err := l.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "fetched", nil })
			if got != "fetched" || err != nil {
				t.Errorf("Get with %q stored = %q, %v", b, got, err)
			}
			wantKept(t, l, "fetched")
		}
		admin.Set(t.Context(), "test:v:{another}", good, time.Minute)
		if _, err := l.Peek(t.Context(), "another"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek of another key's value: %v", err)
		}
		other := newLoader(t, r, func(opt *options) { opt.Codec = fetchonce.JSON })
		if err := l.Set(t.Context(), "k", "value"); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek with another codec: %v", err)
		}
	})
}

// Two processes see the same unusable value. One replaces it; the other, which
// comes later, uses that.
func TestUnusableValueIsFetchedOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := newOrigin(t)
		r.Client().Set(t.Context(), "test:v:{k}", "garbage", time.Minute)
		slow := r.Client()
		gate := newGate(slow)
		gate.shut()
		second := get(t, t.Context(), loaderOf(t, slow), "k", o)
		<-gate.stopped
		first := get(t, t.Context(), newLoader(t, r), "k", o)
		o.next().returns("v")
		first.want("v")
		gate.open()
		second.want("v")
		o.want(1)
	})
}

// A msgpack value that declares four billion elements is refused before anything
// is allocated for them.
func TestHostileLengthIsAMiss(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		honest, err := fetchonce.New(rdb, fetchonce.Options[[]byte]{Prefix: "test", Codec: rawCodec{}})
		if err != nil {
			t.Fatal(err)
		}
		defer honest.Close()
		victim, err := fetchonce.New(rdb, fetchonce.Options[[]int64]{Prefix: "test"})
		if err != nil {
			t.Fatal(err)
		}
		defer victim.Close()
		// A well-made envelope around bytes of our choice, but for the codec.
		if err := honest.Set(t.Context(), "k", []byte{0xdd, 0xff, 0xff, 0xff, 0xff}); err != nil {
			t.Fatal(err)
		}
		b, _ := rdb.Get(t.Context(), "test:v:{k}").Bytes()
		forge(b, 1)
		rdb.Set(t.Context(), "test:v:{k}", b, time.Minute)
		got, err := victim.Get(t.Context(), "k", func(context.Context, string) ([]int64, error) { return []int64{1}, nil })
		if len(got) != 1 || err != nil {
			t.Errorf("Get = %v, %v", got, err)
		}
	})
}

// A rawCodec's values are their own encoding.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = slices.Clone(data); return nil }

// A codec that panics is no more than one that fails.
func TestCodecMayPanic(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, err := fetchonce.New(r.Client(), options{Prefix: "test", Codec: panicCodec{}})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		got, err := l.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "v", nil })
		if got != "v" || err != nil {
			t.Errorf("Get = %q, %v; want what was fetched", got, err)
		}
		if e, ok := errors.AsType[*fetchonce.Error](l.Set(t.Context(), "k", "v")); !ok || e.Op != "encode" {
			t.Errorf("Set = %v, want an *Error", e)
		}
	})
}

type panicCodec struct{}

func (panicCodec) Marshal(any) ([]byte, error)        { panic("marshal") }
func (panicCodec) Unmarshal(data []byte, v any) error { panic("unmarshal") }

// forge makes an envelope claim another codec, with the checksum to match.
func forge(b []byte, codec byte) {
	b[3] = codec
	sum := crcUpdate(0, b[:4])
	sum = crcUpdate(sum, b[8:16])
	binary.BigEndian.PutUint32(b[4:], crcUpdate(sum, b[32:]))
}

// Without Redis, each process goes on by itself, but single-flighted: callers
// share one fetch, and those who came after that had begun share the next.
func TestWithoutRedisOneFetchAtATime(t *testing.T) {
	const callers = 100
	redistest.Each(t, func(t *testing.T, r backend) {
		l := newLoader(t, r)
		r.Kill()
		var running, most, fetches, returned atomic.Int64
		fetch := func(context.Context, string) (string, error) {
			fetches.Add(1)
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer running.Add(-1)
			for int(returned.Load())+l.Callers("k") < callers { // until all the others wait for this one
				time.Sleep(time.Millisecond)
			}
			return "v", nil
		}
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				defer returned.Add(1)
				if got, err := l.Get(t.Context(), "k", fetch); got != "v" || err != nil {
					t.Errorf("Get = %q, %v", got, err)
				}
			})
		}
		all.Wait()
		r.Restart()
		if most.Load() != 1 || fetches.Load() > 2 {
			t.Errorf("%d fetches, %d at once; want two, one after the other", fetches.Load(), most.Load())
		}
	})
}

// A slowFirst holds its client's first script back until it may go.
type slowFirst struct {
	seen    atomic.Bool
	stopped chan struct{} // closed when it is held back
	free    chan struct{}
}

func (s *slowFirst) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s *slowFirst) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" && s.seen.CompareAndSwap(false, true) {
			close(s.stopped)
			<-s.free
		}
		return next(ctx, cmd)
	}
}

func (s *slowFirst) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The caller leaves while the ACQUIRE is on its way. No Release overtakes it.
func TestCallerLeavesDuringAcquire(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		warmScripts(t, r, newLoader(t, r))
		slow := &slowFirst{stopped: make(chan struct{}), free: make(chan struct{})}
		rdb := r.Client()
		addHook(rdb, slow)
		ctx, cancel := context.WithCancel(t.Context())
		o := newOrigin(t)
		g := get(t, ctx, loaderOf(t, rdb), "k", o)
		<-slow.stopped
		cancel()
		g.wantErr(context.Canceled)
		r.Settle() // whatever is done about that before the ACQUIRE is answered
		close(slow.free)
		began := time.Now()
		g = get(t, t.Context(), newLoader(t, r), "k", o)
		o.next().returns("v")
		g.want("v")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("a lease that nobody held was there for %v", took)
		}
		o.want(1)
	})
}
