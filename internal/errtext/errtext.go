// Package errtext returns the part of an error that may leave the process, in a message to
// other processes or in the log.
//
// Errors of databases and parsers quote data: the values of a duplicate row, a text that is
// not a number, the URL of a request. [Kind] returns only the Go type of an error and the
// number or SQLSTATE that a database gave it. [Public] returns the text of an error, with
// such errors replaced by their kinds.
//
// Neither changes text of the caller's own code: the text that a fetch adds with fmt.Errorf
// is shared as it is.
package errtext

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
)

// fixed are errors whose text is the same wherever they occur.
var fixed = []error{
	context.Canceled, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed,
}

// Kind returns a short text without data: the text of a well-known error, or the type of the
// innermost error that err wraps, with its SQLSTATE or number.
func Kind(err error) string {
	for _, f := range fixed {
		if errors.Is(err, f) {
			return f.Error()
		}
	}
	kind := ""
	each(err, func(e error) {
		code := codeOf(e)
		if isPlain(e) && kind != "" && code == "" {
			return
		}
		kind = fmt.Sprintf("%T", e)
		if code != "" {
			kind += " (" + code + ")"
		}
	})
	return kind
}

// Public returns the text of err. It replaces the texts of wrapped errors that quote data by
// their kinds.
func Public(err error) string {
	text := err.Error()
	each(err, func(e error) {
		if quotes(e) {
			if inner := e.Error(); inner != "" {
				text = strings.ReplaceAll(text, inner, Kind(e))
			}
		}
	})
	return text
}

// OfPanic returns a text without data for the value of a panic outside a fetch.
func OfPanic(value any) string {
	switch v := value.(type) {
	case runtime.Error:
		return v.Error()
	case error:
		return Kind(v)
	}
	return fmt.Sprintf("%T", value)
}

// each calls f with err and all errors that it wraps, the outer ones first.
func each(err error, f func(error)) {
	if err == nil {
		return
	}
	f(err)
	switch e := err.(type) { //nolint:errorlint // this is how errors.As goes through a tree
	case interface{ Unwrap() error }:
		each(e.Unwrap(), f)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			each(inner, f)
		}
	}
}

// parsers are the packages whose errors quote their input.
var parsers = []string{"encoding", "net/url", "strconv", "time"}

// drivers are the prefixes of the package paths of database drivers.
var drivers = []string{
	"github.com/go-sql-driver/", "github.com/jackc/", "github.com/lib/pq", "github.com/mattn/go-sqlite3",
	"github.com/go-mysql-org/", "github.com/microsoft/go-mssqldb", "modernc.org/sqlite",
}

// quotes reports whether errors of the type of e quote data.
func quotes(e error) bool {
	if codeOf(e) != "" {
		return true
	}
	path := packageOf(e)
	first, _, _ := strings.Cut(path, "/")
	return first == "encoding" || slices.Contains(parsers, path) ||
		slices.ContainsFunc(drivers, func(driver string) bool { return strings.HasPrefix(path, driver) })
}

// isPlain reports whether the type of e says nothing about the error.
func isPlain(e error) bool {
	path := packageOf(e)
	return path == "errors" || path == "fmt"
}

func packageOf(e error) string {
	t := reflect.TypeOf(e)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath()
}

// codeOf returns the SQLSTATE of an error of a PostgreSQL driver, the number of one of
// a MySQL driver, or "".
func codeOf(e error) string {
	if s, ok := e.(interface{ SQLState() string }); ok {
		if state := s.SQLState(); state != "" {
			return "SQLSTATE " + state
		}
	}
	v := reflect.Indirect(reflect.ValueOf(e))
	if v.Kind() != reflect.Struct {
		return ""
	}
	for _, name := range []string{"Number", "Code"} { // the two MySQL drivers
		if field := v.FieldByName(name); field.IsValid() && field.Kind() == reflect.Uint16 {
			return fmt.Sprintf("number %d", field.Uint())
		}
	}
	return ""
}
