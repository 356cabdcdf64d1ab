package budget

import (
	"cmp"
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/vmihailenco/msgpack/v5"
)

// A shape says what a codec allocates for a value of a Go type.
type shape struct {
	kind  kind
	size  int64 // of a value of the type
	alloc int64 // allocated for the value itself: a pointer's target, embedded pointers
	elem  *shape
	key   *shape

	per   int64 // for each element of a slice
	group int64 // for eight slots of a map
	pair  int64 // for each pair of a map, besides its slots

	fields map[string]*shape // of a struct, by name
	list   []*shape          // in order; nil if the position does not identify a field
}

type kind byte

const (
	number kind = iota // allocates nothing, like a boolean
	boolean
	text
	opaque    // decodes itself
	pointer   // alloc is that of its target, and elem the shape of the target
	slice     // of elem
	array     // of elem, without an allocation
	dict      // a map of key and elem
	structure // of fields
	anything  // an empty interface
	wild      // unknown: costs as much as the most expensive part of the type
)

// shapes has the shape of each type.
type shapes struct {
	json bool
	tag  string
	all  map[reflect.Type]*shape
	wild *shape // of unknown values; price sets its costs
}

func newShapes(json bool) *shapes {
	s := &shapes{json: json, tag: "msgpack", all: make(map[reflect.Type]*shape), wild: &shape{kind: wild}}
	if json {
		s.tag = "json"
	}
	s.wild.elem, s.wild.key = s.wild, s.wild
	return s
}

// of returns the shape of t.
func (s *shapes) of(t reflect.Type) *shape {
	if made := s.all[t]; made != nil {
		return made
	}
	made := &shape{size: int64(t.Size())}
	s.all[t] = made
	if s.decodesItself(t) {
		made.kind = opaque
		return made
	}
	switch t.Kind() {
	case reflect.Bool:
		made.kind = boolean
	case reflect.String:
		made.kind = text
	case reflect.Interface:
		made.kind = anything
	case reflect.Pointer:
		made.kind, made.elem, made.alloc = pointer, s.of(t.Elem()), allocated(int64(t.Elem().Size()))
	case reflect.Slice:
		if t.Elem().Kind() != reflect.Uint8 || s.json {
			made.kind, made.elem = slice, s.of(t.Elem())
		}
	case reflect.Array:
		if t.Elem().Kind() != reflect.Uint8 || s.json {
			made.kind, made.elem = array, s.of(t.Elem())
		}
	case reflect.Map:
		made.kind, made.key, made.elem = dict, s.of(t.Key()), s.of(t.Elem())
	case reflect.Struct:
		made.kind, made.fields = structure, make(map[string]*shape)
		s.addFields(made, t, map[reflect.Type]bool{t: true})
	}
	return made
}

// addFields adds the fields of t and of the structs that it embeds. outer has the types that t is
// embedded in.
func (s *shapes) addFields(to *shape, t reflect.Type, outer map[reflect.Type]bool) {
	simple := len(outer) == 1
	for field := range t.Fields() {
		names, decoded := s.namesOf(field)
		if !decoded {
			continue
		}
		inner := field.Type
		if field.Anonymous && inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
			to.alloc += allocated(int64(inner.Size()))
		}
		if field.Anonymous && inner.Kind() == reflect.Struct && !outer[inner] {
			simple = false
			outer[inner] = true
			s.addFields(to, inner, outer)
			delete(outer, inner)
		}
		to.list = append(to.list, s.of(field.Type))
		for _, name := range names {
			s.addField(to, name, s.of(field.Type))
		}
	}
	if !simple {
		to.list = nil
	}
}

// addField adds a field. If two fields have the same name, their shape is unknown.
func (s *shapes) addField(to *shape, name string, field *shape) {
	if s.json {
		name = strings.ToLower(name)
	}
	if other := to.fields[name]; other != nil && other != field {
		field = s.wild
	}
	to.fields[name] = field
}

// namesOf returns the name of a field in the data and its aliases, or false if the field is
// never decoded.
func (s *shapes) namesOf(field reflect.StructField) ([]string, bool) {
	tag := field.Tag.Get(s.tag)
	name, _, _ := strings.Cut(tag, ",")
	if tag == "-" || !s.json && name == "-" || !field.IsExported() && !field.Anonymous {
		return nil, false
	}
	names := []string{cmp.Or(name, field.Name)}
	for option := range strings.SplitSeq(tag, ",") {
		if alias, ok := strings.CutPrefix(option, "alias:"); ok && !s.json {
			names = append(names, alias)
		}
	}
	return names, true
}

// The interfaces by which a type decodes itself.
var (
	customJSON    = []reflect.Type{reflect.TypeFor[json.Unmarshaler](), reflect.TypeFor[encoding.TextUnmarshaler]()}
	customMsgpack = []reflect.Type{
		reflect.TypeFor[msgpack.CustomDecoder](), reflect.TypeFor[msgpack.Unmarshaler](),
		reflect.TypeFor[encoding.BinaryUnmarshaler](), reflect.TypeFor[encoding.TextUnmarshaler](),
	}
)

func (s *shapes) decodesItself(t reflect.Type) bool {
	if t.Kind() == reflect.Interface || t.Kind() == reflect.Pointer {
		return false // what it points to may
	}
	custom := customMsgpack
	if s.json {
		custom = customJSON
	}
	return slices.ContainsFunc(custom, func(i reflect.Type) bool {
		return t.Implements(i) || reflect.PointerTo(t).Implements(i)
	})
}

// allocated returns an upper bound of what the allocator uses for n bytes. Its size classes are
// multiples of 8, and above 32 bytes at most a quarter larger than n.
func allocated(n int64) int64 { return (n + n/4 + 15) &^ 15 }

// A slot of a Go map holds a key or value of up to inMap bytes. A larger one is allocated by
// itself.
const (
	inMap     = 128
	mapHeader = 48
)

// price sets what the parts of each shape cost, and the most for the unknown shape.
func (s *shapes) price() {
	growth := int64(2) // msgpack allocates the elements twice
	if s.json {
		growth = 5 // append, from nothing to many
	}
	s.wild.per, s.wild.size = growth*wordsOfAny, wordsOfAny
	for _, made := range s.all {
		switch made.kind {
		case slice:
			made.per = growth * max(made.elem.size, 1)
		case dict:
			made.priceMap(made.key.size, made.elem.size)
		case anything:
			made.elem, made.key = made, made
			made.per = growth * wordsOfAny
			made.priceMap(wordsOfAny, wordsOfAny)
		}
		s.wild.per = max(s.wild.per, made.per)
		s.wild.group = max(s.wild.group, made.group)
		s.wild.pair = max(s.wild.pair, made.pair)
		s.wild.alloc = max(s.wild.alloc, made.chain())
	}
}

// wordsOfAny is the size of an interface, and of a string.
const wordsOfAny = 16

func (sh *shape) priceMap(key, value int64) {
	slot := func(n int64) int64 {
		if n > inMap {
			sh.pair += allocated(n)
			return 8
		}
		return n
	}
	sh.group = 8*(slot(key)+slot(value)) + 8
	sh.pair += allocated(key) + allocated(value) // each is decoded by itself first
}

// chain returns what a value of the shape allocates, without its parts.
func (sh *shape) chain() (n int64) {
	for range 100 { // a pointer type may point to itself
		n += sh.alloc
		if sh.kind != pointer {
			break
		}
		sh = sh.elem
	}
	return n
}
