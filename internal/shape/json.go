package shape

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"unicode"
)

// A found is a field that may be encoded, unless another one hides it.
type found struct {
	field
	depth  int
	tagged bool
}

// jsonFields returns the fields of a struct, level by level of embedding, as typeFields of
// encoding/json does. If several fields have one name, the least embedded one is encoded. If there
// are several of these, the one whose name is in a tag is encoded, and otherwise none.
func jsonFields(t reflect.Type) (fs fields) {
	var all []found
	visited := make(map[reflect.Type]bool)
	level := []embedded{{typ: t, count: 1}}
	for depth := 0; len(level) > 0; depth++ {
		var next []embedded
		for _, e := range level {
			if visited[e.typ] {
				continue
			}
			visited[e.typ] = true
			before, lost := len(all)+len(next), len(fs.lost)
			for f := range e.typ.Fields() {
				fs.addJSON(e, f, depth, &all, &next)
			}
			if depth > 0 && len(all)+len(next) == before && len(fs.lost) > lost {
				fs.lost = append(fs.lost[:lost], Problem{strings.TrimSuffix(e.path, "."), "no field is exported, so it is not encoded"})
			}
		}
		level = next
	}
	fs.dominant(all)
	return fs
}

// An embedded is a struct whose fields are encoded as those of the outer one.
type embedded struct {
	typ     reflect.Type
	path    string // with a dot at its end, or empty
	pointer bool
	count   int // how often it is embedded on its level
}

// addJSON adds a field of e to all, or to next if it embeds a struct.
func (fs *fields) addJSON(e embedded, f reflect.StructField, depth int, all *[]found, next *[]embedded) {
	inner := f.Type
	if inner.Name() == "" && inner.Kind() == reflect.Pointer {
		inner = inner.Elem()
	}
	pointer := f.Type.Kind() == reflect.Pointer
	tag := f.Tag.Get("json")
	name, _, _ := strings.Cut(tag, ",")
	if !validName(name) {
		name = ""
	}
	embeds := f.Anonymous && name == "" && inner.Kind() == reflect.Struct
	switch {
	case tag == "-" && (f.IsExported() || f.Anonymous):
	case !f.IsExported() && (!f.Anonymous || inner.Kind() != reflect.Struct):
		if f.Name != "_" && f.Type.Size() > 0 {
			fs.lost = append(fs.lost, Problem{e.path + f.Name, unexported})
		}
	case !f.IsExported() && pointer:
		fs.refused = append(fs.refused, Problem{e.path + f.Name, "an embedded pointer to an unexported struct, which cannot be read back"})
	case embeds:
		i := slices.IndexFunc(*next, func(n embedded) bool { return n.typ == inner })
		if i < 0 {
			*next = append(*next, embedded{typ: inner, path: e.path + f.Name + ".", pointer: e.pointer || pointer, count: e.count})
		} else {
			(*next)[i].count++
		}
	default:
		for range min(e.count, 2) { //nolint:mnd // two are as ambiguous as more
			*all = append(*all, found{field{
				name: cmp.Or(name, f.Name), path: e.path + f.Name, options: options(tag, "omitempty", "omitzero", "string"),
				typ: f.Type, pointer: e.pointer,
			}, depth, name != ""})
		}
	}
}

// dominant adds the encoded fields, and records those that others hide.
func (fs *fields) dominant(all []found) {
	named := make(map[string][]found)
	for _, f := range all {
		named[f.name] = append(named[f.name], f)
	}
	order := func(a, b found) int {
		return cmp.Or(cmp.Compare(a.depth, b.depth), -cmp.Compare(toInt(a.tagged), toInt(b.tagged)))
	}
	said := make(map[string]bool)
	for _, f := range all {
		same := named[f.name]
		first := slices.MinFunc(same, order)
		if order(f, first) == 0 && !slices.ContainsFunc(same, func(o found) bool { return o.path != f.path && order(o, f) == 0 }) && !twice(same, f) {
			fs.list = append(fs.list, f.field)
			continue
		}
		if !said[f.path] {
			fs.lost = append(fs.lost, Problem{f.path, anotherHas + f.name})
			said[f.path] = true
		}
	}
}

// twice reports whether a field is in a struct that is embedded twice on one level.
func twice(same []found, f found) bool {
	n := 0
	for _, o := range same {
		if o.path == f.path {
			n++
		}
	}
	return n > 1
}

func toInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// validName reports whether encoding/json accepts the name of a tag.
func validName(name string) bool {
	for _, c := range name {
		if !strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", c) && !unicode.IsLetter(c) && !unicode.IsDigit(c) {
			return false
		}
	}
	return name != ""
}
