package envelope_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

var seed = envelope.Seed("schema")

var header = envelope.Header{
	Kind: envelope.Value, Codec: 1, Cost: 250 * time.Millisecond, Created: 1_795_000_000_123, Fence: 1_795_000_000_123_456,
	Fresh: 5 * time.Minute, Keep: 6 * time.Minute, Digest: envelope.Digest(seed, "things:v:{london}"),
}

func TestOpenReturnsWhatWasSealed(t *testing.T) {
	for _, payload := range [][]byte{nil, {0}, []byte("hello"), bytes.Repeat([]byte{0xff}, 100_000)} {
		got, err := envelope.Open(envelope.Seal(header, payload), header.Digest)
		if err != nil || got.Header != header || !bytes.Equal(got.Payload, payload) {
			t.Errorf("Open(Seal(%d bytes)) = %+v, %d bytes, %v; want %+v", len(payload), got.Header, len(got.Payload), err, header)
		}
	}
}

// The scripts write the stamp of a sealed value and leave its checksum.
func TestStampMayBeWrittenAfterSeal(t *testing.T) {
	b := envelope.Seal(header, []byte("hello"))
	binary.BigEndian.PutUint64(b[envelope.StampStart:], 42)
	binary.BigEndian.PutUint64(b[envelope.FenceStart:], 43)
	h, err := envelope.Open(b, header.Digest)
	if err != nil || h.Created != 42 || h.Fence != 43 {
		t.Errorf("stamped value: created %d, fence %d, %v; want 42, 43, nil", h.Created, h.Fence, err)
	}
}

func TestAnyDamageIsDetected(t *testing.T) {
	whole := envelope.Seal(header, []byte("hello"))
	for i := range whole {
		if i >= envelope.StampStart && i < envelope.StampEnd {
			continue
		}
		for bit := range 8 {
			b := bytes.Clone(whole)
			b[i] ^= 1 << bit
			if _, err := envelope.Open(b, header.Digest); err == nil {
				t.Errorf("Open accepts a value with bit %d of byte %d flipped", bit, i)
			}
		}
	}
	for n := range whole {
		if _, err := envelope.Open(whole[:n], header.Digest); err == nil {
			t.Errorf("Open accepts a value cut to %d bytes", n)
		}
	}
	if _, err := envelope.Open(append(bytes.Clone(whole), 0), header.Digest); !errors.Is(err, envelope.ErrTruncated) {
		t.Errorf("a byte too many: %v, want %v", err, envelope.ErrTruncated)
	}
}

func TestOpenSaysWhyAValueIsUnusable(t *testing.T) {
	whole := envelope.Seal(header, []byte("hello"))
	newer := bytes.Clone(whole)
	newer[2] = 2<<4 | 1
	for _, c := range []struct {
		name  string
		bytes []byte
		want  error
	}{
		{"nothing", nil, envelope.ErrForeign},
		{"another program's", []byte("rueidisid:abc"), envelope.ErrForeign},
		{"a newer version", newer, envelope.ErrVersion},
		{"a short header", whole[:20], envelope.ErrTruncated},
	} {
		if _, err := envelope.Open(c.bytes, header.Digest); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := envelope.Open(whole, envelope.Digest(seed, "things:v:{paris}")); !errors.Is(err, envelope.ErrDigest) {
		t.Errorf("read for another key: %v, want %v", err, envelope.ErrDigest)
	}
}

func TestSchemasHaveDifferentDigestsForAKey(t *testing.T) {
	for _, key := range []string{"", "things:v:{london}"} {
		have := make(map[uint64]string)
		for _, schema := range []string{"", "1", "2", "things", "things:v:{london}"} {
			d := envelope.Digest(envelope.Seed(schema), key)
			if other, ok := have[d]; ok {
				t.Errorf("the schemas %q and %q have the digest %x for the key %q", schema, other, d, key)
			}
			have[d] = schema
		}
	}
}

func TestReadFrameFindsTheEndOfAnEnvelope(t *testing.T) {
	whole := envelope.Seal(header, []byte("hello"))
	want := envelope.Frame{Size: int64(len(whole)), Digest: header.Digest}
	for _, b := range [][]byte{whole, whole[:envelope.Size], append(bytes.Clone(whole), "the next one"...)} {
		if f, ok := envelope.ReadFrame(b); f != want || !ok {
			t.Errorf("ReadFrame of %d bytes = %+v, %v; want %+v, true", len(b), f, ok, want)
		}
	}
	newer := bytes.Clone(whole)
	newer[2] += 0x10
	for _, b := range [][]byte{nil, whole[:envelope.Size-1], newer, []byte(strings.Repeat("another program's", 10))} {
		if f, ok := envelope.ReadFrame(b); ok {
			t.Errorf("ReadFrame of %q = %+v, true; want false", b, f)
		}
	}
}

// The first four bytes of version 1 never change.
func TestHeaderOfVersion1(t *testing.T) {
	const golden = "fo\x11\x01"
	if got := envelope.Seal(header, nil)[:4]; string(got) != golden {
		t.Errorf("header begins %q, want %q", got, golden)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(envelope.Seal(header, []byte("hello")))
	f.Add([]byte("fo"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := envelope.Open(b, header.Digest)
		if err != nil {
			return
		}
		if again := envelope.Seal(h.Header, h.Payload); !bytes.Equal(again, b) && h.Fresh < 1<<61 && h.Keep < 1<<61 {
			t.Errorf("opened and sealed again: %x, want %x", again, b)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	env := envelope.Seal(header, bytes.Repeat([]byte("x"), 200))
	for b.Loop() {
		if _, err := envelope.Open(env, header.Digest); err != nil {
			b.Fatal(err)
		}
	}
}
