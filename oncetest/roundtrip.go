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

// RoundTrip encodes v with codec, decodes the result, and returns an error that names what did
// not come back, each by its path: a field that is not encoded, a value of another type or
// content, a time in another location, a nil slice or map that is empty now or the reverse. It
// is nil if all of v came back. It also names what [fetchonce.New] refuses in V.
//
//	func TestOrderIsKept(t *testing.T) {
//		if err := oncetest.RoundTrip(fetchonce.Msgpack, fullOrder()); err != nil {
//			t.Error(err)
//		}
//	}
//
// Only what v has can be lost: set all its fields. A nil pointer or an empty slice says nothing of
// what may be behind it. Of a time, its monotonic clock is not compared. [fetchonce.Msgpack] keeps
// no location but time.Local. [fetchonce.JSON] keeps UTC; whether others come back depends on the
// machine's zone.
//
// A type with a method Equal is compared with that. A type that encodes itself is the same if
// it is encoded the same again. v must not contain itself. A [fetchonce.KeyCodec] gets the key
// "roundtrip".
func RoundTrip[V any](codec fetchonce.Codec, v V) error {
	if codec == nil {
		codec = fetchonce.Msgpack
	}
	if refused := refusedBy(codec, reflect.TypeFor[V]()); len(refused) > 0 {
		return fmt.Errorf("oncetest: the codec cannot keep a %s: %s", reflect.TypeFor[V](), shape.List(refused))
	}
	var read V
	data, err := marshal(codec, v)
	if err != nil {
		return fmt.Errorf("oncetest: the codec does not encode a %s: %w", reflect.TypeFor[V](), err)
	}
	if err := unmarshal(codec, data, &read); err != nil {
		return fmt.Errorf("oncetest: the codec does not read the %s that it wrote: %w", reflect.TypeFor[V](), err)
	}
	c := &comparison{codec: codec}
	c.compare(rootOf(reflect.TypeFor[V]()), reflect.ValueOf(&v).Elem(), reflect.ValueOf(&read).Elem())
	if len(c.found) > 0 {
		return fmt.Errorf("oncetest: not all of a %s came back: %s", reflect.TypeFor[V](), strings.Join(c.found, "; "))
	}
	return nil
}

// refusedBy returns what the codecs of fetchonce cannot encode.
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

// recovered makes a panic of a codec an error, as a Loader does.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("it panicked: %v", r)
	}
}

// rootOf returns the name with which paths begin: that of the type, as New says it.
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

// A comparison finds what a value and its copy do not have in common.
type comparison struct {
	codec fetchonce.Codec
	found []string
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
			c.report(path, "%v came back as %v", want, got)
		}
	}
}

// settled compares values whose type says how: times, types with a method Equal, and types that
// encode themselves. It reports false for all others.
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
			c.report(path, "%v came back as %v", want, got)
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
		c.report(path, "%v came back as %v", want, got)
	}
	return true
}

// address returns a pointer to a copy of v: its methods may need one.
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

// times compares two times. Their instants are the same, and their locations.
func (c *comparison) times(path string, want, got time.Time) {
	if !want.Equal(got) {
		c.report(path, "%v came back as %v", want, got)
	} else if was, is := want.Location(), got.Location(); was != is && (isOwn(was) || isOwn(is) || was.String() != is.String()) {
		c.report(path, "the location %q came back as %q", nameOf(was), nameOf(is))
	}
}

// isOwn reports whether a location is one of which there is one alone.
func isOwn(l *time.Location) bool { return l == time.UTC || l == time.Local }

// nameOf returns the name of a location. That of time.Local may be any.
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
		c.report(path, "%s came back as %s", state(want), state(got))
		return true
	}
	return false
}

// inside compares what pointers point to, and what interfaces hold.
func (c *comparison) inside(path string, want, got reflect.Value) {
	switch {
	case want.IsNil() && got.IsNil():
	case want.IsNil() || got.IsNil():
		c.report(path, "%s came back as %s", typeOf(want), typeOf(got))
	case want.Elem().Type() != got.Elem().Type():
		c.report(path, "%s came back as %s", want.Elem().Type(), got.Elem().Type())
	default:
		c.compare(path, want.Elem(), got.Elem())
	}
}

// typeOf returns the type of what a pointer or an interface has, or nil.
func typeOf(v reflect.Value) string {
	if v.IsNil() {
		return "nil"
	}
	return v.Elem().Type().String()
}

// fields compares the fields of a struct. Of an unexported one, only whether it was lost.
func (c *comparison) fields(path string, want, got reflect.Value) {
	for i := range want.NumField() {
		field := want.Type().Field(i)
		at := path + "." + field.Name
		switch was, is := want.Field(i), got.Field(i); {
		case field.Name == "_":
		case field.IsExported() || field.Anonymous && was.Kind() == reflect.Struct:
			c.compare(at, was, is)
		case !was.IsZero() && is.IsZero():
			c.report(at, "lost: it is not exported")
		}
	}
}

func (c *comparison) elements(path string, want, got reflect.Value) {
	if want.Len() != got.Len() {
		c.report(path, "%d elements came back as %d", want.Len(), got.Len())
		return
	}
	for i := range want.Len() {
		c.compare(fmt.Sprintf("%s[%d]", path, i), want.Index(i), got.Index(i))
	}
}

func (c *comparison) pairs(path string, want, got reflect.Value) {
	if want.Len() != got.Len() {
		c.report(path, "%d pairs came back as %d", want.Len(), got.Len())
		return
	}
	if k := want.Type().Key().Kind(); k == reflect.Pointer {
		return // another pointer is another key
	}
	for _, key := range want.MapKeys() {
		at := fmt.Sprintf("%s[%v]", path, key)
		if value := got.MapIndex(key); value.IsValid() {
			c.compare(at, want.MapIndex(key), value)
		} else {
			c.report(at, "the key did not come back")
		}
	}
}

// same compares two values of a kind without parts. A number that is none is the same as itself.
func same(want, got reflect.Value) bool {
	if k := want.Kind(); k == reflect.Float32 || k == reflect.Float64 {
		return want.Float() == got.Float() || want.Float() != want.Float() && got.Float() != got.Float()
	}
	return want.Comparable() && want.Equal(got)
}
