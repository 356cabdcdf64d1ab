package redistest_test

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/push"

	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestWithoutRedisServerTestsAreSkippedOrFail(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("FETCHONCE_REDIS_SERVER", "")
	for name, start := range map[string]func(testing.TB){
		"Server":    func(t testing.TB) { redistest.Server(t) },
		"TCPServer": func(t testing.TB) { redistest.TCPServer(t) },
		"Cluster":   func(t testing.TB) { redistest.Cluster(t) },
	} {
		t.Setenv("FETCHONCE_REQUIRE_SERVERS", "")
		if got := judge(t, start); !got.skipped || !strings.Contains(got.said, "redis-server") {
			t.Errorf("%s: %+v, want it skipped, and a reason", name, got)
		}
		t.Setenv("FETCHONCE_REQUIRE_SERVERS", "1")
		if got := judge(t, start); !got.failed || !strings.Contains(got.said, "FETCHONCE_REQUIRE_SERVERS") {
			t.Errorf("%s, required: %+v, want a failure, and a reason", name, got)
		}
	}
}

func TestServersOnASocketAndAPort(t *testing.T) {
	for name, start := range map[string]func(testing.TB, ...string) *redistest.Process{
		"unix": redistest.Server, "tcp": redistest.TCPServer,
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, "--maxmemory", "3mb")
			rdb := p.Client(func(opt *redis.Options) { opt.DB = 2 })
			if got := rdb.ConfigGet(t.Context(), "maxmemory").Val()["maxmemory"]; got != "3145728" {
				t.Errorf("maxmemory = %s, want 3145728: the arguments are for it", got)
			}
			if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
			if got := p.Client().Exists(t.Context(), "k").Val(); got != 0 {
				t.Error("a client with another DB sees the key")
			}
			opt, err := redis.ParseURL(p.URL())
			if err != nil {
				t.Fatal(err)
			}
			if opt.Network != name || opt.Addr != p.Addr() {
				t.Errorf("URL %s is of %s %s, want %s %s", p.URL(), opt.Network, opt.Addr, name, p.Addr())
			}
			other := start(t)
			if got, err := other.Client().DBSize(t.Context()).Result(); got != 0 || err != nil {
				t.Errorf("another server: DBSize = %d, %v; want 0, nil", got, err)
			}
		})
	}
}

func TestServerEndsWithItsTest(t *testing.T) {
	var p *redistest.Process
	if !t.Run("test", func(t *testing.T) { p = redistest.Server(t) }) || p == nil {
		t.Skip("no server")
	}
	process, err := os.FindProcess(p.Pid())
	if err == nil {
		err = process.Signal(syscall.Signal(0))
	}
	if !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("its process: %v, want %v", err, os.ErrProcessDone)
	}
	if _, err := os.Stat(p.Addr()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket: %v, want %v", err, os.ErrNotExist)
	}
}

func TestDroppedInvalidations(t *testing.T) {
	p := redistest.Server(t)
	writer := p.Client()
	rdb := p.Client(func(opt *redis.Options) { opt.Protocol = 3 })
	var got invalidations
	if err := rdb.RegisterPushNotificationHandler("invalidate", &got, false); err != nil {
		t.Fatal(err)
	}
	conn := rdb.Conn()
	defer conn.Close()
	if err := conn.Do(t.Context(), "CLIENT", "TRACKING", "ON", "BCAST").Err(); err != nil {
		t.Fatal(err)
	}
	set := func(key string) {
		t.Helper()
		if err := writer.Set(t.Context(), key, "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	redistest.WireOf(rdb).DropMessages(1, "__redis__:invalidate")
	set("dropped")
	set("after it")
	redistest.Until(t, "an invalidation arrives", func() bool {
		return conn.Ping(t.Context()).Err() != nil || got.count.Load() > 0
	})
	if err := conn.Ping(t.Context()).Err(); err != nil || got.count.Load() != 1 {
		t.Errorf("%d invalidations, Ping = %v; want 1, nil", got.count.Load(), err)
	}
}

type invalidations struct{ count atomic.Int32 }

func (i *invalidations) HandlePushNotification(ctx, push.NotificationHandlerContext, []any) error {
	i.count.Add(1)
	return nil
}

// refused reports whether no process listens on addr.
func refused(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
