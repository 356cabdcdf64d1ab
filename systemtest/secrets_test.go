package systemtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// The secrets that no log and no error may have.
const (
	canaryKey      = "key-c4n4ry"
	canaryValue    = "value-c4n4ry"
	canaryPassword = "password-c4n4ry"
	canaryURL      = "://user-c4n4ry"
)

// A listener has all that was said, to the log and to callers.
type listener struct {
	t *testing.T

	mu     sync.Mutex
	log    bytes.Buffer
	errs   int
	traced map[string]int // how often a Trace was called, by the type of its event
}

func (s *listener) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *listener) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// heard returns how often a Trace received an event of a type.
func (s *listener) heard(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.traced[what]
}

// told checks an error of a caller that gave canaryKey: it may be quoted.
func (s *listener) told(err error) {
	s.t.Helper()
	if err == nil {
		return
	}
	s.errs++
	s.wantNoSecret("an error", quoted(err))
}

// quoted is the text of an error without the key, where that is quoted.
func quoted(err error) string { return strings.ReplaceAll(err.Error(), `"`+canaryKey+`"`, "") }

// wantNoSecret fails the test if a text has a secret.
func (s *listener) wantNoSecret(who, text string) {
	s.t.Helper()
	for _, secret := range []string{canaryKey, canaryValue, canaryPassword, canaryURL} {
		if strings.Contains(text, secret) {
			s.t.Errorf("%s tells %q: %s", who, secret, text)
		}
	}
}

// trace returns a Trace that receives every event. An event has keys and names, each in its
// field, and errors; no other field may have a secret.
func (s *listener) trace() *fetchonce.Trace {
	return &fetchonce.Trace{
		Got:         func(_ context.Context, e fetchonce.TraceGet) { s.hear(e) },
		Fetched:     func(_ context.Context, e fetchonce.TraceFetch) { s.hear(e) },
		Waited:      func(_ context.Context, e fetchonce.TraceWait) { s.hear(e) },
		Stored:      func(_ context.Context, e fetchonce.TraceStore) { s.hear(e) },
		LeaseLost:   func(_ context.Context, e fetchonce.TraceLease) { s.hear(e) },
		RedisFailed: func(_ context.Context, e fetchonce.TraceRedisError) { s.hear(e) },
		NearDropped: func(_ context.Context, e fetchonce.TraceNearDrop) { s.hear(e) },
		Locked:      func(_ context.Context, e fetchonce.TraceLock) { s.hear(e) },
		Unlocked:    func(_ context.Context, e fetchonce.TraceUnlock) { s.hear(e) },
	}
}

// hear checks an event of a Trace, field by field.
func (s *listener) hear(told any) {
	v := reflect.ValueOf(told)
	for i := range v.NumField() {
		name, field := v.Type().Field(i).Name, v.Field(i).Interface()
		text := fmt.Sprint(field)
		if err, ok := field.(error); ok {
			text = quoted(err)
		}
		if (name == "Key" || name == "Name") && text == canaryKey {
			continue
		}
		s.wantNoSecret(v.Type().Name()+"."+name, text)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.traced[v.Type().Name()]++
}

// A secretive is a value whose codec quotes it in its errors, as many do.
type secretive struct {
	Text   string
	Cannot bool
}

func (v secretive) MarshalJSON() ([]byte, error) {
	if v.Cannot {
		return nil, errors.New("cannot write " + v.Text)
	}
	return []byte(`{"Text":"` + v.Text + `"}`), nil
}

func (v *secretive) UnmarshalJSON(data []byte) error {
	if bytes.Contains(data, []byte("bad")) {
		return errors.New("cannot read " + string(data))
	}
	v.Text = canaryValue
	return nil
}

// A canary is a process with secrets, and what befalls it.
type canary struct {
	*testing.T
	*listener
	r     redistest.Redis
	rdb   *redis.Client
	l     *fetchonce.Loader[secretive]
	locks *fetchonce.Locker

	shared int // failures that came from another process
}

func newCanary(t *testing.T, policy fetchonce.Policy) *canary {
	t.Helper()
	c := &canary{T: t, listener: &listener{t: t, traced: make(map[string]int)}, r: redistest.Bubble(t)}
	opt, err := redis.ParseURL("redis" + canaryURL + ":" + canaryPassword + "@127.0.0.1/0")
	if err != nil {
		t.Fatal(err)
	}
	c.r.RequireUserAuth(opt.Username, opt.Password)
	c.rdb = c.r.Client(func(o *redis.Options) { o.Username, o.Password = opt.Username, opt.Password })
	logger := slog.New(slog.NewJSONHandler(c.listener, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
	c.l, err = fetchonce.New(c.rdb, fetchonce.Options[secretive]{
		Prefix: "test", Schema: "1", Codec: fetchonce.JSON, OnRedisDown: policy, Logger: logger, StaleIfError: time.Hour,
		Near: fetchonce.Near{Entries: 10}, MaxBytes: 1000, Trace: c.trace(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.l.Close() })
	if c.locks, err = fetchonce.NewLocker(c.rdb, fetchonce.LockOptions{Prefix: "test", Logger: logger, Trace: c.trace()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.locks.Close() })
	return c
}

var errHarmless = errors.New("the origin fails")

// A rowError is the error of a database that quotes the row.
type rowError struct{}

func (rowError) Error() string    { return "duplicate key: (email)=(" + canaryValue + ")" }
func (rowError) SQLState() string { return "23505" }

// A leakyStore returns such errors, or panics with one.
type leakyStore struct{ inLookup, panics bool }

func (s leakyStore) Lookup(context.Context, string) (string, error) {
	if !s.inLookup {
		return "", fetchonce.ErrNotFound
	}
	return s.Create(context.Background(), "", "")
}

func (s leakyStore) Create(context.Context, string, string) (string, error) {
	if s.panics {
		panic(rowError{})
	}
	return "", fmt.Errorf("insert "+canaryValue+": %w", rowError{})
}

// failures has errors of a Store, and of a database inside a fetch, shared with another
// process and logged. The caller in this process gets the error as it was.
func (c *canary) failures() {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	for i, store := range []fetchonce.Store[string]{nil, leakyStore{}, leakyStore{inLookup: true}, leakyStore{panics: true}} {
		opt := options{
			Prefix: "leaky" + strconv.Itoa(i), Store: store, ErrorTTL: time.Minute, Trace: nil,
			Logger: slog.New(slog.NewJSONHandler(c.listener, nil)), TTL: time.Second, StaleWhileRevalidate: time.Hour,
		}
		fetch := func(context.Context, string) (string, error) {
			if store == nil {
				return "", fmt.Errorf("load the row: %w", rowError{})
			}
			return "v", nil
		}
		here, there := c.leaky(opt, c.rdb), c.leaky(opt, c.r.Client(func(o *redis.Options) {
			o.Username, o.Password = c.rdb.Options().Username, c.rdb.Options().Password
		}))
		if err := failureOf(func() error { _, err := here.Get(ctx, canaryKey, fetch); return err }); !errors.As(err, new(rowError)) {
			c.Errorf("a Get over %+v = %v; want the whole error", store, err)
		}
		err := failureOf(func() error { _, err := there.Get(ctx, canaryKey, fetch); return err })
		if !errors.As(err, new(rowError)) { // else it has failed by itself, as Redis is down
			c.shared++
			c.told(err)
		}
		if here.Set(ctx, canaryKey, "old") == nil {
			time.Sleep(2 * time.Second)
			// The refresh that follows fails.
			err := failureOf(func() error { _, err := here.Get(ctx, canaryKey, fetch); return err })
			if !errors.As(err, new(rowError)) { // else there was no fallback value
				c.told(err)
			}
			synctest.Wait()
		}
	}
}

func (c *canary) leaky(opt options, rdb *redis.Client) loader {
	c.Helper()
	l, err := fetchonce.New(rdb, opt)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = l.Close() })
	return l
}

// failureOf returns the error of f, or that which it panics with.
func failureOf(f func() error) (err error) {
	defer func() {
		if p, ok := recover().(error); ok {
			err = p
		}
	}()
	return f()
}

// everything calls all there is, with a fetch that returns a value that can be
// written, and one that cannot.
func (c *canary) everything() {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	for _, v := range []secretive{{Text: canaryValue}, {Text: canaryValue, Cannot: true}, {Text: strings.Repeat(canaryValue, 1000)}} {
		_, err := c.l.Get(ctx, canaryKey, func(context.Context, string) (secretive, error) { return v, nil })
		c.told(err)
		c.told(c.l.Delete(ctx, canaryKey))
		_, err = c.l.GetMany(ctx, []string{canaryKey}, func(context.Context, []string) (map[string]secretive, error) {
			return map[string]secretive{canaryKey: v}, nil
		})
		c.told(err)
		if !v.Cannot { // else Set returns what the caller's own codec says
			c.told(c.l.Set(ctx, canaryKey, v))
		}
	}
	_, err := c.l.Peek(ctx, canaryKey)
	c.told(err)
	c.told(c.l.Update(ctx, canaryKey, func(context.Context) error { return nil }))
	_, err = c.l.Get(ctx, canaryKey, func(context.Context, string) (secretive, error) { return secretive{}, errHarmless })
	c.told(err)
	func() {
		defer func() {
			if err, ok := recover().(error); ok {
				c.told(err)
			}
		}()
		_, err := c.l.Get(ctx, canaryKey, func(context.Context, string) (secretive, error) { panic("harmless") })
		c.told(err)
	}()
	c.told(c.locks.Do(ctx, canaryKey, func(context.Context) error {
		c.told(c.locks.TryDo(ctx, canaryKey, func(context.Context) error { return nil }))
		return nil
	}))
}

// No log has a key, value, password or URL, and an error has no more than the key that its
// caller gave, whatever fails. A Trace receives keys, each in its field, and such errors.
func TestLogsAndErrorsHaveNoSecrets(t *testing.T) {
	name := "test:v:{" + canaryKey + "}"
	unknown := "ERR unknown command, with args beginning with: '" + name + "' '" + canaryValue + "'"
	befalls := map[string]func(c *canary){
		"nothing": func(*canary) {},
		"is down": func(c *canary) { c.r.Wire().Down() },
		"hangs":   func(c *canary) { c.r.Pause() },
		"wrong type": func(c *canary) {
			_, _ = c.r.Lpush(name, canaryValue)
			_, _ = c.r.Lpush("test:l:{"+canaryKey+"}", canaryValue)
		},
		"foreign": func(c *canary) { _ = c.r.Set(name, canaryValue) },
		"undecodable": func(c *canary) {
			l, err := fetchonce.New(c.rdb, options{Prefix: "test", Schema: "1", Codec: fetchonce.JSON})
			if err != nil {
				c.Fatal(err)
			}
			defer l.Close()
			c.told(l.Set(c.Context(), canaryKey, "bad "+canaryValue))
		},
		"another password": func(c *canary) {
			c.r.RequireUserAuth("user-c4n4ry", "another")
			c.r.Wire().Cut()
		},
		"knows no GETRANGE": func(c *canary) { c.r.Wire().Fail(redistest.All, unknown, "GETRANGE") },
		"knows no EVALSHA":  func(c *canary) { c.r.Wire().Fail(redistest.All, unknown, "EVALSHA") },
		"loses scripts":     func(c *canary) { c.r.Wire().Fail(redistest.All, "NOSCRIPT", "EVALSHA", "EVAL") },
		"out of memory":     func(c *canary) { c.r.SetError("OOM command not allowed when used memory > 'maxmemory'.") },
	}
	for _, policy := range []fetchonce.Policy{fetchonce.FailOpen, fetchonce.FailClosed} {
		for what, befall := range befalls {
			t.Run(what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newCanary(t, policy)
					befall(c)
					c.everything()
					if policy == fetchonce.FailOpen {
						c.failures()
					}
					c.r.Wire().Heal()
					c.r.Resume()
					time.Sleep(5 * time.Second) // a probe finds Redis again
					synctest.Wait()
					if what == "hangs" && policy == fetchonce.FailOpen && !strings.Contains(c.logged(), "redis available again") {
						t.Errorf("the end of the outage is not in the log:\n%s", c.logged())
					}
					for _, secret := range []string{canaryKey, canaryValue, canaryPassword, canaryURL} {
						if log := c.logged(); strings.Contains(log, secret) {
							t.Errorf("the log tells %q:\n%s", secret, log)
						}
					}
					for _, told := range []string{"TraceGet", "TraceFetch", "TraceLock"} {
						if c.heard(told) == 0 && policy == fetchonce.FailOpen {
							t.Errorf("no %s was told: that shows little", told)
						}
					}
					if what == "nothing" && policy == fetchonce.FailOpen && (c.shared != 4 || !strings.Contains(c.logged(), "23505")) {
						t.Errorf("%d failures were shared, want 4, and the SQLSTATE in the log:\n%s", c.shared, c.logged())
					}
					if c.errs < 2 { // a fetch fails, and a lock is taken
						t.Errorf("%d errors were told: that shows little", c.errs)
					}
					if what != "nothing" && policy == fetchonce.FailOpen && !strings.Contains(c.logged(), "fetchonce:") {
						t.Error("nothing was logged: that shows little")
					}
				})
			})
		}
	}
}

// A lock that could not be released is logged, without its name.
func TestLogOfAnUnreleasedLockOmitsItsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCanary(t, fetchonce.FailOpen)
		c.told(c.locks.Do(t.Context(), canaryKey, func(context.Context) error {
			c.r.Wire().Fail(redistest.All, "ERR trouble", "EVALSHA")
			return nil
		}))
		c.r.Wire().Heal()
		if log := c.logged(); !strings.Contains(log, "ERR trouble") || strings.Contains(log, canaryKey) {
			t.Errorf("the log: %s", log)
		}
	})
}
