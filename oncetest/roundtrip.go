package oncetest

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/shape"
)

// RoundTrip encodes v with codec, decodes the result and compares it with v. It returns nil if
// they are equal, else an error that lists each difference by its path, such as
// "Order.Lines[0].At". A nil codec is [fetchonce.Msgpack].
//
//	func TestOrderIsKept(t *testing.T) {
//		if err := oncetest.RoundTrip(fetchonce.Msgpack, fullOrder()); err != nil {
//			t.Error(err)
//		}
//	}
//
// Differences are a field that is not encoded, another value or dynamic type, a time in another
// location, and a nil slice or map that becomes empty, or an empty one that becomes nil. The
// error also lists what [fetchonce.New] refuses in V, and reports a codec that fails or panics.
//
// Set every field of v: a zero field, a nil pointer and an empty slice show no loss. v must not
// contain itself.
//
// A type with a method Equal is compared by that method. A type that encodes itself is compared
// by its encoding. Monotonic clock readings are not compared. [fetchonce.Msgpack] decodes times
// in time.Local. [fetchonce.JSON] keeps UTC; other locations depend on the machine's time zone.
// A [fetchonce.KeyCodec] receives the key "roundtrip".
func RoundTrip[V any](codec fetchonce.Codec, v V) error {
	if codec == nil {
		codec = fetchonce.Msgpack
	}
	if refused := refusedBy(codec, reflect.TypeFor[V]()); len(refused) > 0 {
		return fmt.Errorf("oncetest: the codec cannot encode all of a %s: %s", reflect.TypeFor[V](), shape.List(refused))
	}
	var read V
	data, err := marshal(codec, v)
	if err != nil {
		return fmt.Errorf("oncetest: encode a %s: %w", reflect.TypeFor[V](), err)
	}
	if err := unmarshal(codec, data, &read); err != nil {
		return fmt.Errorf("oncetest: decode an encoded %s: %w", reflect.TypeFor[V](), err)
	}
	c := &comparison{codec: codec}
	c.compare(rootOf(reflect.TypeFor[V]()), reflect.ValueOf(&v).Elem(), reflect.ValueOf(&read).Elem())
	if len(c.found) > 0 {
		return fmt.Errorf("oncetest: a decoded %s differs: %s", reflect.TypeFor[V](), strings.Join(c.found, "; "))
	}
	return nil
}

// refusedBy returns the parts of t that codec cannot encode, if codec is one of fetchonce.
func refusedBy(codec fetchonce.Codec, t reflect.Type) []shape.Problem {
	switch codec {
	case fetchonce.Msgpack:
		return shape.Of(t, shape.Msgpack).Refused
	case fetchonce.JSON:
		return shape.Of(t, shape.JSON).Refused
	}
	return nil
}

const roundTripKey = "roundtrip"

func marshal(codec fetchonce.Codec, v any) (data []byte, err error) {
	defer recovered(&err)
	if k, ok := codec.(fetchonce.KeyCodec); ok {
		return k.MarshalKey(roundTripKey, v)
	}
	return codec.Marshal(v)
}

func unmarshal(codec fetchonce.Codec, data []byte, v any) (err error) {
	defer recovered(&err)
	if k, ok := codec.(fetchonce.KeyCodec); ok {
		return k.UnmarshalKey(roundTripKey, data, v)
	}
	return codec.Unmarshal(data, v)
}

// recovered turns a panic of a codec into an error, as a Loader does.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("the codec panicked: %v", r)
	}
}

// rootOf returns the first word of every path: the type's name, as in the errors of New.
func rootOf(t reflect.Type) string {
	for t.Kind() == reflect.Pointer && t.Name() == "" {
		t = t.Elem()
	}
	name, _, _ := strings.Cut(t.Name(), "[")
	if name == "" {
		return "V"
	}
	return name
}

// A comparison collects the differences between a value and its decoded copy.
type comparison struct {
	codec fetchonce.Codec
	found []string // each difference, with its path
}

func (c *comparison) report(path, format string, args ...any) {
	c.found = append(c.found, path+": "+fmt.Sprintf(format, args...))
}

var timeType = reflect.TypeFor[time.Time]()

// compare compares two values of one type.
func (c *comparison) compare(path string, want, got reflect.Value) {
	if want.CanInterface() && c.settled(path, want, got) {
		return
	}
	switch want.Kind() {
	case reflect.Pointer, reflect.Interface:
		c.inside(path, want, got)
	case reflect.Struct:
		c.fields(path, want, got)
	case reflect.Slice:
		if !c.differInNil(path, want, got) {
			c.elements(path, want, got)
		}
	case reflect.Array:
		c.elements(path, want, got)
	case reflect.Map:
		if !c.differInNil(path, want, got) {
			c.pairs(path, want, got)
		}
	default:
		if !same(want, got) {
			c.report(path, "%v became %v", want, got)
		}
	}
}

// settled compares values whose type decides how: times, types with a method Equal, and types
// that encode themselves. It reports false for all others, and compares nothing then.
func (c *comparison) settled(path string, want, got reflect.Value) bool {
	t := want.Type()
	if t == timeType {
		c.times(path, want.Interface().(time.Time), got.Interface().(time.Time))
		return true
	}
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return false
	}
	if equal, ok := t.MethodByName("Equal"); ok && equal.Type.NumIn() == 2 && equal.Type.In(1) == t &&
		equal.Type.NumOut() == 1 && equal.Type.Out(0).Kind() == reflect.Bool {
		if !equal.Func.Call([]reflect.Value{want, got})[0].Bool() {
			c.report(path, "%v became %v", want, got)
		}
		return true
	}
	if !encodesItself(t) {
		return false
	}
	if reflect.DeepEqual(want.Interface(), got.Interface()) {
		return true
	}
	first, err := marshal(c.codec, address(want))
	second, again := marshal(c.codec, address(got))
	if err != nil || again != nil || !bytes.Equal(first, second) {
		c.report(path, "%v became %v", want, got)
	}
	return true
}

// address returns a pointer to a copy of v, which has all methods of the type.
func address(v reflect.Value) any {
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	return p.Interface()
}

// encodesItself reports whether t has one of the methods by which codecs let a type encode itself.
func encodesItself(t reflect.Type) bool {
	for _, name := range []string{"EncodeMsgpack", "MarshalMsgpack", "MarshalJSON", "MarshalBinary", "MarshalText", "GobEncode"} {
		if _, ok := reflect.PointerTo(t).MethodByName(name); ok {
			return true
		}
	}
	return false
}

// times compares the instants and the locations of two times.
func (c *comparison) times(path string, want, got time.Time) {
	if !want.Equal(got) {
		c.report(path, "%v became %v", want, got)
	} else if was, is := want.Location(), got.Location(); was != is && (isOwn(was) || isOwn(is) || was.String() != is.String()) {
		c.report(path, "the location %q became %q", nameOf(was), nameOf(is))
	}
}

// isOwn reports whether l is time.UTC or time.Local, which are compared by pointer.
func isOwn(l *time.Location) bool { return l == time.UTC || l == time.Local }

// nameOf returns the name of a location. The String method of time.Local may return any name.
func nameOf(l *time.Location) string {
	if l == time.Local {
		return "Local"
	}
	return l.String()
}

// differInNil reports whether one of two slices or maps is nil and the other is not.
func (c *comparison) differInNil(path string, want, got reflect.Value) bool {
	state := func(v reflect.Value) string {
		if v.IsNil() {
			return "nil"
		}
		return fmt.Sprintf("a %s of %d", v.Kind(), v.Len())
	}
	if want.IsNil() != got.IsNil() {
		c.report(path, "%s became %s", state(want), state(got))
		return true
	}
	return false
}

// inside compares the values in two pointers or interfaces.
func (c *comparison) inside(path string, want, got reflect.Value) {
	switch {
	case want.IsNil() && got.IsNil():
	case want.IsNil() || got.IsNil():
		c.report(path, "%s became %s", typeOf(want), typeOf(got))
	case want.Elem().Type() != got.Elem().Type():
		c.report(path, "%s became %s", want.Elem().Type(), got.Elem().Type())
	default:
		c.compare(path, want.Elem(), got.Elem())
	}
}

// typeOf returns the type of the value in a pointer or interface, or "nil".
func typeOf(v reflect.Value) string {
	if v.IsNil() {
		return "nil"
	}
	return v.Elem().Type().String()
}

// fields compares the fields of two structs. For an unexported field, it only checks that a
// value did not become zero.
func (c *comparison) fields(path string, want, got reflect.Value) {
	for i := range want.NumField() {
		field := want.Type().Field(i)
		at := path + "." + field.Name
		switch was, is := want.Field(i), got.Field(i); {
		case field.Name == "_":
		case field.IsExported() || field.Anonymous && was.Kind() == reflect.Struct:
			c.compare(at, was, is)
		case !was.IsZero() && is.IsZero():
			c.report(at, "lost: the field is not exported")
		}
	}
}

func (c *comparison) elements(path string, want, got reflect.Value) {
	if want.Len() != got.Len() {
		c.report(path, "%d elements became %d", want.Len(), got.Len())
		return
	}
	for i := range want.Len() {
		c.compare(fmt.Sprintf("%s[%d]", path, i), want.Index(i), got.Index(i))
	}
}

func (c *comparison) pairs(path string, want, got reflect.Value) {
	if want.Len() != got.Len() {
		c.report(path, "%d pairs became %d", want.Len(), got.Len())
		return
	}
	if k := want.Type().Key().Kind(); k == reflect.Pointer {
		return // decoded pointers are never equal
	}
	for _, key := range want.MapKeys() {
		at := fmt.Sprintf("%s[%v]", path, key)
		if value := got.MapIndex(key); value.IsValid() {
			c.compare(at, want.MapIndex(key), value)
		} else {
			c.report(at, "the key is missing")
		}
	}
}

// same compares two values of a kind without parts. NaN equals NaN.
func same(want, got reflect.Value) bool {
	if k := want.Kind(); k == reflect.Float32 || k == reflect.Float64 {
		return want.Float() == got.Float() || want.Float() != want.Float() && got.Float() != got.Float()
	}
	return want.Comparable() && want.Equal(got)
}
