package shape

import "reflect"

// A checker finds the problems of a type.
type checker struct {
	rules   Rules
	refused []Problem
	lost    []Problem
	unsure  bool

	seen  map[visit]bool
	outer map[reflect.Type]int // the types that are being checked
}

// A visit is a checked type. A type is checked once for each kind of place.
type visit struct {
	typ         reflect.Type
	addressable bool
	optional    bool
}

// A place is where a type occurs.
type place struct {
	path        string
	addressable bool // the codec can take the address of the value
	optional    bool // a pointer in a field, which may be nil
	pointers    int  // consecutive pointers that lead here
}

func (c *checker) refuse(at place, why string) { c.refused = append(c.refused, Problem{at.path, why}) }
func (c *checker) lose(at place, why string)   { c.lost = append(c.lost, Problem{at.path, why}) }

const longestPointer = 100 // consecutive pointers; a type with more points to itself

// check checks t at a place.
func (c *checker) check(at place, t reflect.Type) {
	if t.Kind() == reflect.Pointer {
		c.pointer(at, t)
		return
	}
	if c.outer[t] > 0 {
		c.unsure = true // it contains itself, so a value may nest deeper than a codec reads
	}
	if v := (visit{t, at.addressable, at.optional}); !c.seen[v] {
		c.seen[v] = true
		c.outer[t]++
		c.checkNew(at, t)
		c.outer[t]--
	}
}

func (c *checker) pointer(at place, t reflect.Type) {
	at.pointers++
	if at.pointers > longestPointer {
		c.refuse(at, t.String()+" points to itself")
		return
	}
	at.addressable = true
	c.check(at, t.Elem())
}

func (c *checker) checkNew(at place, t reflect.Type) {
	if t != timeType && implements(reflect.PointerTo(t), append(c.rules.encoders(), c.rules.decoders()...)) {
		c.unsure = true
	}
	switch own := c.rules.own(t); {
	case own == byValue, own == byPointer && at.addressable:
		return
	case own == byPointer && c.rules == Msgpack:
		c.refuse(at, t.String()+" encodes itself with a method of its pointer, so a pointer is needed here")
		return
	case own == byPointer:
		c.lose(at, t.String()+" encodes itself with a method of its pointer, which is not called here: a pointer is needed")
	}
	switch t.Kind() {
	case reflect.Chan, reflect.Func, reflect.Complex64, reflect.Complex128, reflect.UnsafePointer, reflect.Uintptr:
		c.unsupported(at, t)
	case reflect.Interface:
		c.anything(at, t)
	case reflect.Slice:
		c.check(place{path: at.path + "[]", addressable: true}, t.Elem())
	case reflect.Array:
		c.array(at, t)
	case reflect.Map:
		c.dict(at, t)
	case reflect.Struct:
		c.structure(at, t)
	}
}

// unsupported refuses a kind that the codec has no encoder for.
func (c *checker) unsupported(at place, t reflect.Type) {
	if c.rules == JSON && t.Kind() == reflect.Uintptr || c.rules == Msgpack && registered(t) {
		return
	}
	c.refuse(at, t.String()+" cannot be encoded")
}

func (c *checker) anything(at place, t reflect.Type) {
	c.unsure = true
	switch {
	case t.NumMethod() == 0 && c.rules == JSON:
		c.lose(at, "an interface: its value is decoded as a map, slice, float64, string or bool")
	case t.NumMethod() == 0:
		c.lose(at, "an interface: a struct in it is decoded as a map, and other types may change")
	case c.rules == Msgpack && t == reflect.TypeFor[error]():
		c.lose(at, "an error is decoded with its text only")
	default:
		c.lose(at, t.String()+" is an interface with methods: a value with it set cannot be read back")
	}
}

func (c *checker) array(at place, t reflect.Type) {
	elem := t.Elem()
	if c.rules == Msgpack && !at.addressable && elem.Kind() == reflect.Uint8 && elem != reflect.TypeFor[byte]() && t.Len() > 0 {
		c.refuse(at, t.String()+" is an array of a byte type with a name, so a pointer or a slice is needed here")
		return
	}
	c.check(place{path: at.path + "[]", addressable: at.addressable}, elem)
}

func (c *checker) dict(at place, t reflect.Type) {
	if c.rules == JSON && !jsonKey(t.Key()) {
		c.refuse(place{path: at.path + "[key]"}, t.Key().String()+" cannot be the key of a JSON object")
	} else if c.rules == Msgpack || t.Key().Kind() != reflect.String {
		c.check(place{path: at.path + "[key]"}, t.Key())
	}
	c.check(place{path: at.path + "[]"}, t.Elem())
}

// jsonKey reports whether encoding/json writes and reads a map with keys of type t.
func jsonKey(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return true
	}
	text := len(jsonEncoders) - 1 // a key is a text
	return t.Implements(jsonEncoders[text]) && reflect.PointerTo(t).Implements(jsonDecoders[text])
}

func (c *checker) structure(at place, t reflect.Type) {
	fs := fieldsOf(t, c.rules)
	switch {
	case fs.opaque && c.rules == Msgpack && registered(t):
		return
	case fs.opaque && at.optional:
		c.lose(at, t.String()+" has no exported field, so all of it is lost unless it is nil")
		return
	case fs.opaque:
		c.refuse(at, t.String()+" has no exported field, so none of it is encoded")
		return
	}
	for _, p := range fs.refused {
		c.refused = append(c.refused, Problem{at.path + "." + p.Path, p.Why})
	}
	for _, p := range fs.lost {
		c.lost = append(c.lost, Problem{at.path + "." + p.Path, p.Why})
	}
	for _, f := range fs.list {
		c.check(place{
			path: at.path + "." + f.path, addressable: at.addressable || f.pointer,
			optional: f.typ.Kind() == reflect.Pointer,
		}, f.typ)
	}
}
