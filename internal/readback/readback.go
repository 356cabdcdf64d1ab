// Package readback says which Go types a codec may write in a form that it
// refuses to read. Values of such a type are read back once before they are
// stored, so that nothing unreadable is kept.
package readback

import (
	"encoding"
	"encoding/json"
	"reflect"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// Needed reports whether msgpack or JSON may refuse what it wrote for a value of
// type t. It may, if t contains
//   - an interface: the value in it has another type after decoding, or none;
//   - a type that encodes or decodes itself, in its own way;
//   - itself: the value may nest deeper than a codec reads.
//
// Every other type is read as it was written.
func Needed(t reflect.Type) bool { return needed(t, make(map[reflect.Type]bool)) }

// needed is [Needed]; outer has the types that t is a part of.
func needed(t reflect.Type, outer map[reflect.Type]bool) bool {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return false
	case outer[t] || encodesItself(t):
		return true
	}
	outer[t] = true
	defer delete(outer, t)
	switch t.Kind() {
	case reflect.Interface:
		return true
	case reflect.Array, reflect.Pointer, reflect.Slice:
		return needed(t.Elem(), outer)
	case reflect.Map:
		return needed(t.Key(), outer) || needed(t.Elem(), outer)
	case reflect.Struct:
		for field := range t.Fields() {
			if needed(field.Type, outer) {
				return true
			}
		}
	}
	return false
}

// own are the interfaces by which a type takes part in its encoding.
var own = []reflect.Type{
	reflect.TypeFor[msgpack.CustomEncoder](), reflect.TypeFor[msgpack.CustomDecoder](),
	reflect.TypeFor[msgpack.Marshaler](), reflect.TypeFor[msgpack.Unmarshaler](),
	reflect.TypeFor[json.Marshaler](), reflect.TypeFor[json.Unmarshaler](),
	reflect.TypeFor[encoding.BinaryMarshaler](), reflect.TypeFor[encoding.BinaryUnmarshaler](),
	reflect.TypeFor[encoding.TextMarshaler](), reflect.TypeFor[encoding.TextUnmarshaler](),
}

func encodesItself(t reflect.Type) bool {
	pointer := reflect.PointerTo(t) // has the methods of t, too
	for _, i := range own {
		if pointer.Implements(i) || t.Implements(i) {
			return true
		}
	}
	return false
}
