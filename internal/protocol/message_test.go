package protocol_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// Processes of different builds notify each other, so the layout must not change.
func TestLayoutOfAMessage(t *testing.T) {
	got := string(protocol.MessageHead(protocol.KindValue, 0x0102030405060708, "p:v:{k}")) + "body"
	if want := "V\x01\x02\x03\x04\x05\x06\x07\x08\x07p:v:{k}body"; got != want {
		t.Errorf("message = %q, want %q", got, want)
	}
}

func TestMessageIsParsed(t *testing.T) {
	for _, kind := range []protocol.Kind{
		protocol.KindValue, protocol.KindFailure, protocol.KindRetry, protocol.KindLost, protocol.KindProbe,
	} {
		for _, name := range []string{"", "p:v:{k}", strings.Repeat("n", 127), strings.Repeat("n", 128), strings.Repeat("\xff", 1<<16)} {
			for _, body := range []string{"", "b", "\x00\xff", strings.Repeat("b", 1<<16)} {
				for _, fence := range []int64{0, 1, 1_795_000_000_000_000, protocol.AnyFence} {
					m, err := protocol.ParseMessage(string(protocol.MessageHead(kind, fence, name)) + body)
					if err != nil || m.Kind != kind || m.Fence != fence || m.Name != name || m.Body != body {
						t.Fatalf("%c %d, name of %d bytes, body of %d came as %c %d %d %d, %v",
							kind, fence, len(name), len(body), m.Kind, m.Fence, len(m.Name), len(m.Body), err)
					}
				}
			}
		}
	}
	if m, err := protocol.ParseMessage(string(protocol.Probe())); err != nil || m.Kind != protocol.KindProbe {
		t.Errorf("a probe came as %+v, %v", m, err)
	}
}

func TestGarbageIsNoMessage(t *testing.T) {
	whole := string(protocol.MessageHead(protocol.KindValue, 7, "p:v:{k}"))
	garbage := []string{
		"hello", "hello, world", strings.Repeat("\xff", 100), strings.Repeat("\x00", 100),
		"v" + whole[1:], "\x00" + whole[1:], // of no kind
		whole[:9] + "\x80", whole[:9] + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", // no length
		whole[:9] + "\xff\xff\xff\xff\x0f" + whole[10:], // longer than there is
	}
	for n := range whole {
		garbage = append(garbage, whole[:n])
	}
	for _, s := range garbage {
		if m, err := protocol.ParseMessage(s); err == nil {
			t.Errorf("%q came as %+v", s, m)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add("")
	f.Add("V")
	f.Add(string(protocol.Probe()))
	f.Add(string(protocol.MessageHead(protocol.KindValue, 7, "p:v:{k}")) + "body")
	f.Add(string(protocol.MessageHead(protocol.KindLost, -1, strings.Repeat("n", 300))) + "owner")
	f.Add("V\x00\x00\x00\x00\x00\x00\x00\x07\xff\xff\xff\xff\x7f")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := protocol.ParseMessage(s)
		if err != nil {
			return
		}
		if len(m.Name)+len(m.Body) > len(s)-10 {
			t.Errorf("a message of %d bytes has a name of %d and a body of %d", len(s), len(m.Name), len(m.Body))
		}
		again, err := protocol.ParseMessage(string(protocol.MessageHead(m.Kind, m.Fence, m.Name)) + m.Body)
		if err != nil || again.Kind != m.Kind || again.Fence != m.Fence || again.Name != m.Name || again.Body != m.Body {
			t.Errorf("%+v, said again, came as %+v, %v", m, again, err)
		}
	})
}

func TestFailureIsParsed(t *testing.T) {
	for _, f := range []protocol.Failure{
		{Class: protocol.FailedFetch, Text: "connection refused"},
		{Class: protocol.FailedPanic, Text: "boom"},
		{Class: protocol.FetchTimeout},
		{Class: protocol.FailedFetch, Text: "Zürich is closed"},
		{Class: protocol.FailedFetch, Text: "gone", Sentinels: protocol.Sentinel("gone")},
		{Class: protocol.FailedFetch, Text: "gone", Sentinels: protocol.Sentinel("\xff") + protocol.Sentinel("")},
	} {
		if got := protocol.ParseFailure(f.Encode()); got != f {
			t.Errorf("%+v came as %+v", f, got)
		}
	}
}

func TestLongFailureIsCutBetweenRunes(t *testing.T) {
	long := protocol.Failure{Class: protocol.FailedFetch, Text: "x" + strings.Repeat("ü", protocol.LongestFailure)}
	got := protocol.ParseFailure(long.Encode())
	if len(got.Text) > protocol.LongestFailure || len(got.Text) < protocol.LongestFailure-3 {
		t.Errorf("a text of %d bytes came as one of %d, want about %d", len(long.Text), len(got.Text), protocol.LongestFailure)
	}
	if !strings.HasPrefix(long.Text, got.Text) {
		t.Errorf("it ends in %q", got.Text[len(got.Text)-4:])
	}
	exact := protocol.Failure{Class: protocol.FailedFetch, Text: strings.Repeat("x", protocol.LongestFailure)}
	if got := protocol.ParseFailure(exact.Encode()); got != exact {
		t.Errorf("a text of exactly %d bytes came as one of %d", len(exact.Text), len(got.Text))
	}
	exact.Sentinels = strings.Repeat(protocol.Sentinel("gone"), 100)
	if encoded := exact.Encode(); len(encoded) != protocol.LongestFailure+1 || !protocol.ParseFailure(encoded).Is(protocol.Sentinel("gone")) {
		t.Errorf("a long failure with sentinels has %d bytes, want %d", len(encoded), protocol.LongestFailure+1)
	}
	// The bytes may be no UTF-8.
	noise := protocol.Failure{Class: protocol.FailedFetch, Text: strings.Repeat("\x80", 2*protocol.LongestFailure)}
	if got := protocol.ParseFailure(noise.Encode()); !utf8.ValidString(got.Text) {
		t.Errorf("bytes that are no text came as %q", got.Text)
	}
}

func TestAnyTextParsesAsAFailure(t *testing.T) {
	for s, want := range map[string]protocol.Failure{
		"":         {Class: protocol.FailedFetch, Text: "unknown failure"},
		"e":        {Class: protocol.FailedFetch},
		"zgone":    {Class: protocol.FailedFetch, Text: "gone"}, // of a class that a newer build knows
		"p\xffbad": {Class: protocol.FailedPanic, Text: "\uFFFDbad"},
		"i":        {Class: protocol.FailedFetch},
		"i\x00no":  {Class: protocol.FailedFetch, Text: `\x00no`},
		"i\x02no":  {Class: protocol.FailedFetch, Text: `\x02no`}, // cut
	} {
		if got := protocol.ParseFailure(s); got != want {
			t.Errorf("ParseFailure(%q) = %+v, want %+v", s, got, want)
		}
	}
}

func TestFailureIsItsSentinelsOnly(t *testing.T) {
	f := protocol.ParseFailure(protocol.Failure{
		Class: protocol.FailedFetch, Text: "no", Sentinels: protocol.Sentinel("gone") + protocol.Sentinel("rate limited"),
	}.Encode())
	for text, want := range map[string]bool{"gone": true, "rate limited": true, "no": false, "": false} {
		if got := f.Is(protocol.Sentinel(text)); got != want {
			t.Errorf("the failure is %q: %t, want %t", text, got, want)
		}
	}
	if got, want := fmt.Sprintf("%x", protocol.Sentinel("gone")), "9ce8fb720ea0b8ce"; got != want {
		t.Errorf("the sign of \"gone\" is %s, want %s in each build", got, want)
	}
}

func FuzzParseFailure(f *testing.F) {
	f.Add("")
	f.Add("eno such host")
	f.Add("t")
	f.Add("\xff\xff")
	f.Add("i\x01\xffsentinelgone")
	f.Add("p" + strings.Repeat("ü", 600))
	f.Fuzz(func(t *testing.T, s string) {
		got := protocol.ParseFailure(s)
		switch got.Class {
		case protocol.FailedFetch, protocol.FailedPanic, protocol.FetchTimeout:
		default:
			t.Errorf("class %q of %q", got.Class, s)
		}
		if !utf8.ValidString(got.Text) || len(got.Text) > protocol.LongestFailure || strings.ContainsFunc(got.Text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("text %q of %q", got.Text, s)
		}
		if again := protocol.ParseFailure(got.Encode()); again != got {
			t.Errorf("%+v, said again, came as %+v", got, again)
		}
	})
}

// A proxy, or another program's command, may answer in the place of a script.
func TestAnswersOfAnyShape(t *testing.T) {
	secret := "a secret value"
	shapes := []any{
		nil, secret, int64(7), true, 1.5, errors.New(secret),
		[]any{},
		[]any{nil},
		[]any{int64(1)},
		[]any{secret},
		[]any{[]any{secret}},
		[]any{"value"},
		[]any{"value", nil},
		[]any{"value", int64(1)},
		[]any{"value", []any{secret}},
		[]any{"leased"},
		[]any{"leased", "1"},
		[]any{"leased", "x", "1"},
		[]any{"leased", "1", "x"},
		[]any{"leased", int64(1), "1"},
		[]any{"leased", "99999999999999999999", "1"},
		[]any{"leased", nil, nil},
		[]any{"wait"},
		[]any{"wait", "1"},
		[]any{"wait", "1", "2", "3"},
		[]any{"wait", "x", int64(1), "1"},
		[]any{"wait", "1", nil, "1"},
		[]any{"wait", "1", int64(1), "x"},
		[]any{"failed"},
		[]any{"failed", secret},
		[]any{"failed", nil, int64(1)},
		[]any{"failed", "e", "1"},
		map[any]any{"value": secret},
	}
	for _, shape := range shapes {
		if a, err := protocol.ParseAcquired(shape); err == nil {
			t.Errorf("%v was taken for an answer to Acquire: %+v", shape, a)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error contains the reply: %v", err)
		}
		if f, err := protocol.ParseFilled(shape); err == nil {
			t.Errorf("%v was taken for an answer to Fill: %+v", shape, f)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error contains the reply: %v", err)
		}
	}
	// A forged number does not become a negative time.
	for _, left := range []int64{-1 << 63, -1, 1<<63 - 1} {
		a, err := protocol.ParseAcquired([]any{"wait", "1", left, "1"})
		if err != nil || a.Left < 0 {
			t.Errorf("%d ms came as %v, %v", left, a.Left, err)
		}
	}
}

func TestMessageCountsByItsFence(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	fence := now.Add(-time.Second).UnixMicro()
	for _, c := range []struct {
		kind  protocol.Kind
		fence int64
		want  bool
	}{
		{protocol.KindFailure, fence, true},
		{protocol.KindFailure, fence - 1, false},
		{protocol.KindFailure, fence + 1, false},
		{protocol.KindFailure, 1 << 62, false},
		{protocol.KindFailure, protocol.AnyFence, false},
		{protocol.KindValue, fence - 1, false},
		{protocol.KindValue, fence, true},
		{protocol.KindValue, now.UnixMicro(), true}, // of a Set
		{protocol.KindValue, now.Add(time.Hour).UnixMicro(), false},
		{protocol.KindValue, 1 << 62, false},
		{protocol.KindRetry, protocol.AnyFence, true},
	} {
		m := protocol.Message{Kind: c.kind, Fence: c.fence}
		if got := m.Answers(fence, now); got != c.want {
			t.Errorf("a %c whose fence is %d higher: Answers = %v", c.kind, c.fence-fence, got)
		}
	}
}

func TestTextOfAFailureIsPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"a\nb":              `a\nb`,
		"\x1b[2J\r\x00\x7f": `\x1b[2J\r\x00\x7f`,
		"\u202eüb\u2028er":  `\u202eüb\u2028er`,
		`C:\temp "x"`:       `C:\temp "x"`,
	} {
		if got := protocol.ParseFailure("e" + text).Text; got != want {
			t.Errorf("%q came as %q, want %q", text, got, want)
		}
	}
	if got := protocol.ParseFailure("e" + strings.Repeat("\n", 100<<10)).Text; len(got) > protocol.LongestFailure {
		t.Errorf("a text of %d bytes", len(got))
	}
}
