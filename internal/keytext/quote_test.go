package keytext_test

import (
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/internal/keytext"
)

func TestQuoteIsBounded(t *testing.T) {
	for _, test := range []struct{ key, want string }{
		{"", `""`},
		{"user:\n", `"user:\n"`},
		{strings.Repeat("a", 200), `"` + strings.Repeat("a", 200) + `"`},
		{strings.Repeat("a", 201), `"` + strings.Repeat("a", 200) + `"... (201 bytes)`},
		{strings.Repeat("é", 101), `"` + strings.Repeat("é", 100) + `"... (202 bytes)`},
		{"a" + strings.Repeat("é", 100), `"a` + strings.Repeat("é", 99) + `"... (201 bytes)`},
		{strings.Repeat("\x80", 300), `"` + strings.Repeat(`\x80`, 196) + `"... (300 bytes)`},
	} {
		if got := keytext.Quote(test.key); got != test.want {
			t.Errorf("Quote of %d bytes = %s, want %s", len(test.key), got, test.want)
		}
	}
	if n := len(keytext.Quote(strings.Repeat("\x00", 1<<20))); n > 1000 {
		t.Errorf("the text of a key of 1 MiB has %d bytes", n)
	}
}
