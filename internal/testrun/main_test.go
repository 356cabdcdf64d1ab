package main_test

import (
	"fmt"
	"io"
	"strings"
	"testing"

	testrun "github.com/fetchonce/fetchonce/internal/testrun"
)

// events encodes lines of action, package, test and output as go test -json does.
func events(lines ...[4]string) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, `{"Action":%q,"Package":%q,"Test":%q,"Output":%q}`+"\n", l[0], l[1], l[2], l[3])
	}
	return b.String()
}

func TestPackageIsPrintedWhenItEnds(t *testing.T) {
	reader, writer := io.Pipe()
	out, printed := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- testrun.Print(printed, reader)
		_ = printed.Close()
	}()
	_, _ = io.WriteString(writer, events(
		[4]string{"start", "slow"},
		[4]string{"start", "quick"},
		[4]string{"output", "quick", "TestOne", "=== RUN   TestOne\n"},
		[4]string{"pass", "quick", "TestOne"},
		[4]string{"output", "quick", "", "PASS\n"},
		[4]string{"output", "quick", "", "ok  \tquick\t0.1s\n"},
	))
	go func() { _, _ = io.WriteString(writer, events([4]string{"pass", "quick"})) }()
	const want = "ok  \tquick\t0.1s\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(out, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v; want %q while slow runs", got, err, want)
	}
	go func() { _ = writer.Close() }()
	if rest, err := io.ReadAll(out); len(rest) > 0 || err != nil {
		t.Errorf("then %q, %v; want nothing", rest, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestOutputOfTestsThatDidNotPassIsPrinted(t *testing.T) {
	for _, test := range []struct {
		name   string
		events string
		want   string
	}{
		{"failed", events(
			[4]string{"output", "p", "TestGood", "good\n"},
			[4]string{"output", "p", "TestBad", "bad\n"},
			[4]string{"output", "p", "TestSkipped", "skipped\n"},
			[4]string{"pass", "p", "TestGood"},
			[4]string{"fail", "p", "TestBad"},
			[4]string{"skip", "p", "TestSkipped"},
			[4]string{"output", "p", "", "FAIL\tp\t0.1s\n"},
			[4]string{"fail", "p"},
		), "bad\nFAIL\tp\t0.1s\n"},
		{"ended within a test", events(
			[4]string{"output", "p", "TestPanics", "panic: oh\n"},
			[4]string{"output", "p", "", "FAIL\tp\t0.1s\n"},
			[4]string{"fail", "p"},
		), "panic: oh\nFAIL\tp\t0.1s\n"},
		{"killed", events([4]string{"output", "p", "TestHangs", "=== RUN   TestHangs\n"}), "=== RUN   TestHangs\n"},
		{"has no tests", events(
			[4]string{"output", "p", "", "ok  \tp\t0.1s [no tests to run]\n"},
			[4]string{"pass", "p"},
		), "no tests to run in 1 other packages\n"},
		{"not built", events([4]string{"build-output", "", "", "undefined: x\n"}), "undefined: x\n"},
		{"not an event", "go: no such package\n", "go: no such package\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			if err := testrun.Print(&out, strings.NewReader(test.events)); err != nil || out.String() != test.want {
				t.Errorf("%q, %v; want %q", out.String(), err, test.want)
			}
		})
	}
}
