package wake_test

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// unconnected returns a mailbox that never connects.
func unconnected(t testing.TB) *wake.Mailbox {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	m := wake.New(rdb)
	t.Cleanup(func() {
		m.Close()
		_ = rdb.Close()
	})
	return m
}

// allocated returns how many bytes are allocated while f runs.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestMessageIsNotCopied(t *testing.T) {
	m := unconnected(t)
	s := m.OpenSlot(name)
	defer s.Close()
	for what, payload := range map[string]string{
		"a long one without a waiter": message('V', 7, "another", strings.Repeat("x", 20<<20)),
		"a long one":                  message('V', 7, name, strings.Repeat("x", 20<<20)),
		"one with a long name":        message('V', 7, strings.Repeat("x", 20<<20), ""),
		"one without a waiter":        message('V', 7, "another", strings.Repeat("x", 64<<10)),
		"one of a lost lease":         message('L', 7, "another", strings.Repeat("x", 64<<10)),
	} {
		if n := allocated(func() { wake.Receive(m, payload) }); n > 32<<10 {
			t.Errorf("%s: %d bytes are allocated for a message of %d", what, n, len(payload))
		}
		wantNone(t, what, s, 0)
	}
}

// FuzzForgedMessage sends a mailbox any bytes. What a waiter receives is short. A failure of
// another lease and a value from the future do not count.
func FuzzForgedMessage(f *testing.F) {
	for _, kind := range "VERLGPx" {
		for _, fence := range []uint64{0, 7, 1 << 62, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
			f.Add(message(protocol.Kind(kind), fence, name, "body"), uint8(1))
		}
	}
	f.Add(message('E', 7, name, "e\x1b[2J\n"), uint8(1))
	f.Add("V\x00\x00\x00\x00\x00\x00\x00\x07\xff\xff\xff\xff\x7f", uint8(1))
	f.Add(message('V', 7, name, "x"), uint8(255))
	f.Fuzz(func(t *testing.T, payload string, times uint8) {
		payload = strings.Repeat(payload, int(times)%64)
		m := unconnected(t)
		s := m.OpenSlot(name)
		defer s.Close()
		stop := m.OnLost("owner", func() {
			if !strings.HasSuffix(payload, "owner") || payload[0] != 'L' {
				t.Errorf("%q made the holder lose its lease", payload)
			}
		})
		defer stop()
		wake.Receive(m, payload)
		got, ok := s.Take(7)
		if !ok {
			return
		}
		if got.Name != name || len(got.Body) > protocol.LongestMessage || !bytes.Contains([]byte(payload), []byte(got.Body)) {
			t.Errorf("%q was delivered as %+v", payload, got)
		}
		now := time.UnixMicro(1000)
		if counts := got.Answers(7, now); counts && got.Kind == 'E' && got.Fence != 7 || counts && got.Kind == 'V' && got.Fence > 61_000_000 {
			t.Errorf("%+v counts for a waiter of the fence 7", got)
		}
	})
}
