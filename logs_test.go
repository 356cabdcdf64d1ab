package fetchonce_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A lines is a log of one JSON object per line.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

// with returns the lines whose message has the text.
func (l *lines) with(t *testing.T, text string) (found []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(m["msg"].(string), text) {
			found = append(found, m)
		}
	}
	return found
}

// one returns the only line whose message has the text.
func (l *lines) one(t *testing.T, text string) map[string]any {
	t.Helper()
	found := l.with(t, text)
	if len(found) != 1 {
		t.Fatalf("%d lines with %q, want 1: %v", len(found), text, found)
	}
	return found[0]
}

func TestLogNamesTheLoaderTheCauseAndTheEndOfAnOutage(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		var log lines
		l := newLoader(t, r, withBreaker, func(opt *options) { opt.Logger = log.logger() })
		r.Kill()
		for range 100 {
			_, _ = l.Get(t.Context(), "k", constant)
		}
		time.Sleep(11 * time.Second)
		_, _ = l.Get(t.Context(), "k", constant)
		down := log.with(t, "redis unavailable")
		if len(down) != 2 || down[1]["count"] != 100.0 {
			t.Fatalf("lines %v, want one per ten seconds, the second with the 100 events since the first", down)
		}
		host, _ := os.Hostname()
		if m := down[1]; m["prefix"] != "test" || m["type"] != "string" || !strings.HasPrefix(m["instance"].(string), host+":") {
			t.Errorf("line %v, want prefix, type and instance", m)
		}
		for _, m := range down {
			if !strings.Contains(m["error"].(string), "refused") {
				t.Errorf("error %q, want the cause: connection refused", m["error"])
			}
		}
		r.Restart()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if m := log.one(t, "redis available again"); m["prefix"] != "test" || m["level"] != "WARN" {
			t.Errorf("line %v", m)
		}
	})
}

func TestLogHasTheInstanceOfTheOptions(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		var log lines
		l := newLoader(t, r, withBreaker, func(opt *options) { opt.Logger, opt.Instance = log.logger(), "web-7" })
		r.Kill()
		_, _ = l.Get(t.Context(), "k", constant)
		if m := log.one(t, "redis unavailable"); m["instance"] != "web-7" {
			t.Errorf("line %v, want the instance web-7", m)
		}
	})
}

func TestLogSaysThatTheNearCacheIsUsedAgain(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		var log lines
		l := newLoader(t, r, func(opt *options) {
			opt.Near, opt.Logger = fetchonce.Near{Entries: 10}, log.logger()
		})
		_, _ = l.Get(t.Context(), "k", constant)
		r.Kill()
		r.Until("the fault is logged", func() bool { return len(log.with(t, "tracking connection failed")) > 0 })
		r.Restart()
		r.Until("the end is logged", func() bool {
			_, _ = l.Get(t.Context(), "k", constant)
			return len(log.with(t, "near cache used again")) > 0
		})
	})
}

// The holder dies, and a waiter acquires the lease when it ends.
func TestLogSaysThatALeaseWasTakenOver(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		var log lines
		o := testkit.NewOrigin(t)
		rdb := r.Client()
		holder := testkit.LoaderOf(t, rdb, testkit.ShortLease(r))
		testkit.Get(t, t.Context(), holder, "k", o)
		o.Next()
		redistest.WireOf(rdb).Down()
		waiter := newLoader(t, r, testkit.ShortLease(r), func(opt *options) { opt.Logger = log.logger() })
		if v, err := waiter.Get(t.Context(), "k", constant); v != "v" || err != nil {
			t.Errorf("Get = %q, %v", v, err)
		}
		if m := log.one(t, "taken over"); m["level"] != "INFO" || m["count"] != 1.0 {
			t.Errorf("line %v, want Info with a count", m)
		}
	})
}
