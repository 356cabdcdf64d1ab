package fetchonce_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce"
)

func TestErrorQuotesABoundedPrefixOfItsKey(t *testing.T) {
	key := strings.Repeat("\x00", 1<<20)
	own := &fetchonce.Error{Op: "read", Key: key, Err: errors.New("i/o timeout")}
	many := &fetchonce.ManyError{Errors: map[string]error{key: own, key + "a": own, key + "b": own, key + "c": own}}
	for _, err := range []error{own, many} {
		text := err.Error()
		if len(text) > 8000 || !strings.Contains(text, "(1048576 bytes)") || !strings.Contains(text, "i/o timeout") {
			t.Errorf("%T has a text of %d bytes: %.100q...%q", err, len(text), text, text[max(0, len(text)-100):])
		}
	}
	if own.Key != key {
		t.Error("Error.Key is cut")
	}
	if got, want := (&fetchonce.Error{Op: "read", Key: "a\n", Err: errors.New("x")}).Error(), `fetchonce: read "a\n": x`; got != want {
		t.Errorf("the text is %s, want %s", got, want)
	}
}
