package guard_test

import (
	"errors"
	"testing"

	"github.com/fetchonce/fetchonce/internal/guard"
)

func TestCallReturnsAPanicAsAnError(t *testing.T) {
	cause := errors.New("cause")
	if err := guard.Call(func() error { return cause }); err != cause {
		t.Errorf("got %v, want the error as it is", err)
	}
	err := guard.Call(func() error { panic(cause) })
	if e, ok := errors.AsType[*guard.PanicError](err); !ok || !errors.Is(err, cause) || len(e.Stack) == 0 {
		t.Errorf("got %v, want a PanicError of the cause, with a stack", err)
	}
	if err := guard.Call(func() error { panic("text") }); errors.Unwrap(err) != nil {
		t.Errorf("a panic with a text wraps %v", errors.Unwrap(err))
	}
}
