// Package shape says what a codec makes of a Go type: which fields it encodes and under which
// names, what it cannot encode, and what does not come back.
//
// [Of] walks over a type as the codec does. The result has a canonical text, of which
// [Shape.Fingerprint] is a hash, and the [Problem]s. Nothing is encoded, but for one zero
// value of a type that only msgpack's registry can tell from one that cannot be encoded.
//
// The text has the fields that are encoded, with their names and tag options, and the kinds of
// all values. It has no names of Go types, so a type may be renamed. A type that encodes itself
// is the exception: it counts by its package path and name. The fields of a struct are sorted
// unless the codec writes them in order. A struct type that occurs again is a number.
//
// internal/budget also walks over types, for another question: the most memory that any data
// may take. Where names are ambiguous it assumes the worst, and this package what the codec does.
package shape

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
)

// Rules are those of one codec.
type Rules byte

// The codecs.
const (
	Msgpack Rules = iota
	JSON
	Other // a codec that is not known: exported fields, with their tags
)

// A Shape is what a codec makes of a type.
type Shape struct {
	// Text is the same for two types whose values have the same form.
	Text string

	// Refused is what cannot be encoded, or cannot be read back in any case.
	Refused []Problem

	// Lost is what is encoded in part, or comes back as another type.
	Lost []Problem

	// Unsure is set if some values may be encoded in a form that the codec does not read: the
	// type has an interface, a type that encodes itself, or contains itself.
	Unsure bool
}

// A Problem is a part of a type with which a codec has a problem.
type Problem struct {
	Path string // as in "Order.Items[].Done"
	Why  string
}

// String returns the path and the reason.
func (p Problem) String() string { return p.Path + ": " + p.Why }

// mostListed is how many problems of a type a text names.
const mostListed = 8

// List returns a text about problems, on one line.
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

// Of returns the shape of t. For the rules Other it has no problems, and is unsure.
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

// fingerprintSize is 64 bits: two shapes of one Prefix that collide would need billions of builds.
const fingerprintSize = 8

// Fingerprint returns a short text that is the same on every machine and in every build for the
// same Text and codec, and differs for another.
func (s Shape) Fingerprint(codec string) string {
	sum := sha256.Sum256([]byte(codec + " " + s.Text))
	return hex.EncodeToString(sum[:fingerprintSize])
}

// rootName returns the name with which paths begin.
func rootName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer && t.Name() == "" {
		t = t.Elem()
	}
	if t.Name() == "" {
		return "V"
	}
	return bare(t.Name())
}
