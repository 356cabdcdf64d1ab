package shape

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// A writer writes the text of a type.
type writer struct {
	rules   Rules
	text    strings.Builder
	numbers map[reflect.Type]int // of struct types, in the order of their first occurrence
	outer   []reflect.Type       // the named types other than structs that contain the current one
}

func (w *writer) put(s ...string) {
	for _, each := range s {
		w.text.WriteString(each)
	}
}

func (w *writer) write(t reflect.Type) {
	if own := w.rules.own(t); own != noEncoder {
		w.put(strconv.Quote(nameOf(t)))
		switch {
		case t == timeType, own == byValue && w.rules != Other, own == byPointer && w.rules == Msgpack:
			if strings.Contains(t.Name(), "[") && t.Kind() == reflect.Struct {
				w.inside(t) // its argument may change
			}
			return
		}
		// Its encoder may not be called, so its parts may be in the data.
	}
	if t.Kind() == reflect.Struct {
		w.structure(t)
		return
	}
	if t.Name() != "" {
		if i := slices.Index(w.outer, t); i >= 0 {
			w.put("^", strconv.Itoa(len(w.outer)-i)) // it contains itself
			return
		}
		w.outer = append(w.outer, t)
		defer func() { w.outer = w.outer[:len(w.outer)-1] }()
	}
	switch t.Kind() {
	case reflect.Pointer:
		w.put("*")
		w.write(t.Elem())
	case reflect.Slice:
		w.put("[]")
		w.write(t.Elem())
	case reflect.Array:
		w.put("[", strconv.Itoa(t.Len()), "]")
		w.write(t.Elem())
	case reflect.Map:
		w.put("map[")
		w.write(t.Key())
		w.put("]")
		w.write(t.Elem())
	case reflect.Interface:
		if t.NumMethod() == 0 {
			w.put("any")
			return
		}
		w.put("interface")
	default:
		w.put(t.Kind().String())
	}
}

// structure writes a struct type, or its number if it was written before.
func (w *writer) structure(t reflect.Type) {
	if n := w.numbers[t]; n > 0 {
		w.put("#", strconv.Itoa(n))
		return
	}
	fs := fieldsOf(t, w.rules)
	if fs.opaque {
		w.put(strconv.Quote(nameOf(t))) // msgpack's registry may have an encoder for it
		return
	}
	w.numbers[t] = len(w.numbers) + 1
	if !fs.ordered {
		slices.SortStableFunc(fs.list, func(a, b field) int { return strings.Compare(a.name, b.name) })
	}
	begin, end := "{", "}"
	if fs.ordered {
		begin, end = "(", ")"
	}
	w.put(begin)
	for i, f := range fs.list {
		if i > 0 {
			w.put(";")
		}
		w.put(strconv.Quote(f.name))
		if f.options != "" {
			w.put(strconv.Quote(f.options))
		}
		w.put(" ")
		w.write(f.typ)
	}
	w.put(end)
}

// inside writes all fields of a struct that encodes itself, including unexported ones.
func (w *writer) inside(t reflect.Type) {
	if n := w.numbers[t]; n > 0 {
		w.put("#", strconv.Itoa(n))
		return
	}
	w.numbers[t] = len(w.numbers) + 1
	w.put("<")
	for f := range t.Fields() {
		w.put(strconv.Quote(f.Name), " ")
		w.write(f.Type)
		w.put(";")
	}
	w.put(">")
}
