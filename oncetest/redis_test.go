package oncetest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncetest"
)

// A weather is a user's service: one process that asks a slow forecast API.
type weather struct {
	forecasts *fetchonce.Loader[string]
	api       *forecastAPI
}

type forecastAPI struct {
	takes time.Duration
	calls atomic.Int64
}

func (a *forecastAPI) ask(ctx context.Context, city string) (string, error) {
	n := a.calls.Add(1)
	select {
	case <-time.After(a.takes):
		return fmt.Sprintf("sun in %s, says call %d", city, n), nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func newWeather(t *testing.T, rdb redis.UniversalClient, api *forecastAPI, change ...func(*fetchonce.Options[string])) *weather {
	t.Helper()
	opt := fetchonce.Options[string]{Prefix: "weather", Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&opt)
	}
	l, err := fetchonce.New(rdb, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &weather{l, api}
}

func (w *weather) forecast(ctx context.Context, city string) (string, error) {
	return w.forecasts.Get(ctx, city, w.api.ask)
}

// asks has n callers ask at once, and returns a function that waits for them all
// and checks what they got.
func (w *weather) asks(t *testing.T, n int) (want func(text string)) {
	t.Helper()
	var all sync.WaitGroup
	got := make(chan string, n)
	for range n {
		all.Go(func() {
			text, err := w.forecast(t.Context(), "Oslo")
			if err != nil {
				text = err.Error()
			}
			got <- text
		})
	}
	return func(want string) {
		t.Helper()
		all.Wait()
		for range n {
			if text := <-got; text != want {
				t.Errorf("a caller got %q, want %q", text, want)
			}
		}
	}
}

func (a *forecastAPI) want(t *testing.T, calls int64) {
	t.Helper()
	if got := a.calls.Load(); got != calls {
		t.Errorf("%d calls of the API, want %d", got, calls)
	}
}

// twoProcesses are two processes of the service, with one API.
func twoProcesses(t *testing.T, change ...func(*fetchonce.Options[string])) (r, other redis.UniversalClient, a, b *weather) {
	t.Helper()
	r = oncetest.Redis(t)
	other = oncetest.NewClient(t, r)
	api := &forecastAPI{takes: 3 * time.Second}
	return r, other, newWeather(t, r, api, change...), newWeather(t, other, api, change...)
}

func TestFiftyCallersInTwoProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, a, b := twoProcesses(t)
		began := time.Now()
		first, second := a.asks(t, 25), b.asks(t, 25)
		first("sun in Oslo, says call 1")
		second("sun in Oslo, says call 1")
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("it took %v, want 3s by the bubble's clock", took)
		}
		a.api.want(t, 1)
	})
}

// The message that would wake the second process is lost. Its callers get the
// value all the same, a moment later.
func TestLostWakeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, other, a, b := twoProcesses(t)
		began := time.Now()
		holds := a.asks(t, 1)
		synctest.Wait()
		waits := b.asks(t, 10)
		oncetest.DropMessages(t, other, 1)
		holds("sun in Oslo, says call 1")
		waits("sun in Oslo, says call 1")
		if took := time.Since(began); took <= 3*time.Second || took > 4*time.Second {
			t.Errorf("it took %v, want a little more than the API", took)
		}
		a.api.want(t, 1)
	})
}

// The process that fetches is cut off, as if it had died: nobody renews its lease
// and nothing that it finds is stored. When the lease ends, another takes over.
// What the first has fetched is not lost for its own caller.
func TestHolderIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, a, b := twoProcesses(t)
		began := time.Now()
		holds := a.asks(t, 1)
		synctest.Wait()
		waits := b.asks(t, 10)
		synctest.Wait()
		oncetest.Down(t, r)
		holds("sun in Oslo, says call 1")
		waits("sun in Oslo, says call 2")
		if took := time.Since(began); took < 8*time.Second || took > 9*time.Second {
			t.Errorf("it took %v; want the lease's 5s, and 3s for the API", took)
		}
		a.api.want(t, 2)
	})
}

func TestExpireLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, a, b := twoProcesses(t, func(opt *fetchonce.Options[string]) { opt.Lease = time.Minute })
		fences := make(chan int64, 2)
		fetch := func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) {
			fences <- f.Fence
			return a.api.ask(ctx, f.Key)
		}
		stalls := make(chan error)
		go func() {
			_, err := a.forecasts.Load(t.Context(), "Oslo", fetch)
			stalls <- err
		}()
		synctest.Wait()
		oncetest.ExpireLease(t, r, "Oslo")
		began := time.Now()
		if _, err := b.forecasts.Load(t.Context(), "Oslo", fetch); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("it took %v, want the API's 3s: the lease has ended", took)
		}
		if first, second := <-fences, <-fences; second <= first {
			t.Errorf("fences %d and %d do not rise", first, second)
		}
		if err := <-stalls; err != nil {
			t.Errorf("the first fetch is told as %v", err)
		}
	})
}

// The lease of a lock ends under its holder: it is told, and the next one who
// waits has the lock, with a higher fence.
func TestExpireLeaseOfALock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := oncetest.Redis(t)
		var locks [2]*fetchonce.Locker
		for i, rdb := range []redis.UniversalClient{r, oncetest.NewClient(t, r)} {
			var err error
			locks[i], err = fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "jobs", Lease: 30 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer locks[i].Close()
		}
		ctx, first, err := locks[0].Acquire(t.Context(), "nightly")
		if err != nil {
			t.Fatal(err)
		}
		oncetest.ExpireLease(t, r, "nightly")
		soon, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, second, err := locks[1].Acquire(soon, "nightly")
		if err != nil {
			t.Fatal(err)
		}
		if second.Fence() <= first.Fence() {
			t.Errorf("fences %d and %d do not rise", first.Fence(), second.Fence())
		}
		<-ctx.Done()
		if cause := context.Cause(ctx); cause != fetchonce.ErrLockLost {
			t.Errorf("the context ended because of %v", cause)
		}
		if err := second.Release(); err != nil {
			t.Error(err)
		}
	})
}

// Redis fails for three commands, wherever in a Get they fall. What the API said
// is not lost, and soon it is in Redis.
func TestRedisFailsThreeTimes(t *testing.T) {
	for _, text := range []string{"ERR internal error", "LOADING Redis is loading the dataset in memory"} {
		for at := range 4 {
			t.Run(fmt.Sprintf("%.3s after %d commands", text, at), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r, _, a, b := twoProcesses(t)
					oncetest.FailNext(t, r, 3, text)
					for range at {
						_ = r.Incr(t.Context(), "n").Err() // uses one up
					}
					a.asks(t, 1)("sun in Oslo, says call 1")
					oncetest.FailNext(t, r, 0, text)
					if got, err := a.forecast(t.Context(), "Oslo"); err != nil {
						t.Errorf("forecast = %q, %v", got, err)
					}
					calls := a.api.calls.Load()
					if got, err := b.forecast(t.Context(), "Oslo"); err != nil {
						t.Errorf("forecast in the other process = %q, %v", got, err)
					}
					a.api.want(t, calls) // it found what the first has stored
				})
			})
		}
	}
}

func TestFailNextByName(t *testing.T) {
	r := oncetest.Redis(t)
	other := oncetest.NewClient(t, r)
	oncetest.FailNext(t, r, 1, "OOM no memory", "set")
	if err := r.Get(t.Context(), "k").Err(); err != redis.Nil {
		t.Errorf("Get = %v; it was not named", err)
	}
	if err := other.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Errorf("another client's Set = %v", err)
	}
	err := r.Set(t.Context(), "k", "w", 0).Err()
	if _, answered := errors.AsType[redis.Error](err); !answered || err.Error() != "OOM no memory" {
		t.Errorf("Set = %v, want an answer of OOM no memory", err)
	}
	oncetest.FailNext(t, r, 5, "ERR never")
	oncetest.FailNext(t, r, 0, "ERR never") // no more
	if got, err := r.Get(t.Context(), "k").Result(); got != "v" || err != nil {
		t.Errorf("Get = %q, %v; want v: the Set that failed was not done", got, err)
	}
}

// One process loses its Redis, or all do, by an end or by silence. They go on, and
// are back with it afterwards.
func TestDownAndHang(t *testing.T) {
	for name, fault := range map[string]func(testing.TB, ...redis.UniversalClient){"Down": oncetest.Down, "Hang": oncetest.Hang} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, other, a, b := twoProcesses(t)
				a.asks(t, 1)("sun in Oslo, says call 1")
				fault(t, r)
				a.asks(t, 1)("sun in Oslo, says call 2")
				b.asks(t, 1)("sun in Oslo, says call 1")
				fault(t, r, other)
				b.asks(t, 1)("sun in Oslo, says call 3")
				oncetest.Up(t, r, other)
				time.Sleep(time.Minute) // they have noticed
				a.asks(t, 1)("sun in Oslo, says call 1")
				b.asks(t, 1)("sun in Oslo, says call 1")
			})
		})
	}
}

// programOptions are those of a program in production, with go-redis' own timeouts and retries.
func programOptions() *redis.Options {
	return &redis.Options{
		Addr: "redis.example:6379", Username: "app", Password: "secret",
		TLSConfig: &tls.Config{ServerName: "redis.example", MinVersion: tls.VersionTLS12},
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("the program's own dialer was used")
		},
	}
}

// Go-redis dials five times for each of four attempts, with 100 ms between dials.
func TestClientWithOptionsRetriesDialsAndCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := oncetest.NewClientWith(t, oncetest.Redis(t), programOptions())
		if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
		oncetest.Down(t, rdb)
		began := time.Now()
		err := rdb.Get(t.Context(), "k").Err()
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Get = %v, want a refused connection", err)
		}
		if took := time.Since(began); took < 1600*time.Millisecond || took > 4*time.Second {
			t.Errorf("a refused Get took %v, want 1.6s of dials, and the backoffs", took)
		}
		oncetest.Up(t, rdb)
		time.Sleep(2 * time.Second) // go-redis tries once a second whether it can connect
		if got, err := rdb.Get(t.Context(), "k").Result(); got != "v" || err != nil {
			t.Errorf("after Up, Get = %q, %v; want v", got, err)
		}
	})
}

// Each attempt waits for ReadTimeout.
func TestClientWithOptionsWaitsForAHungRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opt := programOptions()
		opt.ReadTimeout, opt.MaxRetries = 2*time.Second, 1
		opt.MinRetryBackoff, opt.MaxRetryBackoff = -1, -1
		rdb := oncetest.NewClientWith(t, oncetest.Redis(t), opt)
		if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
		oncetest.Hang(t, rdb)
		began := time.Now()
		err := rdb.Get(t.Context(), "k").Err()
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 4*time.Second {
			t.Errorf("Get = %v after %v, want a timeout after twice 2s", err, time.Since(began))
		}
		oncetest.Up(t, rdb)
		if got, err := rdb.Get(t.Context(), "k").Result(); got != "v" || err != nil {
			t.Errorf("after Up, Get = %q, %v; want v", got, err)
		}
	})
}

// The same options serve several clients.
func TestOptionsOfAClientAreNotChanged(t *testing.T) {
	r, opt := oncetest.Redis(t), programOptions()
	for range 2 {
		if err := oncetest.NewClientWith(t, r, opt).Ping(t.Context()).Err(); err != nil {
			t.Error(err)
		}
	}
	if opt.Addr != "redis.example:6379" || opt.Password != "secret" || opt.TLSConfig == nil || opt.MaxRetries != 0 {
		t.Errorf("the options are now %+v", opt)
	}
}

// A copy in the process is dropped when another process says that its value has
// changed. If nobody hears that, it is used until its TTL ends.
func TestNearEntryGoesWhenItsValueChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, other, a, b := twoProcesses(t, func(opt *fetchonce.Options[string]) {
			opt.Near = fetchonce.Near{Entries: 100, TTL: 10 * time.Second}
		})
		copied := func() {
			t.Helper()
			for started := time.Now(); ; time.Sleep(time.Millisecond) {
				if got, err := b.forecasts.Peek(t.Context(), "Oslo"); err != nil {
					t.Fatal(err)
				} else if got.Source == fetchonce.SourceNear {
					return
				}
				if time.Since(started) > time.Minute {
					t.Fatal("there is no copy")
				}
			}
		}
		change := func(text string) {
			t.Helper()
			if err := a.forecasts.Set(t.Context(), "Oslo", text); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		change("rain")
		copied()
		change("snow")
		b.asks(t, 1)("snow")
		copied()
		oncetest.DropMessages(t, other, 1)
		time.Sleep(5 * time.Second) // heartbeats do not count
		change("hail")
		b.asks(t, 1)("snow")
		time.Sleep(5 * time.Second)
		b.asks(t, 1)("hail")
	})
}

// A test without a bubble goes by the clock on the wall, beside other tests.
func TestWithoutABubble(t *testing.T) {
	for range 3 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			_, _, a, b := twoProcesses(t)
			a.api.takes = 0
			first, second := a.asks(t, 25), b.asks(t, 25)
			first("sun in Oslo, says call 1")
			second("sun in Oslo, says call 1")
		})
	}
}

// Each client ends with the test that made it, and the Redis with the first.
func TestClientsEndWithTheirTests(t *testing.T) {
	var r, other redis.UniversalClient
	t.Run("the Redis", func(t *testing.T) {
		r = oncetest.Redis(t)
		t.Run("another client", func(t *testing.T) {
			other = oncetest.NewClient(t, r)
			if err := other.Set(t.Context(), "k", "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
		})
		if err := other.Ping(t.Context()).Err(); err != redis.ErrClosed {
			t.Errorf("Ping = %v, want %v", err, redis.ErrClosed)
		}
		if got, err := r.Get(t.Context(), "k").Result(); got != "v" || err != nil {
			t.Errorf("Get = %q, %v; want v", got, err)
		}
	})
	if err := r.Ping(t.Context()).Err(); err != redis.ErrClosed {
		t.Errorf("Ping = %v, want %v", err, redis.ErrClosed)
	}
	wantFatal(t, "whose test is over", func(t testing.TB) { oncetest.NewClient(t, r) })
}

// What a test does wrong is said at once.
func TestMisuseFailsTheTest(t *testing.T) {
	r := oncetest.Redis(t)
	stranger := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer stranger.Close()
	for want, misuse := range map[string]func(t testing.TB){
		"a *redis.Client that is no client of oncetest":        func(t testing.TB) { oncetest.NewClient(t, stranger) },
		"a *redis.ClusterClient that is no client of oncetest": func(t testing.TB) { oncetest.Down(t, r, (*redis.ClusterClient)(nil)) },
		"a <nil> that is no client of oncetest":                func(t testing.TB) { oncetest.DropMessages(t, nil, 1) },
		"NewClientWith: no options":                            func(t testing.TB) { oncetest.NewClientWith(t, r, nil) },
		"DropMessages: n is -1":                                func(t testing.TB) { oncetest.DropMessages(t, r, -1) },
		"FailNext: n is -2":                                    func(t testing.TB) { oncetest.FailNext(t, r, -2, "ERR no") },
		`one line of text, and is ""`:                          func(t testing.TB) { oncetest.FailNext(t, r, 1, "") },
		`one line of text, and is "a\nb"`:                      func(t testing.TB) { oncetest.FailNext(t, r, 1, "a\nb") },
		`there is no lease of "nightly"`:                       func(t testing.TB) { oncetest.ExpireLease(t, r, "nightly") },
	} {
		wantFatal(t, want, misuse)
	}
	if err := r.Ping(t.Context()).Err(); err != nil {
		t.Errorf("Ping = %v: misuse has done half of what it was for", err)
	}
}

// wantFatal checks that a test fails, and what it says.
func wantFatal(t *testing.T, want string, test func(t testing.TB)) {
	t.Helper()
	f := &failing{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(f)
	}()
	<-done
	if !strings.HasPrefix(f.said, "oncetest: ") || !strings.Contains(f.said, want) {
		t.Errorf("the test failed with %q, want %q", f.said, want)
	}
}

// failing is a test that notes what it fails with.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}
