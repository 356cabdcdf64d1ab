package protocol_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestGet(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newClient(t, r, "p")
		ctx := t.Context()
		if got, err := p.Get(ctx, key, 100); got != nil || err != nil {
			t.Errorf("Get of nothing = %q, %v; want nil, nil", got, err)
		}
		p.must(p.rdb.Set(ctx, key.Value, "0123456789", ttl).Err())
		for limit, want := range map[int]string{100: "0123456789", 10: "0123456789", 9: "0123456789", 8: "012345678", 0: "0"} {
			if got, err := p.Get(ctx, key, limit); string(got) != want || err != nil {
				t.Errorf("Get with limit %d = %q, %v; want %q, nil", limit, got, err, want)
			}
		}
		binary := "\x00\r\n$5\xff"
		p.must(p.rdb.Set(ctx, key.Value, binary, ttl).Err())
		if got, err := p.Get(ctx, key, 100); string(got) != binary || err != nil {
			t.Errorf("Get = %q, %v; want %q, nil", got, err, binary)
		}
		p.must(p.rdb.Del(ctx, key.Value).Err())
		p.must(p.rdb.RPush(ctx, key.Value, "x").Err())
		p.must(p.rdb.PExpire(ctx, key.Value, ttl).Err())
		if got, err := p.Get(ctx, key, 100); got != nil || !errors.Is(err, protocol.ErrType) {
			t.Errorf("Get of a list = %q, %v; want %v", got, err, protocol.ErrType)
		}
	})
}

// keyOf returns the key under another schema.
func keyOf(schema string) protocol.Key { return protocol.NewNamespace("test", schema).Key("k") }

// sealFor returns a segment of a key's schema.
func sealFor(k protocol.Key, created time.Time, fence int64, keep time.Duration, size int) []byte {
	return envelope.Seal(envelope.Header{
		Kind: envelope.Value, Created: created.UnixMilli(), Fence: fence, Fresh: keep, Keep: keep, Digest: k.Digest(),
	}, bytes.Repeat([]byte("x"), size))
}

func TestSplitFindsTheSegmentOfTheSchema(t *testing.T) {
	const limit = 500
	at := time.UnixMilli(1)
	ours, small, large := sealFor(key, at, 1, ttl, 100), sealFor(keyOf("2"), at, 1, ttl, 10), sealFor(keyOf("3"), at, 1, ttl, 1000)
	newer := slices.Clone(small)
	newer[2] += 0x10 // of a version that this build does not know
	join := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	for name, c := range map[string]struct {
		value []byte // the first limit+1 bytes are read
		own   []byte // nil: none
		alone bool
		cut   bool
	}{
		"nothing":                      {},
		"ours alone":                   {value: ours, own: ours, alone: true},
		"another's alone":              {value: small},
		"ours first":                   {value: join(ours, small), own: ours},
		"ours last":                    {value: join(small, small, ours), own: ours},
		"ours, and more than are read": {value: join(ours, large), own: ours},
		"too many":                     {value: join(small, small, small, ours), own: join(small, small, small, ours), alone: true},
		"ours twice":                   {value: join(ours, small, ours), own: ours},
		"garbage":                      {value: []byte("garbage"), own: []byte("garbage"), alone: true},
		"garbage after ours":           {value: append(slices.Clone(ours), 0), own: append(slices.Clone(ours), 0), alone: true},
		"garbage after another's":      {value: append(slices.Clone(small), 0), own: append(slices.Clone(small), 0), alone: true},
		"ours, too short":              {value: ours[:100], own: ours[:100], alone: true},
		"another's, too short":         {value: small[:60], own: small[:60], alone: true},
		"a newer version":              {value: newer, own: newer, alone: true},
		"a large one before ours":      {value: join(large, ours), cut: true},
		"a header is cut":              {value: join(small, small, bytes.Repeat([]byte("x"), 400)), own: nil, cut: true},
		"garbage, and large":           {value: bytes.Repeat([]byte("x"), 1000), own: bytes.Repeat([]byte("x"), limit+1)},
	} {
		b := c.value[:min(len(c.value), limit+1)]
		v := key.Split(b, limit)
		if !bytes.Equal(v.Own, c.own) || (v.Own == nil) != (c.own == nil) || v.Alone != c.alone || v.Cut != c.cut {
			t.Errorf("%s: Split = %d bytes %.20q, alone %v, cut %v; want %d bytes, %v, %v", name, len(v.Own), v.Own, v.Alone, v.Cut, len(c.own), c.alone, c.cut)
		}
		if want := b[:min(len(b), envelope.Size)]; !bytes.Equal(v.Head, want) {
			t.Errorf("%s: the head is %q, want %q", name, v.Head, want)
		}
	}
}

// A schemas has a client for each of several schemas.
type schemas struct {
	*process
	clients map[string]*protocol.Client
}

func newSchemas(t *testing.T, r redistest.Backend) schemas {
	t.Helper()
	s := schemas{newClient(t, r, "p"), make(map[string]*protocol.Client)}
	for _, name := range []string{"1", "2", "3", "4"} {
		s.clients[name] = protocol.NewClient(batch.NewRouter(s.rdb).Link(0, 0), protocol.NewNamespace("test", name), "p", timeout, false)
	}
	return s
}

// lease acquires the lease for a schema over any value.
func (s schemas) lease(schema string) (owner string, fence int64) {
	s.t.Helper()
	head, err := s.clients[schema].Get(s.t.Context(), key, envelope.Size-1)
	s.must(err)
	owner = s.owner()
	a, err := s.clients[schema].Acquire(s.t.Context(), keyOf(schema), owner, lease, &protocol.PassOver{Head: head, Others: true})
	if err != nil || a.State != protocol.Leased {
		s.t.Fatalf("Acquire for schema %s = %+v, %v; want the lease", schema, a, err)
	}
	return owner, a.Fence
}

// store fills the key for a schema and returns the segment.
func (s schemas) store(schema string, keep time.Duration, size int) string {
	s.t.Helper()
	owner, fence := s.lease(schema)
	k := keyOf(schema)
	sealed := sealFor(k, s.now(), fence, keep, size)
	if f, err := s.clients[schema].Fill(s.t.Context(), protocol.Lease{Key: k, Owner: owner, Fence: fence}, sealed, keep); err != nil || !f.Stored || f.Refused != nil {
		s.t.Fatalf("Fill for schema %s = %+v, %v; want stored", schema, f, err)
	}
	return string(sealed)
}

func (s schemas) wantValue(what string, parts ...string) {
	s.t.Helper()
	got, want := s.rdb.Get(s.t.Context(), key.Value).Val(), strings.Join(parts, "")
	if got != want {
		s.t.Errorf("%s: the value has %d bytes, want %d segments of %d bytes in all", what, len(got), len(parts), len(want))
	}
	s.must(s.rdb.Del(s.t.Context(), key.Value, key.Meta(), key.Marks()).Err())
}

func TestFillKeepsTheSegmentsOfOtherSchemas(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		s := newSchemas(t, r)
		for _, size := range []int{10, protocol.StageAbove} {
			one := s.store("1", time.Hour, 10)
			two := s.store("2", time.Minute, size)
			s.wantEnd(key.Value, time.Hour)
			three := s.store("3", 2*time.Hour, 20)
			s.wantEnd(key.Value, 2*time.Hour)
			again := s.store("2", time.Minute, size)
			s.wantValue("its own is replaced", again, three, one)
			if two == again {
				t.Error("the two segments of a schema are the same")
			}

			s.store("1", time.Hour, 10)
			two = s.store("2", time.Hour, size)
			three = s.store("3", time.Hour, 10)
			four := s.store("4", time.Hour, size)
			s.wantValue("the oldest of four goes", four, three, two)
		}
	})
}

func TestFillDropsEndedAndForgedSegments(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		s := newSchemas(t, r)
		now := s.now()
		good := func(keep time.Duration) []byte { return sealFor(keyOf("1"), now, 1, keep, 10) }
		newer := good(time.Hour)
		newer[2] += 0x10
		ahead := sealFor(keyOf("1"), now, now.Add(time.Minute).UnixMicro(), time.Hour, 10)
		ended := sealFor(keyOf("3"), now.Add(-2*time.Hour), 1, time.Hour, 10)
		endless := sealFor(keyOf("1"), now, 1, 1<<62, 10)
		for name, c := range map[string]struct {
			value []byte
			ends  time.Duration // 0: never
			kept  []byte
		}{
			"a good one":                         {good(time.Hour), time.Hour, good(time.Hour)},
			"it has ended":                       {sealFor(keyOf("1"), now.Add(-2*time.Hour), 1, time.Hour, 10), time.Hour, nil},
			"the key ends before it":             {good(time.Hour), time.Minute, nil},
			"the key has no end":                 {good(time.Hour), 0, nil},
			"no end, and it ends soon":           {sealFor(keyOf("1"), now.Add(-time.Hour+900*time.Millisecond), 1, time.Hour, 10), 0, nil},
			"it would last for ever":             {endless, time.Hour, nil},
			"its fence is above the lease's own": {ahead, time.Hour, nil},
			"another version":                    {newer, time.Hour, nil},
			"garbage":                            {[]byte(strings.Repeat("garbage", 100)), time.Hour, nil},
			"garbage after it":                   {append(good(time.Hour), "garbage"...), time.Hour, good(time.Hour)},
			"it is twice there":                  {append(good(time.Hour), good(time.Hour)...), time.Hour, good(time.Hour)},
			"it is cut":                          {good(time.Hour)[:60], time.Hour, nil},
			"it is the fourth":                   {append(bytes.Repeat(ended, 3), good(time.Hour)...), time.Hour, nil},
			"17 MiB":                             {sealFor(keyOf("1"), now, 1, time.Hour, 17<<20), time.Hour, nil},
		} {
			s.must(s.rdb.Set(t.Context(), key.Value, c.value, c.ends).Err())
			two := s.store("2", time.Minute, 10)
			if left := s.rdb.PTTL(t.Context(), key.Value).Val(); left <= 0 || left > time.Hour || c.kept == nil && left > time.Minute {
				t.Errorf("%s: the key lasts %v", name, left)
			}
			s.wantValue(name, two, string(c.kept))
		}
	})
}

// It removes the segment of its own schema only.
func TestFillThatStoresNothingKeepsOtherSchemas(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		s := newSchemas(t, r)
		for _, sealed := range [][]byte{nil, sealFor(keyOf("2"), s.now(), 1, 0, 10)} {
			one := s.store("1", time.Hour, 10)
			s.store("2", 2*time.Hour, 10)
			owner, fence := s.lease("2")
			if f, err := s.clients["2"].Fill(t.Context(), protocol.Lease{Key: keyOf("2"), Owner: owner, Fence: fence}, sealed, 0); err != nil || !f.Stored {
				t.Fatalf("Fill = %+v, %v; want notified", f, err)
			}
			s.wantEnd(key.Value, time.Hour)
			s.wantValue("the other's stays", one)
		}
		// A FILL of a tainted lease removes all segments: a Set may have stored them during the Update.
		s.must(s.clients["1"].Mark(t.Context(), key, "w.1", time.Minute))
		s.must(s.clients["1"].Set(t.Context(), keyOf("1"), s.owner(), sealFor(keyOf("1"), s.now(), 0, ttl/2, 10), ttl/2))
		owner, fence := s.lease("2")
		if _, err := s.clients["2"].Fill(t.Context(), protocol.Lease{Key: keyOf("2"), Owner: owner, Fence: fence}, sealFor(keyOf("2"), s.now(), fence, ttl, 10), ttl); err != nil {
			t.Fatal(err)
		}
		s.wantValue("during an Update")
	})
}

func TestSetAndInvalidateRemoveAllSegments(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		s := newSchemas(t, r)
		for _, size := range []int{10, protocol.StageAbove} {
			s.store("1", time.Hour, 10)
			s.store("2", time.Hour, 10)
			s.must(s.clients["1"].Set(t.Context(), keyOf("1"), s.owner(), sealFor(keyOf("1"), s.now(), 0, time.Minute, size), time.Minute))
			if n := s.rdb.StrLen(t.Context(), key.Value).Val(); int(n) != envelope.Size+size {
				t.Errorf("after Set the value has %d bytes, want %d", n, envelope.Size+size)
			}
			s.wantEnd(key.Value, time.Minute)
			s.store("2", time.Hour, 10)
			s.must(s.clients["1"].Invalidate(t.Context(), keyOf("1")))
			s.wantValue("after Invalidate")
		}
	})
}

// The server decides whether the caller's segment has ended, not the newest one.
func TestEndedSegmentOfOneSchemaIsPassedOver(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		s := newSchemas(t, r)
		now := s.now()
		for _, c := range []struct {
			ends time.Duration
			want protocol.State
		}{{-time.Second, protocol.Leased}, {time.Minute, protocol.Stored}} {
			value := append(sealFor(keyOf("2"), now, 2, time.Hour, 10), sealFor(keyOf("1"), now.Add(c.ends-time.Hour), 1, time.Hour, 10)...)
			s.must(s.rdb.Set(t.Context(), key.Value, value, time.Hour).Err())
			over := protocol.PassOver{Head: value[:envelope.Size], Ended: now.Add(c.ends).UnixMilli()}
			a, err := s.clients["1"].Acquire(t.Context(), keyOf("1"), s.owner(), lease, &over)
			if err != nil || a.State != c.want || a.Now.IsZero() {
				t.Errorf("it ends in %v: Acquire = state %d, %v; want %d and the server's time", c.ends, a.State, err, c.want)
			}
			s.must(s.rdb.Del(t.Context(), key.Value, key.Meta()).Err())
		}
	})
}

// The new fence is above those of all segments. A segment that was stored since is not passed over.
func TestOtherSchemasSegmentIsPassedOverOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		s := newSchemas(t, r)
		one := []byte(s.store("1", time.Hour, 10))
		two := []byte(s.store("2", time.Hour, 10))
		h, err := envelope.Open(two, keyOf("2").Digest())
		s.must(err)
		a, err := s.clients["3"].Acquire(t.Context(), keyOf("3"), s.owner(), lease, &protocol.PassOver{Head: one[:envelope.Size]})
		if err != nil || a.State != protocol.Stored || !bytes.Equal(a.Value, append(two, one...)) {
			t.Errorf("Acquire over a value that has a newer segment = %+v, %v; want the value", a, err)
		}
		if _, fence := s.lease("3"); fence <= h.Fence {
			t.Errorf("the fence %d is not above that of a segment, %d", fence, h.Fence)
		}
		s.must(s.clients["1"].Invalidate(t.Context(), key))
	})
}

func TestReadRestFindsASegmentAfterLargeOnes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		s := newSchemas(t, r)
		const limit = 200
		now := s.now()
		ours := sealFor(key, now, 1, ttl, 100)
		large := sealFor(keyOf("2"), now, 1, ttl, 1000)
		medium := sealFor(keyOf("3"), now, 1, ttl, 100)
		for name, c := range map[string]struct{ value, want []byte }{
			"behind a large one":        {slices.Concat(large, ours), ours},
			"behind two":                {slices.Concat(large, large, ours), ours},
			"behind one that is cut":    {slices.Concat(medium, ours, large), ours},
			"there is none":             {slices.Concat(large, medium), nil},
			"the value ends too early":  {large[:600], nil},
			"its own is too large, too": {slices.Concat(large, sealFor(key, now, 1, ttl, limit)), sealFor(key, now, 1, ttl, limit)[:limit+1]},
		} {
			s.must(s.rdb.Set(t.Context(), key.Value, c.value, ttl).Err())
			b, err := s.Get(t.Context(), key, limit)
			s.must(err)
			v := key.Split(b, limit)
			if !v.Cut {
				t.Fatalf("%s: the value is not cut", name)
			}
			v, err = s.ReadRest(t.Context(), key, v, limit)
			if err != nil || !bytes.Equal(v.Own, c.want) || v.Cut || v.Alone || !bytes.Equal(v.Head, c.value[:envelope.Size]) {
				t.Errorf("%s: ReadRest = %d bytes, cut %v, alone %v, %v; want %d bytes", name, len(v.Own), v.Cut, v.Alone, err, len(c.want))
			}
		}
	})
}
