package fetchonce

import "github.com/fetchonce/fetchonce/internal/keytext"

// An endedError is the error of a call whose context ended before it had the lock. Its
// text is one line, unlike that of [errors.Join].
type endedError struct {
	name  string
	cause error // of the context's end
}

func (e *endedError) Error() string {
	return ErrLocked.Error() + ": " + keytext.Quote(e.name) + " not acquired: " + e.cause.Error()
}

// Unwrap returns ErrLocked and the cause.
func (e *endedError) Unwrap() []error { return []error{ErrLocked, e.cause} }
