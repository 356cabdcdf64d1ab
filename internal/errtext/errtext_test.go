package errtext_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/errtext"
)

const secret = "alice@example.org"

// A pgError and a mysqlError are as those of the drivers.
type pgError struct{ detail string }

func (e *pgError) Error() string  { return "duplicate key: " + e.detail }
func (*pgError) SQLState() string { return "23505" }

type mysqlError struct {
	Number  uint16
	Message string
}

func (e *mysqlError) Error() string { return e.Message }

type own struct{ text string }

func (e own) Error() string { return e.text }

func quoting(t *testing.T) map[string]error {
	t.Helper()
	_, number := strconv.Atoi(secret)
	_, date := time.Parse(time.DateOnly, secret)
	_, address := url.Parse(fmt.Sprintf("http://%s:port/\x00", secret))
	return map[string]error{
		"*errtext_test.pgError (SQLSTATE 23505)": &pgError{secret},
		"*errtext_test.mysqlError (number 1062)": &mysqlError{1062, "Duplicate entry '" + secret + "'"},
		"*strconv.NumError":                      number,
		"*time.ParseError":                       date,
		"*url.Error":                             address,
		"*json.UnmarshalTypeError":               json.Unmarshal([]byte(`{"A":1e400}`), &struct{ A float64 }{}),
	}
}

// No text of a database's or a parser's error is in its kind, nor in the public
// text of an error that wraps it. The words of the wrapper are in that.
func TestTextOfOthersIsReplacedByItsKind(t *testing.T) {
	for kind, err := range quoting(t) {
		for _, wrapped := range []error{err, fmt.Errorf("load the user: %w", err), errors.Join(errors.New("load the user"), err)} {
			public := errtext.Public(wrapped)
			if strings.Contains(public, secret) || strings.Contains(public, "1e400") {
				t.Errorf("Public(%T) = %q; want no data", wrapped, public)
			}
			if wrapped != err && !strings.Contains(public, "load the user") {
				t.Errorf("Public(%T) = %q; want the words of the wrapper", wrapped, public)
			}
			if got := errtext.Kind(wrapped); got != kind {
				t.Errorf("Kind(%T) = %q; want %q", wrapped, got, kind)
			}
		}
	}
}

// The text of a fetch's own error is public, and so is its type its kind.
func TestOwnTextIsPublic(t *testing.T) {
	for _, err := range []error{errors.New("the origin fails"), own{"the origin fails"}, fmt.Errorf("the origin %w", own{"fails"})} {
		if got := errtext.Public(err); got != "the origin fails" {
			t.Errorf("Public(%T) = %q; want its text", err, got)
		}
	}
	for want, err := range map[string]error{
		"errtext_test.own":          fmt.Errorf("the origin %w", own{"fails"}),
		"*errors.errorString":       errors.New("fails"),
		"unexpected EOF":            fmt.Errorf("the origin: %w", io.ErrUnexpectedEOF),
		"context deadline exceeded": fmt.Errorf("the origin: %w", context.DeadlineExceeded),
	} {
		if got := errtext.Kind(err); got != want {
			t.Errorf("Kind(%v) = %q; want %q", err, got, want)
		}
	}
}

// Of a panic outside a fetch, the type and the runtime's own text are public.
func TestPanicIsItsKind(t *testing.T) {
	var empty []int
	crash := func() (v any) {
		defer func() { v = recover() }()
		return empty[len(secret)]
	}()
	if got := errtext.OfPanic(crash); !strings.Contains(got, "index out of range") {
		t.Errorf("OfPanic = %q; want what the runtime says", got)
	}
	if got := errtext.OfPanic(secret); got != "string" {
		t.Errorf("OfPanic = %q; want the type", got)
	}
	if got := errtext.OfPanic(&pgError{secret}); got != "*errtext_test.pgError (SQLSTATE 23505)" {
		t.Errorf("OfPanic = %q; want the kind", got)
	}
}
