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

// The secrets that no log and no error may contain.
const (
	canaryKey      = "key-c4n4ry"
	canaryValue    = "value-c4n4ry"
	canaryPassword = "password-c4n4ry"
	canaryURL      = "://user-c4n4ry"
)

// A recorder keeps the log and checks all errors and Trace events for secrets.
type recorder struct {
	t *testing.T

	mu     sync.Mutex
	log    bytes.Buffer
	errs   int
	events map[string]int // Trace events by type
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *recorder) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// count returns how many events of a type the Trace received.
func (r *recorder) count(event string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events[event]
}

// checkError checks an error of a call for canaryKey. The error may quote that key.
func (r *recorder) checkError(err error) {
	r.t.Helper()
	if err == nil {
		return
	}
	r.errs++
	r.wantNoSecret("an error", withoutKey(err))
}

// withoutKey returns the text of an error without the quoted key.
func withoutKey(err error) string { return strings.ReplaceAll(err.Error(), `"`+canaryKey+`"`, "") }

// wantNoSecret fails the test if text contains a secret.
func (r *recorder) wantNoSecret(what, text string) {
	r.t.Helper()
	for _, secret := range []string{canaryKey, canaryValue, canaryPassword, canaryURL} {
		if strings.Contains(text, secret) {
			r.t.Errorf("%s contains %q: %s", what, secret, text)
		}
	}
}

// trace returns a Trace that checks every event.
func (r *recorder) trace() *fetchonce.Trace {
	return &fetchonce.Trace{
		Got:         func(_ context.Context, e fetchonce.TraceGet) { r.checkEvent(e) },
		Fetched:     func(_ context.Context, e fetchonce.TraceFetch) { r.checkEvent(e) },
		Waited:      func(_ context.Context, e fetchonce.TraceWait) { r.checkEvent(e) },
		Stored:      func(_ context.Context, e fetchonce.TraceStore) { r.checkEvent(e) },
		LeaseLost:   func(_ context.Context, e fetchonce.TraceLease) { r.checkEvent(e) },
		RedisFailed: func(_ context.Context, e fetchonce.TraceRedisError) { r.checkEvent(e) },
		NearDropped: func(_ context.Context, e fetchonce.TraceNearDrop) { r.checkEvent(e) },
		Locked:      func(_ context.Context, e fetchonce.TraceLock) { r.checkEvent(e) },
		Unlocked:    func(_ context.Context, e fetchonce.TraceUnlock) { r.checkEvent(e) },
	}
}

// checkEvent checks each field of a Trace event. Only the fields Key and Name, and the quoted key
// in an error, may have the key.
func (r *recorder) checkEvent(event any) {
	v := reflect.ValueOf(event)
	for i := range v.NumField() {
		name, field := v.Type().Field(i).Name, v.Field(i).Interface()
		text := fmt.Sprint(field)
		if err, ok := field.(error); ok {
			text = withoutKey(err)
		}
		if (name == "Key" || name == "Name") && text == canaryKey {
			continue
		}
		r.wantNoSecret(v.Type().Name()+"."+name, text)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events[v.Type().Name()]++
}

// A secretive is a value whose codec quotes it in errors, as many codecs do.
type secretive struct {
	Text   string
	Cannot bool
}

func (v secretive) MarshalJSON() ([]byte, error) {
	if v.Cannot {
		return nil, errors.New("cannot encode " + v.Text)
	}
	return []byte(`{"Text":"` + v.Text + `"}`), nil
}

func (v *secretive) UnmarshalJSON(data []byte) error {
	if bytes.Contains(data, []byte("bad")) {
		return errors.New("cannot decode " + string(data))
	}
	v.Text = canaryValue
	return nil
}

// A canary is a process whose keys, values and credentials are secrets.
type canary struct {
	*testing.T
	*recorder
	redis redistest.Redis
	rdb   *redis.Client
	l     *fetchonce.Loader[secretive]
	locks *fetchonce.Locker

	shared int // failures that came from another process
}

func newCanary(t *testing.T, policy fetchonce.Policy) *canary {
	t.Helper()
	c := &canary{T: t, recorder: &recorder{t: t, events: make(map[string]int)}, redis: redistest.Bubble(t)}
	opt, err := redis.ParseURL("redis" + canaryURL + ":" + canaryPassword + "@127.0.0.1/0")
	if err != nil {
		t.Fatal(err)
	}
	c.redis.RequireUserAuth(opt.Username, opt.Password)
	c.rdb = c.redis.Client(func(o *redis.Options) { o.Username, o.Password = opt.Username, opt.Password })
	logger := slog.New(slog.NewJSONHandler(c.recorder, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
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

// A leakyStore returns rowErrors, or panics with one.
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

// failures makes a Store, and a database inside a fetch, fail. The caller in this process receives
// the whole error. Another process receives a text without the secret, and so does the log.
func (c *canary) failures() {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	for i, store := range []fetchonce.Store[string]{nil, leakyStore{}, leakyStore{inLookup: true}, leakyStore{panics: true}} {
		opt := options{
			Prefix: "leaky" + strconv.Itoa(i), Store: store, ErrorTTL: time.Minute, Trace: nil,
			Logger: slog.New(slog.NewJSONHandler(c.recorder, nil)), TTL: time.Second, StaleWhileRevalidate: time.Hour,
		}
		fetch := func(context.Context, string) (string, error) {
			if store == nil {
				return "", fmt.Errorf("load the row: %w", rowError{})
			}
			return "v", nil
		}
		here, there := c.leaky(opt, c.rdb), c.leaky(opt, c.redis.Client(func(o *redis.Options) {
			o.Username, o.Password = c.rdb.Options().Username, c.rdb.Options().Password
		}))
		if err := failureOf(func() error { _, err := here.Get(ctx, canaryKey, fetch); return err }); !errors.As(err, new(rowError)) {
			c.Errorf("a Get over %+v = %v; want the whole error", store, err)
		}
		err := failureOf(func() error { _, err := there.Get(ctx, canaryKey, fetch); return err })
		if !errors.As(err, new(rowError)) { // else Redis was down, and the other process failed by itself
			c.shared++
			c.checkError(err)
		}
		if here.Set(ctx, canaryKey, "old") == nil {
			time.Sleep(2 * time.Second)
			// This Get starts a refresh, which fails.
			err := failureOf(func() error { _, err := here.Get(ctx, canaryKey, fetch); return err })
			if !errors.As(err, new(rowError)) { // else there was no stale value
				c.checkError(err)
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

// failureOf returns the error of f, or the error with which f panics.
func failureOf(f func() error) (err error) {
	defer func() {
		if p, ok := recover().(error); ok {
			err = p
		}
	}()
	return f()
}

// everything calls every method, with values that can be encoded, that cannot be, and that are too
// large.
func (c *canary) everything() {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	for _, v := range []secretive{{Text: canaryValue}, {Text: canaryValue, Cannot: true}, {Text: strings.Repeat(canaryValue, 1000)}} {
		_, err := c.l.Get(ctx, canaryKey, func(context.Context, string) (secretive, error) { return v, nil })
		c.checkError(err)
		c.checkError(c.l.Delete(ctx, canaryKey))
		_, err = c.l.GetMany(ctx, []string{canaryKey}, func(context.Context, []string) (map[string]secretive, error) {
			return map[string]secretive{canaryKey: v}, nil
		})
		c.checkError(err)
		if !v.Cannot { // Set returns the error of the caller's own codec unchanged
			c.checkError(c.l.Set(ctx, canaryKey, v))
		}
	}
	_, err := c.l.Peek(ctx, canaryKey)
	c.checkError(err)
	c.checkError(c.l.Update(ctx, canaryKey, func(context.Context) error { return nil }))
	_, err = c.l.Get(ctx, canaryKey, func(context.Context, string) (secretive, error) { return secretive{}, errHarmless })
	c.checkError(err)
	func() {
		defer func() {
			if err, ok := recover().(error); ok {
				c.checkError(err)
			}
		}()
		_, err := c.l.Get(ctx, canaryKey, func(context.Context, string) (secretive, error) { panic("harmless") })
		c.checkError(err)
	}()
	c.checkError(c.locks.Do(ctx, canaryKey, func(context.Context) error {
		c.checkError(c.locks.TryDo(ctx, canaryKey, func(context.Context) error { return nil }))
		return nil
	}))
}

// Whatever fails, no log has a key, value, password or URL. An error quotes at most the key of its
// call. A Trace receives keys in their fields and the same errors.
func TestLogsAndErrorsHaveNoSecrets(t *testing.T) {
	name := "test:v:{" + canaryKey + "}"
	unknown := "ERR unknown command, with args beginning with: '" + name + "' '" + canaryValue + "'"
	faults := map[string]func(c *canary){
		"no fault": func(*canary) {},
		"down":     func(c *canary) { c.redis.Wire().Down() },
		"hung":     func(c *canary) { c.redis.Pause() },
		"wrong type": func(c *canary) {
			_, _ = c.redis.Lpush(name, canaryValue)
			_, _ = c.redis.Lpush("test:l:{"+canaryKey+"}", canaryValue)
		},
		"foreign": func(c *canary) { _ = c.redis.Set(name, canaryValue) },
		"undecodable": func(c *canary) {
			l, err := fetchonce.New(c.rdb, options{Prefix: "test", Schema: "1", Codec: fetchonce.JSON})
			if err != nil {
				c.Fatal(err)
			}
			defer l.Close()
			c.checkError(l.Set(c.Context(), canaryKey, "bad "+canaryValue))
		},
		"another password": func(c *canary) {
			c.redis.RequireUserAuth("user-c4n4ry", "another")
			c.redis.Wire().Cut()
		},
		"unknown GETRANGE": func(c *canary) { c.redis.Wire().Fail(redistest.All, unknown, "GETRANGE") },
		"unknown EVALSHA":  func(c *canary) { c.redis.Wire().Fail(redistest.All, unknown, "EVALSHA") },
		"lost scripts":     func(c *canary) { c.redis.Wire().Fail(redistest.All, "NOSCRIPT", "EVALSHA", "EVAL") },
		"out of memory":    func(c *canary) { c.redis.SetError("OOM command not allowed when used memory > 'maxmemory'.") },
	}
	for _, policy := range []fetchonce.Policy{fetchonce.FailOpen, fetchonce.FailClosed} {
		for what, fault := range faults {
			t.Run(what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newCanary(t, policy)
					fault(c)
					c.everything()
					if policy == fetchonce.FailOpen {
						c.failures()
					}
					c.redis.Wire().Heal()
					c.redis.Resume()
					time.Sleep(5 * time.Second) // until a probe succeeds
					synctest.Wait()
					if what == "hung" && policy == fetchonce.FailOpen && !strings.Contains(c.logged(), "redis available again") {
						t.Errorf("the end of the outage is not in the log:\n%s", c.logged())
					}
					for _, secret := range []string{canaryKey, canaryValue, canaryPassword, canaryURL} {
						if log := c.logged(); strings.Contains(log, secret) {
							t.Errorf("the log contains %q:\n%s", secret, log)
						}
					}
					for _, event := range []string{"TraceGet", "TraceFetch", "TraceLock"} {
						if c.count(event) == 0 && policy == fetchonce.FailOpen {
							t.Errorf("the Trace received no %s, so the test shows little", event)
						}
					}
					if what == "no fault" && policy == fetchonce.FailOpen && (c.shared != 4 || !strings.Contains(c.logged(), "23505")) {
						t.Errorf("%d failures were shared, want 4, and the SQLSTATE in the log:\n%s", c.shared, c.logged())
					}
					if c.errs < 2 { // at least those of the failing fetch and of TryDo
						t.Errorf("%d errors were returned, so the test shows little", c.errs)
					}
					if what != "no fault" && policy == fetchonce.FailOpen && !strings.Contains(c.logged(), "fetchonce:") {
						t.Error("nothing was logged, so the test shows little")
					}
				})
			})
		}
	}
}

// A lock that could not be released is logged without its name.
func TestLogOfAnUnreleasedLockOmitsItsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCanary(t, fetchonce.FailOpen)
		c.checkError(c.locks.Do(t.Context(), canaryKey, func(context.Context) error {
			c.redis.Wire().Fail(redistest.All, "ERR trouble", "EVALSHA")
			return nil
		}))
		c.redis.Wire().Heal()
		if log := c.logged(); !strings.Contains(log, "ERR trouble") || strings.Contains(log, canaryKey) {
			t.Errorf("the log: %s", log)
		}
	})
}
