package shape

import (
	"reflect"
	"strings"
)

// A field is an encoded field of a struct. Fields of embedded structs belong to the outer struct
// if the codec encodes them there.
type field struct {
	name    string // in the data
	path    string // in Go, for example "Base.ID"
	options string // tag options that change the data
	typ     reflect.Type
	pointer bool // it is in an embedded pointer, and so addressable
}

// A fields describes how a codec encodes a struct.
type fields struct {
	list    []field
	ordered bool // the codec writes them in order, without names
	refused []Problem
	lost    []Problem
	opaque  bool // no field is exported, and there are some
}

// fieldsOf returns the fields of a struct type.
func fieldsOf(t reflect.Type, rules Rules) fields {
	var f fields
	switch rules {
	case Msgpack:
		f = msgpackFields(t, make(map[reflect.Type]bool))
	case JSON:
		f = jsonFields(t)
	default:
		f = otherFields(t)
	}
	f.opaque = len(f.list) == 0 && len(f.lost) > 0 && !hasExported(t)
	return f
}

// hasExported reports whether a struct has an exported field of its own.
func hasExported(t reflect.Type) bool {
	for f := range t.Fields() {
		if f.IsExported() && !f.Anonymous {
			return true
		}
	}
	return false
}

const (
	unexported = "unexported, so it is not encoded"
	anotherHas = "another field has the name "
)

// addUnexported records a field that is not encoded, unless it has no size.
func (fs *fields) addUnexported(f reflect.StructField) {
	if f.Name != "_" && f.Name != "_msgpack" && f.Type.Size() > 0 {
		fs.lost = append(fs.lost, Problem{f.Name, unexported})
	}
}

// nothingIn notes an embedded struct of which no field is encoded.
func (fs *fields) nothingIn(f reflect.StructField, inner fields) {
	if len(inner.list) == 0 && len(inner.lost) > 0 {
		fs.lost = append(fs.lost, Problem{f.Name, "no field is exported, so it is not encoded"})
		return
	}
	for _, p := range inner.lost {
		fs.lost = append(fs.lost, Problem{f.Name + "." + p.Path, p.Why})
	}
}

// otherFields returns the exported fields of a struct, with their tags. An unknown codec may encode
// any of them.
func otherFields(t reflect.Type) (fs fields) {
	fs.ordered = true
	for f := range t.Fields() {
		if !f.IsExported() && !f.Anonymous {
			fs.addUnexported(f)
			continue
		}
		fs.list = append(fs.list, field{name: f.Name, options: string(f.Tag), typ: f.Type})
	}
	return fs
}

// options returns the known options of a tag, in a fixed order.
func options(tag string, known ...string) (found string) {
	_, rest, _ := strings.Cut(tag, ",")
	for _, option := range known {
		if has(rest, option) {
			found += "," + option
		}
	}
	return found
}

// has reports whether a list of options has one.
func has(list, option string) bool {
	for o := range strings.SplitSeq(list, ",") {
		if o == option {
			return true
		}
	}
	return false
}
