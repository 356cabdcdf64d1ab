// Package shape describes how a codec encodes a Go type: the encoded fields with their names, the
// parts that cannot be encoded, and the parts that are not decoded as they were.
//
// [Of] walks over a type as the codec does. The result has a canonical text, whose hash is
// [Shape.Fingerprint], and the [Problem]s. It encodes no values, with one exception: a zero
// value, to find out whether msgpack's registry has an encoder for its type.
//
// The text has the encoded fields, with their names and tag options, and the kinds of all values.
// It has no names of Go types, so a type may be renamed. A type that encodes itself is the
// exception: the text has its package path and name. The fields of a struct are sorted, unless
// the codec writes them in order. A struct type that occurs again is written as a number.
//
// internal/budget also walks over types, to find the most memory that data may take. It assumes
// the worst if names are ambiguous; this package follows the codec.
package shape

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
)

// Rules identify the codec whose rules apply.
type Rules byte

// The codecs.
const (
	Msgpack Rules = iota
	JSON
	Other // an unknown codec: exported fields, with their tags
)

// A Shape describes how a codec encodes a type.
type Shape struct {
	// Text is the same for two types whose values have the same form.
	Text string

	// Refused has the parts that cannot be encoded, or can never be decoded.
	Refused []Problem

	// Lost has the parts that are not encoded, or are decoded as another type.
	Lost []Problem

	// Unsure is set if the codec may be unable to decode some values: the type has an
	// interface or a type that encodes itself, or it contains itself.
	Unsure bool
}

// A Problem is a part of a type that a codec cannot keep.
type Problem struct {
	Path string // for example "Order.Items[].Done"
	Why  string
}

// String returns the path and the reason.
func (p Problem) String() string { return p.Path + ": " + p.Why }

// mostListed is how many problems List names.
const mostListed = 8

// List returns the problems in one line.
func List(problems []Problem) string {
	var b strings.Builder
	for i, p := range problems[:min(len(problems), mostListed)] {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(p.String())
	}
	if more := len(problems) - mostListed; more > 0 {
		fmt.Fprintf(&b, "; and %d more", more)
	}
	return b.String()
}

// Of returns the shape of t. With the rules Other it has no problems, and Unsure is set.
func Of(t reflect.Type, rules Rules) Shape {
	w := &writer{rules: rules, numbers: make(map[reflect.Type]int)}
	w.write(t)
	s := Shape{Text: w.text.String(), Unsure: true}
	if rules != Other {
		c := &checker{rules: rules, seen: make(map[visit]bool), outer: make(map[reflect.Type]int)}
		c.check(place{path: rootName(t)}, t)
		s.Refused, s.Lost, s.Unsure = c.refused, c.lost, c.unsure
	}
	return s
}

// fingerprintSize is 64 bits: a collision is likely only among billions of shapes.
const fingerprintSize = 8

// Fingerprint returns a short text that depends only on Text and the codec. It is the same on
// every machine and in every build.
func (s Shape) Fingerprint(codec string) string {
	sum := sha256.Sum256([]byte(codec + " " + s.Text))
	return hex.EncodeToString(sum[:fingerprintSize])
}

// rootName returns the first element of all paths.
func rootName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer && t.Name() == "" {
		t = t.Elem()
	}
	if t.Name() == "" {
		return "V"
	}
	return bare(t.Name())
}
