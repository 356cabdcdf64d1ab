// Package keytext writes Go values as texts, for use as keys. Different types or values have
// different texts, and a text is the same in every process.
//
// The package knows nothing of Redis. fetchonce.Key uses it.
//
// # The text
//
// Commas separate the arguments. A string, an int and a bool look as in a program. Any
// other value begins with its type. Inside a value, a type is omitted if the outer type
// implies it:
//
//	"teapot"   42   true   nil
//	int64(42)   float64(-0)   time.Time(2026-11-24T18:00:00Z)
//	[]uint8("plain text")   [4]uint8(0xdeadbeef)
//	example.com/shop.Query(Shop:7,Tags:["hot","black"],Limit:nil)
//	[]any(["a",int64(1),nil])   map[string]int(["a":1,"b":2])   *int(&3)
//
// The text consists of printable ASCII. It has braces only where a string has them, because
// braces have a meaning in Redis keys and would be escaped. It does not depend on the
// version of Go: neither on its Unicode tables nor on the fields of a [time.Time].
package keytext

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

const (
	// Longest is the length of the longest text.
	Longest = 200

	mostDepth = 100      // the deepest nesting of values
	mostBytes = 16 << 20 // the longest text before it is cut
)

// Of returns the text of its arguments. The error says which argument has no text, and why.
func Of(args ...any) (string, error) {
	var space [128]byte
	b := space[:0]
	for i, arg := range args {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendArg(b, arg); err != nil {
			return "", fmt.Errorf("argument %d of %d: %w", i+1, len(args), err)
		}
	}
	return cut(b), nil
}

// OfString returns the text of one string.
func OfString(s string) string {
	var space [128]byte
	return cut(appendQuoted(space[:0], s))
}

// OfInt returns the text of one int.
func OfInt(n int) string { return strconv.Itoa(n) }

// cut returns a text as a string. A text of Longest bytes or more is cut to Longest, and ends
// with a hash of the whole text. Shorter texts are below Longest, so no other text is equal.
func cut(b []byte) string {
	if len(b) < Longest {
		return string(b)
	}
	sum := sha256.Sum256(b)
	tail := append([]byte("~"), hex.EncodeToString(sum[:])...)
	return string(append(b[:Longest-len(tail)], tail...))
}

// appendArg appends the text of one argument.
func appendArg(b []byte, arg any) ([]byte, error) {
	switch arg := arg.(type) {
	case nil:
		return append(b, "nil"...), nil
	case string:
		return appendQuoted(b, arg), nil
	case int:
		return strconv.AppendInt(b, int64(arg), 10), nil
	case bool:
		return strconv.AppendBool(b, arg), nil
	case int64:
		return append(strconv.AppendInt(append(b, "int64("...), arg, 10), ')'), nil
	}
	return appendTyped(b, reflect.ValueOf(arg), mostDepth)
}

// appendTyped appends a value with its type.
func appendTyped(b []byte, v reflect.Value, depth int) ([]byte, error) {
	t := v.Type()
	d := describe(t)
	if d.err != nil {
		return nil, d.err
	}
	if d.bare {
		return appendValue(b, v, d, depth)
	}
	b = append(b, d.text...)
	if t.Kind() == reflect.Struct && d.special == nil {
		return appendValue(b, v, d, depth) // has its own parentheses
	}
	b, err := appendValue(append(b, '('), v, d, depth)
	return append(b, ')'), err
}

var (
	errDeep  = errors.New("it contains itself, or is nested deeper than 100 levels")
	errLarge = errors.New("its text is longer than 16 MiB")
)

// within adds to an error the place in a value that has no text.
func within(place string, err error) error {
	if errors.Is(err, errDeep) || errors.Is(err, errLarge) {
		return err // it concerns the whole value
	}
	return fmt.Errorf("%s: %w", place, err)
}

// appendValue appends a value without its type, which d describes.
func appendValue(b []byte, v reflect.Value, d *description, depth int) ([]byte, error) {
	switch {
	case depth == 0:
		return nil, errDeep
	case len(b) > mostBytes:
		return nil, errLarge
	case d.special != nil:
		return d.special(b, v), nil
	}
	switch v.Kind() {
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool()), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	case reflect.Float32, reflect.Float64:
		return appendFloat(b, v.Float(), v.Type().Bits()), nil
	case reflect.Complex64, reflect.Complex128:
		c, bits := v.Complex(), v.Type().Bits()/2
		b = append(appendFloat(append(b, '['), real(c), bits), ',')
		return append(appendFloat(b, imag(c), bits), ']'), nil
	case reflect.String:
		return appendQuoted(b, v.String()), nil
	case reflect.Slice, reflect.Array:
		return appendList(b, v, depth)
	case reflect.Map:
		return appendMap(b, v, depth)
	case reflect.Struct:
		return appendStruct(b, v, depth)
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, "nil"...), nil
		}
		return appendValue(append(b, '&'), v.Elem(), describe(v.Type().Elem()), depth-1)
	case reflect.Interface:
		if v.IsNil() {
			return append(b, "nil"...), nil
		}
		return appendTyped(b, v.Elem(), depth-1)
	}
	return nil, fmt.Errorf("a %v has no text", v.Type()) // describe has seen it before
}

// appendFloat appends the shortest text that reads back as the same number. All NaNs have the
// same text.
func appendFloat(b []byte, f float64, bits int) []byte {
	if math.IsNaN(f) {
		return append(b, "NaN"...)
	}
	return strconv.AppendFloat(b, f, 'g', -1, bits)
}

func appendList(b []byte, v reflect.Value, depth int) ([]byte, error) {
	switch {
	case v.Kind() == reflect.Slice && v.IsNil():
		return append(b, "nil"...), nil
	case v.Type().Elem().Kind() == reflect.Uint8:
		return appendBytes(b, addressable(v).Bytes()), nil
	}
	elem := describe(v.Type().Elem())
	v = addressable(v)
	b = append(b, '[')
	for i := range v.Len() {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendValue(b, v.Index(i), elem, depth-1); err != nil {
			return nil, within("["+strconv.Itoa(i)+"]", err)
		}
	}
	return append(b, ']'), nil
}

// appendBytes appends printable bytes as a string, and others in hexadecimal.
func appendBytes(b, data []byte) []byte {
	if bytes.ContainsFunc(data, func(r rune) bool { return r < ' ' || r > '~' }) {
		return hex.AppendEncode(append(b, "0x"...), data)
	}
	return appendQuoted(b, string(data))
}

// appendMap appends the entries in the order of their texts.
func appendMap(b []byte, v reflect.Value, depth int) ([]byte, error) {
	if v.IsNil() {
		return append(b, "nil"...), nil
	}
	key, elem := describe(v.Type().Key()), describe(v.Type().Elem())
	entries := make([][]byte, 0, v.Len())
	size := len(b)
	for all := v.MapRange(); all.Next(); {
		entry, err := appendValue(nil, addressable(all.Key()), key, depth-1)
		if err == nil {
			entry, err = appendValue(append(entry, ':'), addressable(all.Value()), elem, depth-1)
		}
		if size += len(entry); err == nil && size > mostBytes {
			err = errLarge
		}
		if err != nil {
			return nil, within("an entry", err)
		}
		entries = append(entries, entry)
	}
	// No matter if one entry is a prefix of another: the order is the same in every process.
	slices.SortFunc(entries, bytes.Compare)
	b = append(b, '[')
	b = append(b, bytes.Join(entries, []byte{','})...)
	return append(b, ']'), nil
}

func appendStruct(b []byte, v reflect.Value, depth int) ([]byte, error) {
	v = addressable(v)
	b = append(b, '(')
	first := true
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if field.Name == "_" {
			continue // == does not compare it either
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		f := v.Field(i)
		if !field.IsExported() {
			// Without this, methods of the field and its parts could not be called.
			f = reflect.NewAt(f.Type(), f.Addr().UnsafePointer()).Elem()
		}
		b = append(appendEscaped(b, field.Name), ':')
		var err error
		if b, err = appendValue(b, f, describe(f.Type()), depth-1); err != nil {
			return nil, within(field.Name, err)
		}
	}
	return append(b, ')'), nil
}

// addressable returns v, or an addressable copy of it, so its fields are addressable, too.
func addressable(v reflect.Value) reflect.Value {
	if v.CanAddr() || v.Kind() != reflect.Struct && v.Kind() != reflect.Array {
		return v
	}
	c := reflect.New(v.Type()).Elem()
	c.Set(v)
	return c
}

// A special writes values of a type without their fields. The fields of such a type are
// private to its package, may differ for equal values, and may change with the version of Go.
//
// There are few specials on purpose. A method such as MarshalText is not called, because it
// may leave parts out, for example those of a secret.
type special func(b []byte, v reflect.Value) []byte

var specials = []struct {
	t      reflect.Type
	append special
}{
	{reflect.TypeFor[time.Time](), func(b []byte, v reflect.Value) []byte {
		return appendTime(b, v.Interface().(time.Time))
	}},
	{reflect.TypeFor[netip.Addr](), func(b []byte, v reflect.Value) []byte {
		return appendQuoted(b, v.Interface().(netip.Addr).String())
	}},
	{reflect.TypeFor[big.Int](), func(b []byte, v reflect.Value) []byte {
		n := v.Interface().(big.Int)
		return n.Append(b, 10)
	}},
}

// appendTime appends the instant, and the location if it is not UTC, because the result of a
// function may depend on the location. It omits the monotonic clock.
func appendTime(b []byte, t time.Time) []byte {
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	if t.Location() == time.UTC {
		return b
	}
	_, offset := t.Zone()
	b = appendQuoted(append(b, ' '), t.Location().String())
	return strconv.AppendInt(append(b, ' '), int64(offset), 10)
}

// appendQuoted appends s in quotes.
func appendQuoted(b []byte, s string) []byte {
	return append(appendEscaped(append(b, '"'), s), '"')
}

// appendEscaped appends s as it looks inside the quotes of a Go string. strconv.Quote depends on
// the version of Unicode for anything but ASCII.
func appendEscaped(b []byte, s string) []byte {
	for len(s) > 0 {
		i := 0
		for i < len(s) && plain(s[i]) {
			i++
		}
		b, s = append(b, s[:i]...), s[i:]
		if s == "" {
			break
		}
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case s[0] == '"' || s[0] == '\\':
			b = append(b, '\\', s[0])
		case r == utf8.RuneError && n == 1 || r < utf8.RuneSelf:
			b = fmt.Appendf(b, `\x%02x`, s[0])
		case r > math.MaxUint16:
			b = fmt.Appendf(b, `\U%08x`, r)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
		s = s[n:]
	}
	return b
}

// plain reports whether a byte stands for itself.
func plain(c byte) bool {
	return ' ' <= c && c <= '~' && c != '"' && c != '\\'
}
