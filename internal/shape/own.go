package shape

import (
	"encoding"
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// The interfaces by which a type encodes or decodes itself.
var (
	jsonEncoders    = []reflect.Type{reflect.TypeFor[json.Marshaler](), reflect.TypeFor[encoding.TextMarshaler]()}
	jsonDecoders    = []reflect.Type{reflect.TypeFor[json.Unmarshaler](), reflect.TypeFor[encoding.TextUnmarshaler]()}
	msgpackEncoders = []reflect.Type{
		reflect.TypeFor[msgpack.CustomEncoder](), reflect.TypeFor[msgpack.Marshaler](),
		reflect.TypeFor[encoding.BinaryMarshaler](), reflect.TypeFor[encoding.TextMarshaler](),
	}
	msgpackDecoders = []reflect.Type{
		reflect.TypeFor[msgpack.CustomDecoder](), reflect.TypeFor[msgpack.Unmarshaler](),
		reflect.TypeFor[encoding.BinaryUnmarshaler](), reflect.TypeFor[encoding.TextUnmarshaler](),
	}
	allEncoders = slices.Concat(jsonEncoders, msgpackEncoders)
	allDecoders = slices.Concat(jsonDecoders, msgpackDecoders)
)

func (r Rules) encoders() []reflect.Type {
	return [...][]reflect.Type{Msgpack: msgpackEncoders, JSON: jsonEncoders, Other: allEncoders}[r]
}

func (r Rules) decoders() []reflect.Type {
	return [...][]reflect.Type{Msgpack: msgpackDecoders, JSON: jsonDecoders, Other: allDecoders}[r]
}

var timeType = reflect.TypeFor[time.Time]()

// An encoder says how a type encodes itself.
type encoder byte

const (
	noEncoder   encoder = iota
	byValue             // every value does
	byPointer           // only an addressable value does
	decoderOnly         // it has a decoder, and no encoder
)

// own returns how t encodes itself. For a pointer or an interface it returns noEncoder: only the
// value in it may encode itself.
func (r Rules) own(t reflect.Type) encoder {
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return noEncoder
	}
	pointer := reflect.PointerTo(t) // has the methods of t, too
	switch {
	case t == timeType || implements(t, r.encoders()):
		return byValue
	case implements(pointer, r.encoders()):
		return byPointer
	case implements(pointer, r.decoders()):
		return decoderOnly
	}
	return noEncoder
}

func implements(t reflect.Type, any []reflect.Type) bool {
	return slices.ContainsFunc(any, t.Implements)
}

// registered reports whether msgpack's registry has an encoder for t, which otherwise has no encoded
// parts. The registry cannot be read, so registered encodes a zero value.
func registered(t reflect.Type) (yes bool) {
	defer func() {
		if recover() != nil { // the encoder of an unsupported kind may be nil
			yes = false
		}
	}()
	// In a slice: msgpack remembers the encoder of a pointer to a type.
	b, err := msgpack.Marshal(reflect.MakeSlice(reflect.SliceOf(t), 1, 1).Interface())
	const emptyMap = "\x91\x80"
	return err == nil && string(b) != emptyMap
}

// local matches the suffix that the compiler adds to the name of a type declared in a function.
var local = regexp.MustCompile(`·\d+`)

// bare returns the name of a type without its type arguments.
func bare(name string) string {
	name, _, _ = strings.Cut(name, "[")
	return local.ReplaceAllString(name, "")
}

// nameOf returns the package path and name of a type. A vendored package has its own path.
func nameOf(t reflect.Type) string {
	path := t.PkgPath()
	if i := strings.LastIndex(path, "/vendor/"); i >= 0 {
		path = path[i+len("/vendor/"):]
	}
	return path + "." + bare(t.Name())
}
