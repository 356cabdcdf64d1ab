package fetchonce_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// Clients that users wrap.
type (
	ofAny     struct{ redis.UniversalClient }
	ofClient  struct{ *redis.Client }
	ofCluster struct{ *redis.ClusterClient }
	ofRing    struct{ *redis.Ring }
	twice     struct {
		calls int //nolint:unused // a field that is no client
		ofAny
	}
	uncomparable struct {
		redis.UniversalClient
		more any
	}
)

// New and NewLocker refuse the same clients with the same error, and start no goroutine.
func TestNewRefusesClientsItCannotUse(t *testing.T) {
	for name, refused := range map[string]struct {
		rdb  func() redis.UniversalClient
		want string
	}{
		"nil":                        {func() redis.UniversalClient { return nil }, "client is nil"},
		"a nil Client":               {func() redis.UniversalClient { return (*redis.Client)(nil) }, "client is nil"},
		"a nil ClusterClient":        {func() redis.UniversalClient { return (*redis.ClusterClient)(nil) }, "client is nil"},
		"a nil Ring":                 {func() redis.UniversalClient { return (*redis.Ring)(nil) }, "client is nil"},
		"a nil wrapper":              {func() redis.UniversalClient { return (*ofAny)(nil) }, "client is nil"},
		"a wrapper of nothing":       {func() redis.UniversalClient { return ofAny{} }, "client is nil"},
		"a wrapper of a nil Client":  {func() redis.UniversalClient { return &ofClient{} }, "client is nil"},
		"a wrapper of a wrapped nil": {func() redis.UniversalClient { return &twice{ofAny: ofAny{(*redis.Client)(nil)}} }, "client is nil"},
		"a Ring":                     {func() redis.UniversalClient { return newRing() }, "Ring"},
		"an embedded Ring":           {func() redis.UniversalClient { return ofRing{newRing()} }, "Ring"},
		"a wrapped Ring":             {func() redis.UniversalClient { return &twice{ofAny: ofAny{newRing()}} }, "Ring"},
		"replicas":                   {func() redis.UniversalClient { return newReplicas() }, "replicas"},
		"embedded replicas":          {func() redis.UniversalClient { return &ofCluster{newReplicas()} }, "replicas"},
		"wrapped replicas":           {func() redis.UniversalClient { return ofAny{newReplicas()} }, "replicas"},
		"a client-side cache":        {func() redis.UniversalClient { return newCaching() }, "ClientSideCache"},
		"an embedded one":            {func() redis.UniversalClient { return ofClient{newCaching()} }, "ClientSideCache"},
		"a wrapped one":              {func() redis.UniversalClient { return ofAny{ofAny{newCaching()}} }, "ClientSideCache"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // fails if a goroutine is left
				rdb := refused.rdb()
				if rdb != nil && !strings.Contains(name, " nil") && name != "a wrapper of nothing" {
					defer rdb.Close()
				}
				check := func(of string, err error) {
					t.Helper()
					e, ok := errors.AsType[*fetchonce.Error](err)
					if !ok || e.Op != "new" || !strings.Contains(err.Error(), refused.want) {
						t.Errorf("%s: %v, want an *Error that names %q", of, err, refused.want)
					}
				}
				l, err := fetchonce.New(rdb, options{Prefix: "p"})
				check("New", err)
				if err == nil {
					_ = l.Close()
				}
				lk, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "p"})
				check("NewLocker", err)
				if err == nil {
					_ = lk.Close()
				}
			})
		})
	}
}

func newRing() *redis.Ring { return redis.NewRing(&redis.RingOptions{}) }

func newReplicas() *redis.ClusterClient {
	return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, RouteRandomly: true})
}

func newCaching() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Protocol: 3, ClientSideCacheConfig: &redis.ClientSideCacheConfig{MaxEntries: 10}})
}

// A wrapper of an accepted client is accepted.
func TestNewAcceptsWrappedClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		for name, rdb := range map[string]redis.UniversalClient{
			"as any": ofAny{r.Client()}, "embedded": &ofClient{r.Client()}, "twice": twice{ofAny: ofAny{r.Client()}},
			"a value that cannot be compared": uncomparable{r.Client(), []int{1}},
		} {
			l := testkit.LoaderOf(t, rdb)
			o := testkit.NewOrigin(t)
			g := testkit.Get(t, t.Context(), l, name, o)
			o.Next().Returns("v")
			g.Want("v")
			lk, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "test"})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := lk.Do(t.Context(), name, func(context.Context) error { return nil }); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			_ = lk.Close()
		}
	})
}

// A near cache must know which other Loaders use its client, so it compares clients.
func TestNearNeedsAClientThatCanBeCompared(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	type client struct {
		*redis.Client
		more any
	}
	for _, more := range []any{1, []int{1}} {
		l, err := fetchonce.New(client{rdb, more}, options{Prefix: "p", Near: fetchonce.Near{Entries: 1}})
		if _, comparable := more.(int); (err == nil) != comparable {
			t.Errorf("with %T: %v", more, err)
		}
		if err == nil {
			_ = l.Close()
		}
	}
}

// A bomb is a hook that panics in the methods that are set.
type bomb struct{ dial, process, pipeline bool }

var errBomb = errors.New("the hook's own fault")

func (b *bomb) DialHook(next redis.DialHook) redis.DialHook {
	if b.dial {
		return func(context.Context, string, string) (net.Conn, error) { panic(errBomb) }
	}
	return next
}

func (b *bomb) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if b.process && cmd.Name() != "hello" && cmd.Name() != "client" {
			panic(errBomb)
		}
		return next(ctx, cmd)
	}
}

func (b *bomb) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if b.pipeline {
			panic(errBomb)
		}
		return next(ctx, cmds)
	}
}

// A panic of a client's method is an error of the call, whichever goroutine ran it.
func TestPanicsOfAClientAreErrors(t *testing.T) {
	for name, armed := range map[string]bomb{
		"a command and a pipeline": {process: true, pipeline: true}, "a connection": {dial: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { panicsAreErrors(t, armed) })
		})
	}
}

func panicsAreErrors(t *testing.T, armed bomb) {
	t.Helper()
	rdb := redistest.Bubble(t).Client()
	rdb.AddHook(&armed)
	l := testkit.LoaderOf(t, rdb, func(opt *options) {
		opt.OnRedisDown, opt.Near, opt.RedisTimeout = fetchonce.FailClosed, fetchonce.Near{Entries: 10}, time.Second
	})
	lk, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer lk.Close()
	l.Listen() // the mailbox also connects
	calls := map[string]func() error{
		"Get": func() error {
			_, err := l.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "v", nil })
			return err
		},
		"Set":    func() error { return l.Set(t.Context(), "k", "v") },
		"Delete": func() error { return l.Delete(t.Context(), "k") },
		"Do":     func() error { return lk.Do(t.Context(), "n", func(context.Context) error { return nil }) },
	}
	errs := make(chan error)
	for range 4 { // some of them share a pipeline
		for name, call := range calls {
			go func() { // ends when its error is received
				if err := call(); err == nil {
					errs <- errors.New(name + " succeeded")
				} else {
					errs <- err
				}
			}()
		}
	}
	for range 4 * len(calls) {
		err := <-errs
		if _, ok := errors.AsType[*fetchonce.Error](err); !ok || !armed.dial && !errors.Is(err, errBomb) {
			t.Errorf("%v, want an *Error that wraps the hook's panic", err)
		}
	}
	time.Sleep(5 * time.Second) // the near cache and the mailbox reconnect
}

// A panic of the function that lists a cluster's nodes is an error.
func TestPanicOfAClustersTopologyIsAnError(t *testing.T) {
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs:        []string{"127.0.0.1:1"},
		ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) { panic(errBomb) },
	})
	defer rdb.Close()
	l := testkit.LoaderOf(t, rdb, testkit.WithPolicy(fetchonce.FailClosed), testkit.WithNear)
	l.Listen()
	if err := l.Set(t.Context(), "k", "v"); !errors.Is(err, errBomb) {
		t.Errorf("Set = %v, want an error that wraps the function's panic", err)
	}
}
