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

// A weather is one process of a user's service, which calls a slow forecast API.
type weather struct {
	rdb       redis.UniversalClient
	forecasts *fetchonce.Loader[string]
	api       *forecastAPI
}

type forecastAPI struct {
	takes time.Duration
	calls atomic.Int64
}

// fetch returns a text with the number of the call.
func (a *forecastAPI) fetch(ctx context.Context, city string) (string, error) {
	n := a.calls.Add(1)
	select {
	case <-time.After(a.takes):
		return fmt.Sprintf("sun in %s, call %d", city, n), nil
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
	return &weather{rdb, l, api}
}

func (w *weather) forecast(ctx context.Context, city string) (string, error) {
	return w.forecasts.Get(ctx, city, w.api.fetch)
}

// start starts n callers at once. It returns a function that waits for all of them and
// checks that each received text.
func (w *weather) start(t *testing.T, n int) (want func(text string)) {
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

// want checks how many calls the API received.
func (a *forecastAPI) want(t *testing.T, calls int64) {
	t.Helper()
	if got := a.calls.Load(); got != calls {
		t.Errorf("%d calls of the API, want %d", got, calls)
	}
}

// twoProcesses returns two processes of the service, with one API.
func twoProcesses(t *testing.T, change ...func(*fetchonce.Options[string])) (a, b *weather) {
	t.Helper()
	rdb := oncetest.Redis(t)
	api := &forecastAPI{takes: 3 * time.Second}
	return newWeather(t, rdb, api, change...), newWeather(t, oncetest.NewClient(t, rdb), api, change...)
}

func TestFiftyCallersInTwoProcessesMakeOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoProcesses(t)
		began := time.Now()
		first, second := a.start(t, 25), b.start(t, 25)
		first("sun in Oslo, call 1")
		second("sun in Oslo, call 1")
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("it took %v, want 3s by the bubble's clock", took)
		}
		a.api.want(t, 1)
	})
}

// The notification for the second process is lost. Its callers receive the value when the
// recheck timer fires.
func TestLostNotificationDelaysTheValueByLessThanASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoProcesses(t)
		began := time.Now()
		holder := a.start(t, 1)
		synctest.Wait()
		waiters := b.start(t, 10)
		oncetest.DropMessages(t, b.rdb, 1)
		holder("sun in Oslo, call 1")
		waiters("sun in Oslo, call 1")
		if took := time.Since(began); took <= 3*time.Second || took > 4*time.Second {
			t.Errorf("it took %v, want more than the API's 3s, and at most 4s", took)
		}
		a.api.want(t, 1)
	})
}

// The process that fetches loses Redis. It can neither renew its lease nor store the value.
// When the lease ends, the other process fetches. The first process's caller still receives
// its own value.
func TestAnotherProcessFetchesWhenTheHolderLosesRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoProcesses(t)
		began := time.Now()
		holder := a.start(t, 1)
		synctest.Wait()
		waiters := b.start(t, 10)
		synctest.Wait()
		oncetest.Down(t, a.rdb)
		holder("sun in Oslo, call 1")
		waiters("sun in Oslo, call 2")
		if took := time.Since(began); took < 8*time.Second || took > 9*time.Second {
			t.Errorf("it took %v; want the lease's 5s, and 3s for the API", took)
		}
		a.api.want(t, 2)
	})
}

func TestExpireLeaseOfALoadLetsAnotherProcessFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoProcesses(t, func(opt *fetchonce.Options[string]) { opt.Lease = time.Minute })
		fences := make(chan int64, 2)
		fetch := func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) {
			fences <- f.Fence
			return a.api.fetch(ctx, f.Key)
		}
		first := make(chan error)
		go func() {
			_, err := a.forecasts.Load(t.Context(), "Oslo", fetch)
			first <- err
		}()
		synctest.Wait()
		oncetest.ExpireLease(t, a.rdb, "Oslo")
		began := time.Now()
		if _, err := b.forecasts.Load(t.Context(), "Oslo", fetch); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("it took %v, want the API's 3s: the lease has ended", took)
		}
		if lower, higher := <-fences, <-fences; higher <= lower {
			t.Errorf("fences %d and %d do not rise", lower, higher)
		}
		if err := <-first; err != nil {
			t.Errorf("the first Load = %v", err)
		}
	})
}

// The holder's context ends with ErrLockLost. The next process acquires the lock with a
// higher fence.
func TestExpireLeaseOfALockCancelsTheHolder(t *testing.T) {
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

// Redis fails three commands in a row, at any point of a Get. The caller receives its value,
// and the next Get stores one.
func TestThreeFailedCommandsLoseNoValue(t *testing.T) {
	for _, text := range []string{"ERR internal error", "LOADING Redis is loading the dataset in memory"} {
		for at := range 4 {
			t.Run(fmt.Sprintf("%.3s after %d commands", text, at), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b := twoProcesses(t)
					oncetest.FailNext(t, a.rdb, 3, text)
					for range at {
						_ = a.rdb.Incr(t.Context(), "n").Err() // one of the three
					}
					a.start(t, 1)("sun in Oslo, call 1")
					oncetest.FailNext(t, a.rdb, 0, text)
					if got, err := a.forecast(t.Context(), "Oslo"); err != nil {
						t.Errorf("forecast = %q, %v", got, err)
					}
					calls := a.api.calls.Load()
					if got, err := b.forecast(t.Context(), "Oslo"); err != nil {
						t.Errorf("forecast in the other process = %q, %v", got, err)
					}
					a.api.want(t, calls) // b found the value in Redis
				})
			})
		}
	}
}

func TestFailNextCountsOnlyTheNamedCommands(t *testing.T) {
	r := oncetest.Redis(t)
	other := oncetest.NewClient(t, r)
	oncetest.FailNext(t, r, 1, "OOM no memory", "set")
	if err := r.Get(t.Context(), "k").Err(); err != redis.Nil {
		t.Errorf("Get = %v, want redis.Nil: only SET fails", err)
	}
	if err := other.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Errorf("another client's Set = %v", err)
	}
	err := r.Set(t.Context(), "k", "w", 0).Err()
	if _, answered := errors.AsType[redis.Error](err); !answered || err.Error() != "OOM no memory" {
		t.Errorf("Set = %v, want the reply OOM no memory", err)
	}
	oncetest.FailNext(t, r, 5, "ERR never")
	oncetest.FailNext(t, r, 0, "ERR never") // ends the one before
	if got, err := r.Get(t.Context(), "k").Result(); got != "v" || err != nil {
		t.Errorf("Get = %q, %v; want v: the Set that failed was not executed", got, err)
	}
}

// First one process loses Redis, then both. Each fetches for itself, and uses Redis again
// after Up.
func TestDownAndHangLastUntilUp(t *testing.T) {
	for name, fault := range map[string]func(testing.TB, ...redis.UniversalClient){"Down": oncetest.Down, "Hang": oncetest.Hang} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := twoProcesses(t)
				a.start(t, 1)("sun in Oslo, call 1")
				fault(t, a.rdb)
				a.start(t, 1)("sun in Oslo, call 2")
				b.start(t, 1)("sun in Oslo, call 1")
				fault(t, a.rdb, b.rdb)
				b.start(t, 1)("sun in Oslo, call 3")
				oncetest.Up(t, a.rdb, b.rdb)
				time.Sleep(time.Minute) // until both use Redis again
				a.start(t, 1)("sun in Oslo, call 1")
				b.start(t, 1)("sun in Oslo, call 1")
			})
		})
	}
}

// programOptions returns a program's options, with go-redis' own timeouts and retries.
func programOptions() *redis.Options {
	return &redis.Options{
		Addr: "redis.example:6379", Username: "app", Password: "secret",
		TLSConfig: &tls.Config{ServerName: "redis.example", MinVersion: tls.VersionTLS12},
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("the program's own dialer was used")
		},
	}
}

// go-redis makes four attempts of five dials each, with 100 ms between dials.
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
		time.Sleep(2 * time.Second) // go-redis dials once a second
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

// A program may pass the same options for several clients.
func TestNewClientWithDoesNotChangeTheOptions(t *testing.T) {
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

// A process drops its near-cache entry when a notification says that the value has changed.
// If the notification is lost, the entry is served until its TTL ends.
func TestDropMessagesKeepsANearEntryUntilItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoProcesses(t, func(opt *fetchonce.Options[string]) {
			opt.Near = fetchonce.Near{Entries: 100, TTL: 10 * time.Second}
		})
		awaitEntry := func() {
			t.Helper()
			for started := time.Now(); ; time.Sleep(time.Millisecond) {
				if got, err := b.forecasts.Peek(t.Context(), "Oslo"); err != nil {
					t.Fatal(err)
				} else if got.Source == fetchonce.SourceNear {
					return
				}
				if time.Since(started) > time.Minute {
					t.Fatal("there is no near-cache entry")
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
		awaitEntry()
		change("snow")
		b.start(t, 1)("snow")
		awaitEntry()
		oncetest.DropMessages(t, b.rdb, 1)
		time.Sleep(5 * time.Second) // heartbeats do not count
		change("hail")
		b.start(t, 1)("snow")
		time.Sleep(5 * time.Second)
		b.start(t, 1)("hail")
	})
}

// Tests without a bubble use real time and may run in parallel.
func TestRedisWorksWithoutABubble(t *testing.T) {
	for range 3 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			a, b := twoProcesses(t)
			a.api.takes = 0
			first, second := a.start(t, 25), b.start(t, 25)
			first("sun in Oslo, call 1")
			second("sun in Oslo, call 1")
		})
	}
}

// A client is closed at the end of the test that made it, and the server with the first client.
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
	wantFatal(t, "or its test has ended", func(t testing.TB) { oncetest.NewClient(t, r) })
}

// Misuse fails the test and starts no fault.
func TestMisuseFailsTheTest(t *testing.T) {
	r := oncetest.Redis(t)
	stranger := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer stranger.Close()
	for want, misuse := range map[string]func(t testing.TB){
		"this *redis.Client was not returned by":        func(t testing.TB) { oncetest.NewClient(t, stranger) },
		"this *redis.ClusterClient was not returned by": func(t testing.TB) { oncetest.Down(t, r, (*redis.ClusterClient)(nil)) },
		"this <nil> was not returned by":                func(t testing.TB) { oncetest.DropMessages(t, nil, 1) },
		"NewClientWith: no options":                     func(t testing.TB) { oncetest.NewClientWith(t, r, nil) },
		"DropMessages: n is -1":                         func(t testing.TB) { oncetest.DropMessages(t, r, -1) },
		"FailNext: n is -2":                             func(t testing.TB) { oncetest.FailNext(t, r, -2, "ERR no") },
		`one line of text, and is ""`:                   func(t testing.TB) { oncetest.FailNext(t, r, 1, "") },
		`one line of text, and is "a\nb"`:               func(t testing.TB) { oncetest.FailNext(t, r, 1, "a\nb") },
		`there is no lease of "nightly"`:                func(t testing.TB) { oncetest.ExpireLease(t, r, "nightly") },
	} {
		wantFatal(t, want, misuse)
	}
	if err := r.Ping(t.Context()).Err(); err != nil {
		t.Errorf("Ping = %v: Down with a wrong client took the right one down", err)
	}
}

// wantFatal checks that test calls Fatalf with a text that contains want.
func wantFatal(t *testing.T, want string, test func(t testing.TB)) {
	t.Helper()
	f := &failing{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(f)
	}()
	<-done
	if !strings.HasPrefix(f.text, "oncetest: ") || !strings.Contains(f.text, want) {
		t.Errorf("the test failed with %q, want %q", f.text, want)
	}
}

// failing is a testing.TB that records the text of Fatalf.
type failing struct {
	testing.TB
	text string
}

func (f *failing) Fatalf(format string, args ...any) {
	f.text = fmt.Sprintf(format, args...)
	runtime.Goexit()
}
