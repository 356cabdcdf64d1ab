package shape

import (
	"reflect"
	"strings"
)

// msgpackFields returns the fields of a struct as getFields of msgpack v5 does. outer has the
// structs in which t is embedded.
func msgpackFields(t reflect.Type, outer map[reflect.Type]bool) (fs fields) {
	outer[t] = true
	defer delete(outer, t)
	names := make(map[string]reflect.Type)
	always := ""
	for f := range t.Fields() {
		tag := f.Tag.Get("msgpack")
		name, rest, _ := strings.Cut(tag, ",")
		if name == "-" {
			continue
		}
		if f.Name == "_msgpack" {
			fs.ordered = has(rest, "as_array") || has(rest, "asArray")
			always = options(tag, "omitempty")
		}
		if !f.IsExported() && !f.Anonymous {
			fs.addUnexported(f)
			continue
		}
		if name == "" {
			name = f.Name
		}
		if has(rest, "intern") && f.Type.Kind() != reflect.String && f.Type.Kind() != reflect.Interface {
			fs.refused = append(fs.refused, Problem{f.Name, "the tag says intern, which msgpack does for strings only"})
			continue
		}
		if f.Anonymous && !has(rest, "noinline") && fs.inline(f, names, has(rest, "inline"), outer) {
			names[name] = f.Type
			continue
		}
		if f.Anonymous && !f.IsExported() && structOf(f.Type) == nil {
			fs.refused = append(fs.refused, Problem{f.Name, "embedded and unexported, so it cannot be read back"})
			continue
		}
		if other := names[name]; other == f.Type {
			fs.lost = append(fs.lost, Problem{f.Name, anotherHas + name})
		} else if other != nil {
			fs.refused = append(fs.refused, Problem{f.Name, anotherHas + name + ", and another type, so it cannot be read back"})
		}
		names[name] = f.Type
		fs.list = append(fs.list, field{name: name, path: f.Name, options: max(always, options(tag, "omitempty")), typ: f.Type})
		for option := range strings.SplitSeq(rest, ",") {
			if alias, ok := strings.CutPrefix(option, "alias:"); ok {
				names[alias] = f.Type
			}
		}
	}
	return fs
}

// inline adds the fields of an embedded struct if msgpack encodes them in the outer one. It does so
// if the tag says inline; fields whose name is taken are then not encoded. Without the tag, it does
// so if no name is taken.
func (fs *fields) inline(f reflect.StructField, names map[string]reflect.Type, forced bool, outer map[reflect.Type]bool) bool {
	inner := structOf(f.Type)
	pointer := f.Type.Kind() == reflect.Pointer
	switch {
	case forced && (inner == nil || pointer):
		fs.refused = append(fs.refused, Problem{f.Name, "the tag says inline, which msgpack does for structs only"})
		return true
	case inner == nil || !forced && Msgpack.own(inner) != noEncoder:
		return false
	case outer[inner]:
		fs.refused = append(fs.refused, Problem{f.Name, "embeds itself, which msgpack follows without end"})
		return true
	case pointer && !f.IsExported():
		fs.refused = append(fs.refused, Problem{f.Name, "an embedded pointer to an unexported struct, which cannot be read back"})
		return true
	}
	in := msgpackFields(inner, outer)
	taken := false
	for _, each := range in.list {
		taken = taken || names[each.name] != nil
	}
	if taken && !forced {
		return false
	}
	for _, each := range in.list {
		if names[each.name] != nil {
			in.lost = append(in.lost, Problem{each.path, anotherHas + each.name})
			continue
		}
		names[each.name] = each.typ
		each.path, each.pointer = f.Name+"."+each.path, each.pointer || pointer
		fs.list = append(fs.list, each)
	}
	for _, p := range in.refused {
		fs.refused = append(fs.refused, Problem{f.Name + "." + p.Path, p.Why})
	}
	fs.nothingIn(f, in)
	return true
}

// structOf returns t or the type it points to if that is a struct, and nil otherwise.
func structOf(t reflect.Type) reflect.Type {
	for range 100 { // a pointer type may point to itself
		if t.Kind() != reflect.Pointer {
			break
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	return t
}
