package fetchonce_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

const (
	logUnavailable = "redis unavailable; loading without a lease"
	logSilent      = "redis refused PUBLISH; waiters are not notified"
	logRefused     = "redis refused a command; loading without a lease"
)

// The log quotes an error that Redis replied. Only without a reply does it say "unavailable".
func TestLogSaysWhatRedisAnswered(t *testing.T) {
	for name, text := range map[string]string{
		"NOPERM": "NOPERM this user has no permissions to run the 'evalsha' command", "OOM": "OOM command not allowed when used memory > 'maxmemory'.",
		"READONLY": "READONLY You can't write against a read only replica.", "an unknown command": "ERR unknown command 'evalsha'",
		"no answer": "",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := redistest.Bubble(t)
				log := &testkit.Log{}
				l := testkit.LoaderOf(t, r.Client(), func(opt *options) { opt.Logger, opt.RedisTimeout = log.Logger(), time.Second })
				want, not := logRefused, logUnavailable
				if text == "" {
					want, not = not, want
					r.Kill()
				} else {
					r.Wire().Fail(redistest.All, text, "EVALSHA", "EVAL")
				}
				o := testkit.NewOrigin(t)
				g := testkit.Get(t, t.Context(), l, "k", o)
				o.Next().Returns("v")
				g.Want("v")
				if log.Count(want) != 1 || log.Count(not) != 0 || log.Count(text) == 0 {
					t.Errorf("the log says %s, want %q and %q", log.Text.String(), want, text)
				}
			})
		})
	}
}

// A client with several addresses is a cluster client. A server that is no cluster refuses it.
func TestLogSaysThatAServerIsNoCluster(t *testing.T) {
	r := redistest.TCPServer(t)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{r.Addr(), r.Addr()}})
	defer rdb.Close()
	log := &testkit.Log{}
	l := testkit.LoaderOf(t, rdb, func(opt *options) { opt.Logger = log.Logger() })
	o := testkit.NewOrigin(t)
	g := testkit.Get(t, t.Context(), l, "k", o)
	o.Next().Returns("v")
	g.Want("v")
	if log.Count(logRefused) != 1 || log.Count(logUnavailable) != 0 || log.Count("cluster support disabled") == 0 {
		t.Errorf("the log says %s", log.Text.String())
	}
}

// The server replies READONLY for minutes. Only the first miss waits for a failover to end.
func TestMissAtAReplicaWaitsForOneFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		l := testkit.LoaderOf(t, r.Client(), func(opt *options) { opt.RedisTimeout = time.Second })
		r.Wire().Fail(redistest.All, "READONLY You can't write against a read only replica.", "EVALSHA", "EVAL")
		miss := func(key string) time.Duration {
			start := time.Now()
			o := testkit.NewOrigin(t)
			g := testkit.Get(t, t.Context(), l, key, o)
			o.Next().Returns("v")
			g.Want("v")
			return time.Since(start)
		}
		if took := miss("first"); took < time.Second/2 {
			t.Errorf("the first miss took %v, want RedisTimeout", took)
		}
		for range 20 {
			if took := miss("k"); took > 0 {
				t.Fatalf("a miss took %v", took)
			}
			time.Sleep(time.Second)
		}
		r.Wire().Heal()
		miss("k")
		wantSource(t, l, "v", fetchonce.SourceRedis)
	})
}

// The log does not quote the arguments of a command that the server does not know.
func TestLogQuotesNoArguments(t *testing.T) {
	r := redistest.Server(t, "--rename-command", "CLIENT", "")
	log := &testkit.Log{}
	l := testkit.LoaderOf(t, r.Client(), testkit.WithNear, func(opt *options) { opt.Logger = log.Logger() })
	testkit.Set(t, l, "k", "v")
	r.Backend().Until("the log has the refusal", func() bool {
		_, _ = l.Peek(t.Context(), "k")
		return log.Count("unknown command") > 0
	})
	if log.Count("with args") != 0 || log.Count("test:") != 0 {
		t.Errorf("the log says %s", log.Text.String())
	}
}

// Each Loader logs once that the server refuses PUBLISH, whichever script it affects.
func TestRefusedPublishIsLogged(t *testing.T) {
	r := redistest.Server(t)
	if err := r.Client().Do(t.Context(), "acl", "setuser", "quiet", "on", ">secret", "~*", "&*", "+@all", "-publish").Err(); err != nil {
		t.Fatal(err)
	}
	for name, op := range map[string]func(quiet, other loader, o *testkit.Origin){
		"FILL": func(quiet, other loader, o *testkit.Origin) {
			first := testkit.Get(t, t.Context(), quiet, "k", o)
			c := o.Next()
			second := testkit.Get(t, t.Context(), other, "k", o)
			testkit.AwaitWaiters(t, r.Backend(), "k", 1)
			c.Returns("v")
			first.Want("v")
			second.Want("v") // by its recheck timer
		},
		"RELEASE": func(quiet, other loader, o *testkit.Origin) {
			failure := errors.New("the origin fails")
			first := testkit.Get(t, t.Context(), quiet, "k", o)
			c := o.Next()
			second := testkit.Get(t, t.Context(), other, "k", o)
			testkit.AwaitWaiters(t, r.Backend(), "k", 1)
			c.Fails(failure)
			first.WantErr(failure)
			o.Next().Returns("v")
			second.Want("v")
		},
		"SET": func(quiet, other loader, o *testkit.Origin) {
			first := testkit.Get(t, t.Context(), other, "k", o)
			c := o.Next()
			testkit.Set(t, quiet, "k", "w")
			c.Returns("v")
			first.Outcome()
		},
		"INVALIDATE": func(quiet, other loader, o *testkit.Origin) {
			first := testkit.Get(t, t.Context(), other, "k", o)
			c := o.Next()
			if err := quiet.Delete(t.Context(), "k"); err != nil {
				t.Errorf("Delete = %v", err)
			}
			c.Returns("v")
			first.Outcome()
		},
	} {
		t.Run(name, func(t *testing.T) {
			log := &testkit.Log{}
			quiet := testkit.LoaderOf(t, r.Client(func(opt *redis.Options) { opt.Username, opt.Password = "quiet", "secret" }),
				func(opt *options) { opt.Logger = log.Logger() })
			other := newLoader(t, r.Backend())
			for range 2 {
				op(quiet, other, testkit.NewOrigin(t))
				if err := other.Delete(t.Context(), "k"); err != nil {
					t.Fatal(err)
				}
			}
			if n := log.Count(logSilent); n != 1 {
				t.Errorf("the log has %d such lines: %s", n, log.Text.String())
			}
		})
	}
}

func TestRefusedPublishOfALockIsLogged(t *testing.T) {
	r := redistest.Server(t)
	rdb := r.Client()
	if err := rdb.Do(t.Context(), "acl", "setuser", "quiet", "on", ">secret", "~*", "&*", "+@all", "-publish").Err(); err != nil {
		t.Fatal(err)
	}
	log := &testkit.Log{}
	locker := func(user string) *fetchonce.Locker {
		lk, err := fetchonce.NewLocker(r.Client(func(opt *redis.Options) { opt.Username, opt.Password = user, "secret" }),
			fetchonce.LockOptions{Prefix: "test", RedisTimeout: 10 * time.Second, Logger: log.Logger()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = lk.Close() })
		return lk
	}
	a, b := locker("quiet"), locker("quiet")
	_, held, err := a.Acquire(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { // ends when b has held the lock
		done <- b.Do(t.Context(), "n", func(context.Context) error { return nil })
	}()
	r.Backend().Until("the other waits", func() bool { return rdb.ZCount(t.Context(), "test:q:{n}", "(0", "+inf").Val() == 1 })
	if err := held.Release(); err != nil {
		t.Errorf("Release = %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("Do = %v", err)
	}
	if n := log.Count(logSilent); n != 1 {
		t.Errorf("the log has %d such lines: %s", n, log.Text.String())
	}
}
