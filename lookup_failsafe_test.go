package fetchonce_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

var errOriginDown = errors.New("origin down")

// broken is a fetch that fails.
func broken(context.Context, string) (string, error) { return "", errOriginDown }

func withFailSafe(opt *options) {
	withBreaker(opt)
	opt.Near = fetchonce.Near{Entries: 100, FailSafe: time.Minute}
}

// keepNear puts a key into the near cache.
func keepNear(t *testing.T, r backend, l loader, key string) {
	t.Helper()
	isNear := func() bool {
		got, err := l.Peek(t.Context(), key)
		return err == nil && got.Source == fetchonce.SourceNear
	}
	r.Until(key+" is in the near cache", func() bool {
		_, err := l.Get(t.Context(), key, constant)
		return err == nil && isNear()
	})
}

// Redis and the origin are both down. The last near entry is returned until FailSafe ends.
func TestFailSafeReturnsTheLastGoodEntryWhileRedisAndTheOriginAreDown(t *testing.T) {
	for name, policy := range map[string]fetchonce.Policy{"FailOpen": fetchonce.FailOpen, "FailClosed": fetchonce.FailClosed} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				l := newLoader(t, r, withFailSafe, func(opt *options) { opt.OnRedisDown = policy })
				keepNear(t, r, l, "k")
				r.Kill()
				time.Sleep(10 * time.Second)
				got, err := l.Load(t.Context(), "k", func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) { return broken(ctx, f.Key) })
				if err != nil || got.Value != "v" || !got.Stale || got.Source != fetchonce.SourceNear || got.Age < 10*time.Second {
					t.Errorf("Load = %+v, %v; want the stale entry and its age", got, err)
				}
				if v, err := l.Get(t.Context(), "k", broken); v != "v" || err != nil {
					t.Errorf("Get = %q, %v; want the entry", v, err)
				}
				many, err := l.GetMany(t.Context(), []string{"k", "other"}, func(context.Context, []string) (map[string]string, error) { return nil, errOriginDown })
				if many["k"] != "v" || err == nil || many["other"] != "" {
					t.Errorf("GetMany = %v, %v; want the entry, and an error for the other key", many, err)
				}
				time.Sleep(time.Minute)
				if _, err := l.Get(t.Context(), "k", broken); err == nil {
					t.Error("FailSafe has ended, and the entry is still returned")
				}
			})
		})
	}
}

// The value that a fetch returns is preferred to the near entry.
func TestFailSafeDoesNotHideAFetchThatSucceeds(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, withFailSafe)
		keepNear(t, r, l, "k")
		r.Kill()
		time.Sleep(10 * time.Second)
		if v, err := l.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "new", nil }); v != "new" || err != nil {
			t.Errorf("Get = %q, %v; want the fetched value", v, err)
		}
		if _, err := l.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "", fetchonce.ErrNotFound }); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Get = %v; want the fetch's ErrNotFound", err)
		}
	})
}

// After this process has changed the key, its near entry is never returned again.
func TestFailSafeNeverReturnsAnEntryThatThisProcessHasDeleted(t *testing.T) {
	for name, change := range map[string]func(ctx context.Context, l loader){
		"Delete": func(ctx context.Context, l loader) { _ = l.Delete(ctx, "k") },
		"Set":    func(ctx context.Context, l loader) { _ = l.Set(ctx, "k", "w") },
		"Update": func(ctx context.Context, l loader) { _ = l.Update(ctx, "k", testkit.Nothing) },
	} {
		for _, when := range []string{"before", "during"} {
			t.Run(name+" "+when+" the outage", func(t *testing.T) {
				inBubble(t, func(t *testing.T, r backend) {
					l := newLoader(t, r, withFailSafe)
					keepNear(t, r, l, "k")
					if when == "before" {
						change(t.Context(), l)
					}
					r.Kill()
					if when == "during" {
						change(t.Context(), l)
					}
					time.Sleep(10 * time.Second)
					if v, err := l.Get(t.Context(), "k", broken); err == nil {
						t.Errorf("Get = %q, want an error", v)
					}
				})
			})
		}
	}
}

// Only the origin is down. An entry that another process has deleted is not returned.
func TestFailSafeNeedsAnOutageOfRedis(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, withFailSafe)
		keepNear(t, r, l, "k")
		if err := newLoader(t, r).Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if v, err := l.Get(t.Context(), "k", broken); !errors.Is(err, errOriginDown) {
			t.Errorf("Get = %q, %v; want the origin's error", v, err)
		}
	})
}

// FLUSHALL deletes every key. The process receives that like any change.
func TestFailSafeDoesNotReturnAFlushedEntry(t *testing.T) {
	r := redistest.Server(t)
	l := newLoader(t, r.Backend(), withFailSafe, func(opt *options) { opt.RedisTimeout = 5 * time.Second })
	keepNear(t, r.Backend(), l, "k")
	if err := r.Client().FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	r.Backend().Until("the flush is received", func() bool {
		got, err := l.Peek(t.Context(), "k")
		return errors.Is(err, fetchonce.ErrNotFound) || got.Source != fetchonce.SourceNear
	})
	r.Kill()
	if v, err := l.Get(t.Context(), "k", broken); err == nil {
		t.Errorf("Get = %q, want an error", v)
	}
}

// The origin is down for minutes, and a stale value is read ten times a second.
func TestStaleValuesAreReadFromTheNearCacheDuringABackoff(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l := testkit.LoaderOf(t, rdb, func(opt *options) {
			opt.TTL, opt.Jitter, opt.StaleIfError, opt.Near = 10*time.Second, fetchonce.Off, time.Hour, fetchonce.Near{Entries: 100}
		})
		keepNear(t, r, l, "k")
		time.Sleep(11 * time.Second)
		var fetches atomic.Int32
		failing := func(context.Context, string) (string, error) { fetches.Add(1); return "", errOriginDown }
		redistest.WireOf(rdb).Reset()
		const reads = 3000
		for range reads {
			if v, err := l.Get(t.Context(), "k", failing); v != "v" || err != nil {
				t.Fatalf("Get = %q, %v; want the stale value", v, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		read := 0
		for _, name := range redistest.WireOf(rdb).Commands() {
			if name == "GETRANGE" {
				read++
			}
		}
		if read > reads/30 {
			t.Errorf("%d of %d stale reads went to Redis (%d fetches)", read, reads, fetches.Load())
		}
		got, err := l.Peek(t.Context(), "k")
		if err != nil || !got.Stale || got.Value != "v" {
			t.Errorf("Peek = %+v, %v; want the stale value", got, err)
		}
		if err := newLoader(t, r).Set(t.Context(), "k", "new"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if v, err := l.Get(t.Context(), "k", failing); v != "new" || err != nil {
			t.Errorf("after a Set by another process, Get = %q, %v", v, err)
		}
	})
}
