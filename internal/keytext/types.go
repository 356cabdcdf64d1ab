package keytext

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
)

// A description says how values of a type are written.
type description struct {
	text    string
	bare    bool    // its values need no type before them
	special special // nil for most
	err     error   // why its values have no text
}

var descriptions sync.Map // of reflect.Type: *description

// Check returns an error if no value of a type has a text. It does not know the values of
// interfaces.
func Check(t reflect.Type) error { return describe(t).err }

func describe(t reflect.Type) *description {
	if d, ok := descriptions.Load(t); ok {
		return d.(*description)
	}
	d := &description{}
	switch t {
	case reflect.TypeFor[string](), reflect.TypeFor[int](), reflect.TypeFor[bool]():
		d.bare = true
	}
	if t.Kind() == reflect.Struct {
		for _, s := range specials {
			if t.ConvertibleTo(s.t) { // it is that type, or defined by it
				d.special = func(b []byte, v reflect.Value) []byte { return s.append(b, v.Convert(s.t)) }
			}
		}
	}
	if d.err = check(t, map[reflect.Type]bool{}); d.err == nil {
		d.text = string(appendType(nil, t))
	}
	descriptions.Store(t, d)
	return d
}

// check returns an error if t, or a type that it consists of, has no text. It skips the types in
// seen.
func check(t reflect.Type, seen map[reflect.Type]bool) error {
	if seen[t] {
		return nil
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return fmt.Errorf("a %v has no text: two of them differ only in their addresses", t)
	case reflect.Interface:
		if t.Name() == "" && t.NumMethod() > 0 {
			return fmt.Errorf("a %v has no text: an interface with methods needs a name", t)
		}
	case reflect.Slice, reflect.Array, reflect.Pointer:
		return check(t.Elem(), seen)
	case reflect.Map:
		if err := check(t.Key(), seen); err != nil {
			return err
		}
		return check(t.Elem(), seen)
	case reflect.Struct:
		if p := t.PkgPath(); p == "sync" || strings.HasPrefix(p, "sync/") {
			return fmt.Errorf("a %v has no text: it is a state, not a value", t)
		}
		for _, s := range specials {
			if t.ConvertibleTo(s.t) {
				return nil
			}
		}
		for f := range t.Fields() {
			if f.Name == "_" {
				continue
			}
			if err := check(f.Type, seen); err != nil {
				return fmt.Errorf("%s of %v: %w", f.Name, t, err)
			}
		}
	}
	return nil
}

// appendType appends the name of a type, or the structure of a type without a name. Names have
// the full path of their package; reflect's String has only the last element.
func appendType(b []byte, t reflect.Type) []byte {
	if t.Name() != "" {
		return appendName(b, t)
	}
	switch t.Kind() {
	case reflect.Pointer:
		return appendType(append(b, '*'), t.Elem())
	case reflect.Slice:
		return appendType(append(b, "[]"...), t.Elem())
	case reflect.Array:
		b = strconv.AppendInt(append(b, '['), int64(t.Len()), 10)
		return appendType(append(b, ']'), t.Elem())
	case reflect.Map:
		b = appendType(append(b, "map["...), t.Key())
		return appendType(append(b, ']'), t.Elem())
	case reflect.Interface:
		return append(b, "any"...)
	}
	b = append(b, "struct("...)
	for i := range t.NumField() {
		f := t.Field(i)
		if i > 0 {
			b = append(b, ',')
		}
		if f.PkgPath != "" {
			b = append(appendEscaped(b, f.PkgPath), '.') // names that are not exported differ by it
		}
		b = append(appendEscaped(b, f.Name), ' ')
		if f.Anonymous {
			b = append(b, '=')
		}
		b = appendType(b, f.Type)
		if f.Tag != "" {
			b = appendQuoted(append(b, ' '), string(f.Tag))
		}
	}
	return append(b, ')')
}

func appendName(b []byte, t reflect.Type) []byte {
	if t.PkgPath() != "" {
		b = append(appendEscaped(b, t.PkgPath()), '.')
	}
	// The arguments of a generic type may be types without a name, in the notation of
	// reflect. Quotes distinguish it from the notation of this package.
	if strings.ContainsAny(t.Name(), `" (){}`) {
		return appendQuoted(b, t.Name())
	}
	return appendEscaped(b, t.Name())
}
