package redistest_test

import (
	"fmt"
	"runtime"
	"testing"
)

// A verdict is the outcome of a test.
type verdict struct {
	skipped, failed bool
	said            string
}

// judge runs a test on a testing.TB that only records the outcome.
func judge(t testing.TB, test func(t testing.TB)) verdict {
	f := &fakeTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(f)
	}()
	<-done
	return f.verdict
}

type fakeTB struct {
	testing.TB
	verdict
}

func (f *fakeTB) Fatal(args ...any) {
	f.verdict = verdict{failed: true, said: fmt.Sprint(args...)}
	runtime.Goexit()
}

func (f *fakeTB) Fatalf(format string, args ...any) {
	f.Fatal(fmt.Sprintf(format, args...))
}

func (f *fakeTB) Skip(args ...any) {
	f.verdict = verdict{skipped: true, said: fmt.Sprint(args...)}
	runtime.Goexit()
}
