package fetchonce_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// A pair is encoded as two msgpack values, one after the other.
type pair struct{ A, B string }

func (p pair) EncodeMsgpack(enc *msgpack.Encoder) error  { return enc.EncodeMulti(p.A, p.B) }
func (p *pair) DecodeMsgpack(dec *msgpack.Decoder) error { return dec.DecodeMulti(&p.A, &p.B) }

// A half is encoded as two msgpack values and decodes only the first.
type half struct{ A, B string }

func (h half) EncodeMsgpack(enc *msgpack.Encoder) error  { return enc.EncodeMulti(h.A, h.B) }
func (h *half) DecodeMsgpack(dec *msgpack.Decoder) error { return dec.DecodeMulti(&h.A) }

// A oneWay can be encoded but not decoded.
type oneWay struct{ A string }

func (oneWay) MarshalText() ([]byte, error) { return []byte("text"), nil }
func (oneWay) MarshalJSON() ([]byte, error) { return []byte(`"text"`), nil }

// A tree is nested as deep as its height.
type tree struct {
	Name  string
	Under []tree
}

func treeOf(height int) tree {
	t := tree{Name: "leaf"}
	for range height - 1 {
		t = tree{Name: "branch", Under: []tree{t}}
	}
	return t
}

type interned struct {
	A string `msgpack:",intern"`
	B string `msgpack:",intern"`
}

type described struct{ By fmt.Stringer }

// A refusingCodec encodes and refuses to decode.
type refusingCodec struct{}

func (refusingCodec) Marshal(any) ([]byte, error) { return []byte("secret"), nil }
func (refusingCodec) Unmarshal([]byte, any) error { return errors.New("no") }

// A value that cannot be decoded is not stored. Set returns the reason. A Get returns the fetched
// value, and the Trace and the log give the reason.
func TestValuesThatAreEncodedCanBeDecoded(t *testing.T) {
	const fits = ""
	t.Run("two values in sequence", func(t *testing.T) { writeAndRead(t, nil, &pair{"a", "b"}, fits) })
	t.Run("two values in sequence, nested", func(t *testing.T) { writeAndRead(t, nil, &[]pair{{"a", "b"}, {"c", "d"}}, fits) })
	t.Run("two values, one is decoded", func(t *testing.T) { writeAndRead(t, nil, &half{"a", "b"}, "goes on after the value") })
	t.Run("40 levels", func(t *testing.T) { writeAndRead(t, nil, new(treeOf(40)), fits) })
	t.Run("400 levels", func(t *testing.T) { writeAndRead(t, nil, new(treeOf(400)), fits) })
	t.Run("4000 levels", func(t *testing.T) { writeAndRead(t, nil, new(treeOf(4000)), "nested deeper") })
	t.Run("interned strings", func(t *testing.T) { writeAndRead(t, nil, &interned{"long enough", "long enough"}, "interned") })
	t.Run("interned strings that differ", func(t *testing.T) { writeAndRead(t, nil, &interned{"long enough", "another"}, fits) })
	t.Run("interface", func(t *testing.T) { writeAndRead(t, nil, &described{By: time.Second}, "codec") })
	t.Run("interface, nil", func(t *testing.T) { writeAndRead(t, nil, &described{}, fits) })
	t.Run("map of numbers as any", func(t *testing.T) { writeAndRead(t, nil, &map[string]any{"m": map[int]int{1: 2}}, "codec") })
	t.Run("any", func(t *testing.T) { writeAndRead(t, nil, &map[string]any{"m": []string{"a"}}, fits) })
	t.Run("one way", func(t *testing.T) { writeAndRead(t, nil, &oneWay{"a"}, "codec") })
	t.Run("JSON", func(t *testing.T) { writeAndRead(t, fetchonce.JSON, new(treeOf(40)), fits) })
	t.Run("JSON, interface", func(t *testing.T) { writeAndRead(t, fetchonce.JSON, &described{By: time.Second}, "codec") })
	t.Run("JSON, one way", func(t *testing.T) { writeAndRead(t, fetchonce.JSON, &oneWay{"a"}, "codec") })
	t.Run("JSON, 6000 levels", func(t *testing.T) { writeAndRead(t, fetchonce.JSON, new(treeOf(6000)), "depth") })
	t.Run("the user's own codec", func(t *testing.T) { writeAndRead(t, refusingCodec{}, new("v"), "codec") })
}

// writeAndRead sets, peeks and gets v. why is part of the reason why v cannot be stored; it is
// empty if v can be stored. All values are pointers, so the compiler generates the code once.
func writeAndRead[T any](t *testing.T, codec fetchonce.Codec, v *T, why string) {
	t.Helper()
	inBubble(t, func(t *testing.T, r backend) {
		var (
			stored []fetchonce.TraceStore
			log    strings.Builder
		)
		l, err := fetchonce.New(r.Client(), fetchonce.Options[*T]{
			Prefix: "test", Codec: codec, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Trace: &fetchonce.Trace{Stored: func(_ context.Context, s fetchonce.TraceStore) { stored = append(stored, s) }},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		setErr := l.Set(t.Context(), "k", v)
		_, peekErr := l.Peek(t.Context(), "k")
		e, isError := errors.AsType[*fetchonce.Error](setErr)
		switch {
		case why == "" && (setErr != nil || peekErr != nil):
			t.Errorf("Set = %v, Peek = %v; want nil, nil", setErr, peekErr)
		case why != "" && (!isError || e.Op != "encode" || !strings.Contains(setErr.Error(), why)):
			t.Errorf("Set = %v; want an *Error of encode that says %q", setErr, why)
		}
		fetches := 0
		for range 2 {
			_, err = l.Get(t.Context(), "other", func(context.Context, string) (*T, error) { fetches++; return v, nil })
			if err != nil {
				t.Errorf("Get = %v; want nil", err)
			}
		}
		switch {
		case why == "" && fetches != 1:
			t.Errorf("two Gets made %d fetches; want 1", fetches)
		case why != "" && (len(stored) != 2 || stored[0].Err == nil || !strings.Contains(log.String(), "fetched value not stored")):
			t.Errorf("Trace.Stored = %+v, log %q; want both to say why it is not stored", stored, log.String())
		case why != "" && strings.Contains(log.String(), "secret"):
			t.Errorf("log %q quotes the value", log.String())
		}
	})
}

// copyValue copies a value to another key and gives it an envelope for that key, as an attacker
// with write access to Redis could. It returns the payload.
func copyValue(t *testing.T, r backend, from, to string) []byte {
	t.Helper()
	b, err := r.Client().Get(t.Context(), "test:v:{"+from+"}").Bytes()
	if err != nil {
		t.Fatal(err)
	}
	h, err := envelope.Open(b, envelope.Digest(envelope.Seed("1"), "test:v:{"+from+"}"))
	if err != nil {
		t.Fatal(err)
	}
	h.Digest = envelope.Digest(envelope.Seed("1"), "test:v:{"+to+"}")
	if err := r.Client().Set(t.Context(), "test:v:{"+to+"}", envelope.Seal(h.Header, h.Payload), time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	return h.Payload
}

// A value that is encrypted for one key is a miss at another key. Its own key still has it.
func TestEncryptedValueIsBoundToItsKey(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		codec, err := newSealedCodec(bytes.Repeat([]byte{7}, 32), "test")
		if err != nil {
			t.Fatal(err)
		}
		l := newLoader(t, r, func(opt *options) { opt.Codec, opt.Schema = codec, "1" })
		testkit.Set(t, l, "alice", "of alice")
		if payload := copyValue(t, r, "alice", "mallory"); bytes.Contains(payload, []byte("of alice")) {
			t.Errorf("the payload is %q; want it encrypted", payload)
		}
		if got, err := l.Peek(t.Context(), "alice"); got.Value != "of alice" || err != nil {
			t.Errorf("Peek = %+v, %v; want the value of alice", got, err)
		}
		if got, err := l.Peek(t.Context(), "mallory"); got.Value != "" || err == nil {
			t.Errorf("Peek of a copied value = %+v, %v; want ErrNotFound", got, err)
		}
		b := &bulk{}
		got, err := l.GetMany(t.Context(), []string{"alice", "mallory"}, b.fetch)
		if _, fetched := b.counts(); err != nil || got["alice"] != "of alice" || fetched["mallory"] != 1 || fetched["alice"] != 0 {
			t.Errorf("GetMany = %v, %v; fetched %v; want mallory to be fetched alone", got, err, fetched)
		}
		again := newLoader(t, r, func(opt *options) { opt.Codec, opt.Schema = codec, "1" })
		o := testkit.NewOrigin(t)
		testkit.Get(t, t.Context(), again, "mallory", o).Want(got["mallory"])
	})
}

// A codec that receives no key decodes a copied value at the other key.
func TestCodecWithoutKeysDecodesACopiedValue(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, func(opt *options) { opt.Codec, opt.Schema = fetchonce.JSON, "1" })
		testkit.Set(t, l, "alice", "of alice")
		copyValue(t, r, "alice", "mallory")
		if got, err := l.Peek(t.Context(), "mallory"); got.Value != "of alice" || err != nil {
			t.Errorf("Peek of a copied value = %+v, %v; want the value of alice", got, err)
		}
	})
}

func TestCodecsRefuseHostileData(t *testing.T) {
	for name, data := range map[string]string{
		"a length of four billion": "\xdd\xff\xff\xff\xff",
		"a string of two billion":  "\xc6\x7f\xff\xff\xff",
		"a million arrays":         strings.Repeat("\x91", 1_000_000),
		"nothing":                  "",
		"more than one value":      "\x01\x02",
	} {
		var v any
		if err := fetchonce.Msgpack.Unmarshal([]byte(data), &v); err == nil {
			t.Errorf("Msgpack read %s as %v", name, v)
		}
	}
	var v any
	if err := fetchonce.JSON.Unmarshal([]byte(strings.Repeat("[", 100_000)), &v); err == nil {
		t.Error("JSON read a hundred thousand brackets")
	}
}

func TestCodecsRoundTrip(t *testing.T) {
	type value struct {
		Name  string
		Parts []int
		More  map[string]*value
		At    time.Time
	}
	want := value{Name: "a", Parts: []int{1, 2}, More: map[string]*value{"b": {Name: "b"}}, At: time.Unix(1, 5).UTC()}
	for name, codec := range map[string]fetchonce.Codec{"Msgpack": fetchonce.Msgpack, "JSON": fetchonce.JSON} {
		data, err := codec.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got value
		if err := codec.Unmarshal(data, &got); err != nil || got.Name != "a" || got.More["b"].Name != "b" || len(got.Parts) != 2 || !got.At.Equal(want.At) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
