package fetchonce_test

import (
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
		t.Errorf("with a codec of the user's own: New = %v, log %q; want neither", err, log)
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
			t.Errorf("of a type that is kept whole: New = %v, log %q; want neither", err, log)
		}
	}
}
