package fetchonce_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
)

// made returns how many bytes f allocates.
func made(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// plant stores bytes of our choice where the value of a key belongs, as a codec with
// this number would.
func plant(t *testing.T, r backend, key string, payload []byte, codec byte) {
	t.Helper()
	l, err := fetchonce.New(r.Client(), fetchonce.Options[[]byte]{Prefix: "test", Codec: rawCodec{}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Set(t.Context(), key, payload); err != nil {
		t.Fatal(err)
	}
	b, err := r.Client().Get(t.Context(), "test:v:{"+key+"}").Bytes()
	if err != nil {
		t.Fatal(err)
	}
	forge(b, codec)
	if err := r.Client().Set(t.Context(), "test:v:{"+key+"}", b, time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
}

type wide struct {
	A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P string `json:",omitempty" msgpack:",omitempty"`
}

// A stored value that would take more than 32 times MaxBytes and 1 MiB of memory is a
// miss before it is decoded.
func TestDecodingIsBoundedByMemory(t *testing.T) {
	const (
		maxBytes = 256 << 10
		most     = 32*maxBytes + 1<<20 + 8*maxBytes // the reads themselves, the fake server's too
	)
	for name, test := range map[string]struct {
		codec   fetchonce.Codec
		number  byte
		payload []byte
	}{
		"msgpack": {fetchonce.Msgpack, 1, append([]byte{0xdd, 0, 3, 0xf0, 0}, bytes.Repeat([]byte{0x90}, 0x3f000)...)},
		"JSON":    {fetchonce.JSON, 2, []byte("[" + strings.Repeat("[],", 85_000) + "[]]")},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				plant(t, r, "k", test.payload, test.number)
				l, err := fetchonce.New(r.Client(), fetchonce.Options[[]*[512]float64]{Prefix: "test", Codec: test.codec, MaxBytes: maxBytes})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				var got []*[512]float64
				took := made(func() {
					got, err = l.Get(t.Context(), "k", func(context.Context, string) ([]*[512]float64, error) { return nil, nil })
				})
				if err != nil || len(got) != 0 {
					t.Errorf("Get = %d elements, %v; want what was fetched", len(got), err)
				}
				if took > most {
					t.Errorf("Get of %d hostile bytes allocated %d; want at most %d", len(test.payload), took, most)
				}
			})
		})
	}
}

// What the memory limit refuses on reading is refused on writing, and said.
func TestValueBeyondTheMemoryLimitIsNotStored(t *testing.T) {
	for name, codec := range map[string]fetchonce.Codec{"msgpack": fetchonce.Msgpack, "JSON": fetchonce.JSON} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				l, err := fetchonce.New(r.Client(), fetchonce.Options[[]wide]{Prefix: "test", Codec: codec, MaxBytes: 64 << 10})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				large := make([]wide, 20_000) // of 1 or 3 bytes each, and 256 in memory
				err = l.Set(t.Context(), "k", large)
				e, ok := errors.AsType[*fetchonce.Error](err)
				if !ok || e.Op != "encode" || !strings.Contains(err.Error(), "memory") {
					t.Errorf("Set = %v; want an *Error of encode that speaks of memory", err)
				}
				fetches := 0
				for range 2 {
					got, err := l.Get(t.Context(), "k", func(context.Context, string) ([]wide, error) { fetches++; return large, nil })
					if len(got) != len(large) || err != nil {
						t.Errorf("Get = %d elements, %v; want what was fetched", len(got), err)
					}
				}
				if fetches != 2 {
					t.Errorf("two Gets made %d fetches; want 2, as nothing is stored", fetches)
				}
				if err := l.Set(t.Context(), "k", large[:1000]); err != nil {
					t.Errorf("Set of fewer elements = %v; want nil", err)
				}
				if got, err := l.Peek(t.Context(), "k"); len(got.Value) != 1000 || err != nil {
					t.Errorf("Peek = %d elements, %v; want 1000", len(got.Value), err)
				}
			})
		})
	}
}
