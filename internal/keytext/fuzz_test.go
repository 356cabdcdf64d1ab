package keytext_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/keytext"
)

// A maker makes types and values out of choices. There are few for each, so that
// many values are the same, or nearly.
type maker struct {
	choose func(n int) int // below n
}

var (
	plainTypes = []reflect.Type{
		reflect.TypeFor[string](), reflect.TypeFor[int](), reflect.TypeFor[bool](), reflect.TypeFor[any](),
		reflect.TypeFor[int64](), reflect.TypeFor[uint8](), reflect.TypeFor[float64](), reflect.TypeFor[float32](),
		reflect.TypeFor[id](), reflect.TypeFor[name](), reflect.TypeFor[secret](), reflect.TypeFor[complex64](),
		reflect.TypeFor[query](), reflect.TypeFor[tree](), reflect.TypeFor[box[any]](), reflect.TypeFor[box[id]](),
		reflect.TypeFor[time.Time](), reflect.TypeFor[stamp](), reflect.TypeFor[time.Duration](), reflect.TypeFor[stringer](),
	}
	keyTypes = plainTypes[:3] // of maps
	pieces   = []string{"", "a", "b", `"`, `\`, ",", ":", ")", "]", "nil", "1", "é", "\xc3", "\x00", "~", `\u00e9`, "0x61", " ", "\ufffd"}
	floats   = []float64{0, math.Copysign(0, -1), 1, 1.5, math.NaN(), math.Inf(1), 1e21, 0.1}
	zones    = []*time.Location{time.UTC, time.FixedZone("A", 3600), time.FixedZone("B", 3600), time.FixedZone("A", 3601)}
)

func (m maker) args() (args []any) {
	for range m.choose(4) {
		args = append(args, m.value(reflect.TypeFor[any](), 5).Interface())
	}
	return args
}

func (m maker) typ(depth int) reflect.Type {
	if depth <= 0 || m.choose(3) > 0 {
		return plainTypes[m.choose(len(plainTypes))]
	}
	switch m.choose(5) {
	case 0:
		return reflect.SliceOf(m.typ(depth - 1))
	case 1:
		return reflect.ArrayOf(m.choose(3), m.typ(depth-1))
	case 2:
		return reflect.PointerTo(m.typ(depth - 1))
	case 3:
		return reflect.MapOf(keyTypes[m.choose(len(keyTypes))], m.typ(depth-1))
	}
	var fields []reflect.StructField
	pkg := []string{"p", "q"}[m.choose(2)]
	for i := range m.choose(3) {
		f := reflect.StructField{Name: string(rune('A' + i + m.choose(2)*10)), Type: m.typ(depth - 1)}
		if m.choose(2) == 0 {
			f.Name, f.PkgPath = string(rune('a'+i)), pkg
		}
		if m.choose(4) == 0 {
			f.Tag = reflect.StructTag(pieces[m.choose(len(pieces))])
		}
		fields = append(fields, f)
	}
	return reflect.StructOf(fields)
}

// value returns a value of a type, which is addressable.
func (m maker) value(t reflect.Type, depth int) reflect.Value {
	v := reflect.New(t).Elem()
	m.fill(v, depth)
	return v
}

func (m maker) fill(v reflect.Value, depth int) {
	empty := depth <= 0 || m.choose(4) == 0
	switch v.Type() {
	case reflect.TypeFor[time.Time](), reflect.TypeFor[stamp]():
		at := time.Unix(int64(m.choose(2)), int64(m.choose(2))).In(zones[m.choose(len(zones))])
		v.Set(reflect.ValueOf(at).Convert(v.Type()))
		return
	case reflect.TypeFor[stringer]():
		some := []stringer{nil, secret("x"), time.Duration(1), time.Duration(2)}
		v.Set(reflect.ValueOf(some).Index(m.choose(len(some))))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(m.choose(2) == 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(m.choose(3)))
	case reflect.Uint8:
		v.SetUint([]uint64{0, 'a', 0xff}[m.choose(3)])
	case reflect.Float32, reflect.Float64:
		v.SetFloat(floats[m.choose(len(floats))])
	case reflect.Complex64:
		v.SetComplex(complex(floats[m.choose(3)], floats[m.choose(3)]))
	case reflect.String:
		for range m.choose(3) {
			v.SetString(v.String() + pieces[m.choose(len(pieces))])
		}
	case reflect.Array:
		for i := range v.Len() {
			m.fill(v.Index(i), depth-1)
		}
	case reflect.Struct:
		for _, f := range v.Fields() {
			m.fill(reflect.NewAt(f.Type(), f.Addr().UnsafePointer()).Elem(), depth-1)
		}
	case reflect.Slice:
		if !empty {
			n := m.choose(3)
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				m.fill(v.Index(i), depth-1)
			}
		}
	case reflect.Map:
		if !empty {
			v.Set(reflect.MakeMap(v.Type()))
			for range m.choose(3) {
				v.SetMapIndex(m.value(v.Type().Key(), depth-1), m.value(v.Type().Elem(), depth-1))
			}
		}
	case reflect.Pointer:
		if !empty {
			v.Set(m.value(v.Type().Elem(), depth-1).Addr())
		}
	case reflect.Interface:
		if !empty {
			v.Set(m.value(m.typ(depth-1), depth-1))
		}
	default:
		panic(v.Type().String())
	}
}

// same reports whether two values are of the same type and the same, in all that
// is to count.
func same(a, b reflect.Value) bool {
	switch {
	case a.IsValid() != b.IsValid() || a.IsValid() && a.Type() != b.Type():
		return false
	case !a.IsValid():
		return true
	}
	if t := reflect.TypeFor[time.Time](); a.Type().ConvertibleTo(t) && a.Kind() == reflect.Struct {
		x, y := a.Convert(t).Interface().(time.Time), b.Convert(t).Interface().(time.Time)
		_, offset := x.Zone()
		_, offsetY := y.Zone()
		return x.Equal(y) && x.Location().String() == y.Location().String() && offset == offsetY
	}
	switch a.Kind() {
	case reflect.Float32, reflect.Float64:
		return sameFloat(a.Float(), b.Float())
	case reflect.Complex64:
		return sameFloat(real(a.Complex()), real(b.Complex())) && sameFloat(imag(a.Complex()), imag(b.Complex()))
	case reflect.Interface, reflect.Pointer:
		return same(a.Elem(), b.Elem())
	case reflect.Slice, reflect.Array:
		if a.Len() != b.Len() || a.Kind() == reflect.Slice && a.IsNil() != b.IsNil() {
			return false
		}
		for i := range a.Len() {
			if !same(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		if a.Len() != b.Len() || a.IsNil() != b.IsNil() {
			return false
		}
		for all := a.MapRange(); all.Next(); {
			if in := b.MapIndex(all.Key()); !in.IsValid() || !same(all.Value(), in) {
				return false
			}
		}
		return true
	case reflect.Struct:
		for i := range a.NumField() {
			if a.Type().Field(i).Name != "_" && !same(field(a, i), field(b, i)) {
				return false
			}
		}
		return true
	}
	return a.Equal(b)
}

// field returns a field, which may be looked at even if it is not exported.
func field(v reflect.Value, i int) reflect.Value {
	c := reflect.New(v.Type()).Elem()
	c.Set(v)
	return reflect.NewAt(c.Field(i).Type(), c.Field(i).Addr().UnsafePointer()).Elem()
}

func sameFloat(a, b float64) bool {
	return math.Float64bits(a) == math.Float64bits(b) || math.IsNaN(a) && math.IsNaN(b)
}

func sameArgs(a, b []any) bool {
	return same(reflect.ValueOf(append([]any{}, a...)), reflect.ValueOf(append([]any{}, b...)))
}

// Values are equal if and only if their texts are. Many of the values are equal.
func TestTextsAreInjective(t *testing.T) {
	for _, seed := range []uint64{1, 2} {
		seen := map[string][]any{}
		again := 0
		for i := range 20_000 {
			m, twin := rand.New(rand.NewPCG(seed, uint64(i))), rand.New(rand.NewPCG(seed, uint64(i)))
			args, equal := maker{m.IntN}.args(), maker{twin.IntN}.args()
			text := textOf(t, args)
			if other := textOf(t, equal); other != text {
				t.Fatalf("seed %d: %s and %s are texts of the same %#v", seed, text, other, args)
			}
			if before, ok := seen[text]; ok {
				again++
				if !sameArgs(before, args) {
					t.Fatalf("seed %d: %s is the text of %#v and of %#v", seed, text, before, args)
				}
			}
			seen[text] = args
		}
		if again < 1000 || len(seen) < 5000 {
			t.Errorf("seed %d: %d texts, of which %d came again: that shows little", seed, len(seen), again)
		}
	}
}

func textOf(t *testing.T, args []any) string {
	t.Helper()
	text, err := keytext.Of(args...)
	if err != nil {
		t.Fatalf("Of(%#v): %v", args, err)
	}
	for _, c := range []byte(text) {
		if c < ' ' || c > '~' {
			t.Fatalf("there is a byte %#x in %q", c, text)
		}
	}
	return text
}

// FuzzTexts makes two lists of arguments out of bytes. Their texts are the same
// if, and only if, they are.
func FuzzTexts(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for n := range 40 {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data, data)
		f.Add(data, append([]byte{}, data[:n/2]...))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		from := func(data []byte) maker {
			return maker{func(n int) int {
				if len(data) == 0 {
					return 0
				}
				c := int(data[0]) % n
				data = data[1:]
				return c
			}}
		}
		x, y := from(a).args(), from(b).args()
		if s, u := textOf(t, x), textOf(t, y); (s == u) != sameArgs(x, y) {
			t.Errorf("%s and %s are the texts of %s and %s", s, u, fmt.Sprintf("%#v", x), fmt.Sprintf("%#v", y))
		}
	})
}
