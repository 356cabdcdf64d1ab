package fetchonce_test

import (
	"bytes"
	"encoding/gob"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncetest"
)

type (
	shop  struct{ Orders map[string]*order }
	order struct {
		Items []struct{ Done chan struct{} }
		note  string
	}
	noField struct{ a int }
	lossy   struct {
		A    int
		b    int
		More map[string]any
	}
)

// newOf returns the error of New for values of one type, and the log.
func newOf[V any](t *testing.T, codec fetchonce.Codec) (log string, err error) {
	t.Helper()
	var text strings.Builder
	l, err := fetchonce.New(oncetest.Redis(t), fetchonce.Options[V]{Prefix: "test", Codec: codec, Logger: slog.New(slog.NewTextHandler(&text, nil))})
	if err == nil {
		t.Cleanup(func() { _ = l.Close() })
	}
	return text.String(), err
}

func TestNewRefusesWhatTheCodecCannotEncode(t *testing.T) {
	_, _ = order{}.note, noField{}.a
	for _, codec := range []fetchonce.Codec{nil, fetchonce.Msgpack, fetchonce.JSON} {
		_, nested := newOf[*shop](t, codec)
		_, pointer := newOf[*noField](t, codec)
		_, channel := newOf[*chan int](t, codec)
		for err, want := range map[error]string{
			nested:  "cannot keep the values: shop.Orders[].Items[].Done: chan struct {} cannot be encoded",
			pointer: "cannot keep the values: noField: fetchonce_test.noField has no exported field",
			channel: "cannot keep the values: V: chan int cannot be encoded",
		} {
			own, ok := errors.AsType[*fetchonce.Error](err)
			if !ok || own.Op != "new" || !strings.Contains(err.Error(), want) {
				t.Errorf("New = %v, want an *Error with %q", err, want)
			}
		}
	}
	if log, err := newOf[*shop](t, refusingCodec{}); err != nil || log != "" {
		t.Errorf("with the user's own codec: New = %v, log %q; want neither", err, log)
	}
}

func TestNewLogsWhatTheCodecLoses(t *testing.T) {
	_ = lossy{}.b
	for _, codec := range []fetchonce.Codec{fetchonce.Msgpack, fetchonce.JSON} {
		log, err := newOf[*lossy](t, codec)
		if err != nil || strings.Count(log, "level=WARN") != 1 {
			t.Errorf("New = %v, log %q; want one line", err, log)
		}
		for _, want := range []string{"prefix=test", "type=*fetchonce_test.lossy", "lossy.b: unexported", "lossy.More[]: an interface"} {
			if !strings.Contains(log, want) {
				t.Errorf("the log %q has no %q", log, want)
			}
		}
		if log, err := newOf[*map[string]string](t, codec); err != nil || log != "" {
			t.Errorf("of a type that loses nothing: New = %v, log %q; want neither", err, log)
		}
	}
}

type (
	itemV1      struct{ Name, Colour string }
	itemRenamed struct{ Colour, Name string } // the same form as itemV1
	itemV2      struct{ Name, Color string }  // another form
	itemV3      struct {
		Name   string
		Colour []string
	}
)

// builds stores a value of type A, and returns what a Loader of type B finds.
func builds[A, B any](t *testing.T, a fetchonce.Options[A], v A, b fetchonce.Options[B]) (found B, err error) {
	t.Helper()
	rdb := oncetest.Redis(t)
	a.Prefix, b.Prefix = "items", "items"
	before, err := fetchonce.New(rdb, a)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	after, err := fetchonce.New(rdb, b)
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if err := before.Set(t.Context(), "k", v); err != nil {
		t.Fatal(err)
	}
	r, err := after.Peek(t.Context(), "k")
	return r.Value, err
}

// Without a Schema, builds whose types have different forms do not read each other's values.
func TestDefaultSchemaIsTheFormOfTheType(t *testing.T) {
	v := itemV1{"teapot", "red"}
	for _, codec := range []fetchonce.Codec{fetchonce.Msgpack, fetchonce.JSON, gobCodec{}} {
		v1 := fetchonce.Options[itemV1]{Codec: codec}
		if got, err := builds(t, v1, v, fetchonce.Options[itemV1]{Codec: codec}); err != nil || got != v {
			t.Errorf("%T: the same build found %+v, %v; want %+v", codec, got, err, v)
		}
		if got, err := builds(t, v1, v, fetchonce.Options[itemV2]{Codec: codec}); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("%T: a build with another field found %+v, %v; want ErrNotFound", codec, got, err)
		}
		if got, err := builds(t, v1, v, fetchonce.Options[itemV3]{Codec: codec}); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("%T: a build with a field of another type found %+v, %v; want ErrNotFound", codec, got, err)
		}
		v1.Schema = "1"
		if got, err := builds(t, v1, v, fetchonce.Options[itemV2]{Codec: codec, Schema: "1"}); err != nil || got.Name != v.Name {
			t.Errorf("%T: with the same Schema, another build found %+v, %v; want the fields that it knows", codec, got, err)
		}
	}
	if got, err := builds(t, fetchonce.Options[itemV1]{}, v, fetchonce.Options[itemRenamed]{}); err != nil || got != (itemRenamed{v.Colour, v.Name}) {
		t.Errorf("a build with the fields in another order found %+v, %v; want them", got, err)
	}
	if got, err := builds(t, fetchonce.Options[itemV1]{}, v, fetchonce.Options[itemV1]{Codec: fetchonce.JSON}); !errors.Is(err, fetchonce.ErrNotFound) {
		t.Errorf("a build with another codec found %+v, %v; want ErrNotFound", got, err)
	}
}

// A gobCodec is a user's own codec.
type gobCodec struct{}

func (gobCodec) Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(v)
	return b.Bytes(), err
}

func (gobCodec) Unmarshal(data []byte, v any) error {
	return gob.NewDecoder(bytes.NewReader(data)).Decode(v)
}
