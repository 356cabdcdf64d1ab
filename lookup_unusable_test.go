package fetchonce_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// Foreign data at the key of a value or a lease is replaced, or delays a Get by one lease at most.
//
//test:long
func TestHostileDataAtEveryKey(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		admin := r.Client()
		put := func(key string, data []byte) {
			if err := admin.Set(t.Context(), key, data, time.Minute).Err(); err != nil {
				t.Fatal(err)
			}
		}
		do := func(args ...any) {
			if err := admin.Do(t.Context(), args...).Err(); err != nil {
				t.Fatal(err)
			}
		}
		hostile := map[string]func(key string){
			"a list":           func(key string) { do("RPUSH", key, "x") },
			"a hash":           func(key string) { do("HSET", key, "o", "x", "f", "nonsense", "wnobody", "1") },
			"a stream":         func(key string) { do("XADD", key, "*", "a", "b") },
			"garbage":          func(key string) { put(key, []byte("garbage")) },
			"the magic bytes":  func(key string) { put(key, []byte("fo")) },
			"random bytes":     func(key string) { put(key, randomBytes(5000)) },
			"100 KB":           func(key string) { put(key, randomBytes(100_000)) },
			"a rueidis marker": func(key string) { put(key, []byte("rueidisid:1")) },
		}
		for name, place := range hostile {
			for _, kind := range []string{"v", "m"} {
				t.Log(name, kind)
				l, other := testkit.NewLoader(t, r, testkit.ShortLease(r)), testkit.NewLoader(t, r, testkit.ShortLease(r))
				key := "test:" + kind + ":{k}"
				place(key)
				o := testkit.NewOrigin(t)
				here, there := testkit.Get(t, t.Context(), l, "k", o), testkit.Get(t, t.Context(), other, "k", o)
				c := o.Next()
				c.Returns("v")
				here.Want("v")
				there.Want("v")
				o.Want(1)
				testkit.WantKept(t, l, "v")
				if err := l.Delete(t.Context(), "k"); err != nil {
					t.Error(err)
				}
				testkit.WantNoKeyForEver(t, r)
				admin.Del(t.Context(), "test:v:{k}", "test:m:{k}")
			}
		}
	})
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.N(256))
	}
	return b
}

// A stored value with any damaged byte is a miss. So is the value of another key or codec.
func TestDamagedValueIsAMiss(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, admin := testkit.NewLoader(t, r), r.Client()
		if err := l.Set(t.Context(), "k", "value"); err != nil {
			t.Fatal(err)
		}
		good, err := admin.Get(t.Context(), "test:v:{k}").Bytes()
		if err != nil {
			t.Fatal(err)
		}
		bad := [][]byte{good[:len(good)-1], append(slices.Clone(good), 0), good[:10]}
		for i := range good {
			if i >= 16 && i < 32 {
				continue // the stamp, which the server writes; the checksum does not cover it
			}
			b := slices.Clone(good)
			b[i] ^= 0x40
			bad = append(bad, b)
		}
		for _, b := range bad {
			admin.Set(t.Context(), "test:v:{k}", b, time.Minute)
			if _, err := l.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
				t.Errorf("Peek of %q: %v", b, err)
			}
			got, err := l.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "fetched", nil })
			if got != "fetched" || err != nil {
				t.Errorf("Get with %q stored = %q, %v", b, got, err)
			}
			testkit.WantKept(t, l, "fetched")
		}
		admin.Set(t.Context(), "test:v:{another}", good, time.Minute)
		if _, err := l.Peek(t.Context(), "another"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek of another key's value: %v", err)
		}
		other := testkit.NewLoader(t, r, func(opt *options) { opt.Codec = fetchonce.JSON })
		if err := l.Set(t.Context(), "k", "value"); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek with another codec: %v", err)
		}
	})
}

// Two processes look up the same unusable value. One replaces it, and the other uses the new one.
func TestUnusableValueIsFetchedOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		r.Client().Set(t.Context(), "test:v:{k}", "garbage", time.Minute)
		slow := r.Client()
		gate := testkit.NewGate(slow)
		gate.Shut()
		second := testkit.Get(t, t.Context(), testkit.LoaderOf(t, slow), "k", o)
		<-gate.Stopped
		first := testkit.Get(t, t.Context(), testkit.NewLoader(t, r), "k", o)
		o.Next().Returns("v")
		first.Want("v")
		gate.Open()
		second.Want("v")
		o.Want(1)
	})
}

// A msgpack value that declares four billion elements is refused before memory is allocated.
func TestHostileLengthIsAMiss(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		honest, err := fetchonce.New(rdb, fetchonce.Options[[]byte]{Prefix: "test", Codec: rawCodec{}})
		if err != nil {
			t.Fatal(err)
		}
		defer honest.Close()
		victim, err := fetchonce.New(rdb, fetchonce.Options[[]int]{Prefix: "test"})
		if err != nil {
			t.Fatal(err)
		}
		defer victim.Close()
		// A correct envelope around hostile bytes, except for the codec's number.
		if err := honest.Set(t.Context(), "k", []byte{0xdd, 0xff, 0xff, 0xff, 0xff}); err != nil {
			t.Fatal(err)
		}
		b, _ := rdb.Get(t.Context(), "test:v:{k}").Bytes()
		forge(b, 1)
		rdb.Set(t.Context(), "test:v:{k}", b, time.Minute)
		got, err := victim.Get(t.Context(), "k", func(context.Context, string) ([]int, error) { return []int{1}, nil })
		if len(got) != 1 || err != nil {
			t.Errorf("Get = %v, %v", got, err)
		}
	})
}

// A rawCodec stores a []byte as it is.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = slices.Clone(data); return nil }

// A codec that panics is treated like one that returns an error.
func TestPanicOfACodecIsAnError(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, err := fetchonce.New(r.Client(), options{Prefix: "test", Codec: panicCodec{}})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		got, err := l.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "v", nil })
		if got != "v" || err != nil {
			t.Errorf("Get = %q, %v; want what was fetched", got, err)
		}
		if e, ok := errors.AsType[*fetchonce.Error](l.Set(t.Context(), "k", "v")); !ok || e.Op != "encode" {
			t.Errorf("Set = %v, want an *Error", e)
		}
	})
}

type panicCodec struct{}

func (panicCodec) Marshal(any) ([]byte, error) { panic("marshal") }

func (panicCodec) Unmarshal(data []byte, v any) error { panic("unmarshal") }

// forge changes the codec of an envelope and corrects its checksum.
func forge(b []byte, codec byte) {
	b[3] = codec
	sum := crcUpdate(0, b[:4])
	sum = crcUpdate(sum, b[8:16])
	binary.BigEndian.PutUint32(b[4:], crcUpdate(sum, b[32:]))
}

// A value in an envelope of an unknown version is a miss and is replaced once.
func TestValueOfANewerVersionIsAMiss(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		l, other, admin := testkit.NewLoader(t, r), testkit.NewLoader(t, r), r.Client()
		if err := l.Set(t.Context(), "k", "value"); err != nil {
			t.Fatal(err)
		}
		b, err := admin.Get(t.Context(), "test:v:{k}").Bytes()
		if err != nil {
			t.Fatal(err)
		}
		b[2] += 0x10 // the version
		forge(b, b[3])
		admin.Set(t.Context(), "test:v:{k}", b, time.Minute)
		o := testkit.NewOrigin(t)
		here, there := testkit.Get(t, t.Context(), l, "k", o), testkit.Get(t, t.Context(), other, "k", o)
		o.Next().Returns("v")
		here.Want("v")
		there.Want("v")
		testkit.Get(t, t.Context(), l, "k", o).Want("v")
		o.Want(1)
	})
}

// crcUpdate continues the checksum of an envelope.
func crcUpdate(sum uint32, b []byte) uint32 {
	return crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), b)
}

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// plant stores payload as the value of a key, as a codec with this number would.
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
		most     = 32*maxBytes + 1<<20 + 8*maxBytes // and the reads, including the fake server's
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
				l, err := fetchonce.New(r.Client(), fetchonce.Options[*[]*[512]float64]{Prefix: "test", Codec: test.codec, MaxBytes: maxBytes})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				var got *[]*[512]float64
				took := allocated(func() {
					got, err = l.Get(t.Context(), "k", func(context.Context, string) (*[]*[512]float64, error) { return nil, nil })
				})
				if err != nil || got != nil {
					t.Errorf("Get = %v, %v; want nil, which was fetched", got, err)
				}
				if took > most {
					t.Errorf("Get of %d hostile bytes allocated %d; want at most %d", len(test.payload), took, most)
				}
			})
		})
	}
}

// A value that the memory limit would refuse on reading is not stored. Set returns the reason.
func TestValueBeyondTheMemoryLimitIsNotStored(t *testing.T) {
	for name, codec := range map[string]fetchonce.Codec{"msgpack": fetchonce.Msgpack, "JSON": fetchonce.JSON} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r backend) {
				l, err := fetchonce.New(r.Client(), fetchonce.Options[*[]wide]{Prefix: "test", Codec: codec, MaxBytes: 64 << 10})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				large := new(make([]wide, 20_000)) // of 1 or 3 bytes each, and 256 in memory
				err = l.Set(t.Context(), "k", large)
				e, ok := errors.AsType[*fetchonce.Error](err)
				if !ok || e.Op != "encode" || !strings.Contains(err.Error(), "memory") {
					t.Errorf("Set = %v; want an *Error of encode that names memory", err)
				}
				fetches := 0
				for range 2 {
					got, err := l.Get(t.Context(), "k", func(context.Context, string) (*[]wide, error) { fetches++; return large, nil })
					if got != large || err != nil {
						t.Errorf("Get = %p, %v; want what was fetched", got, err)
					}
				}
				if fetches != 2 {
					t.Errorf("two Gets made %d fetches; want 2, as nothing is stored", fetches)
				}
				if err := l.Set(t.Context(), "k", new((*large)[:1000])); err != nil {
					t.Errorf("Set of fewer elements = %v; want nil", err)
				}
				if got, err := l.Peek(t.Context(), "k"); err != nil || len(*got.Value) != 1000 {
					t.Errorf("Peek = %v, %v; want 1000 elements", got, err)
				}
			})
		})
	}
}
