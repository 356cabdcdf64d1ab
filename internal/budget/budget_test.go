package budget_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce/internal/budget"
)

type product struct {
	ID, Stock   int
	Name, Brand string
	Tags        []string
	Attrs       map[string]string
	Prices      []price
	At          time.Time
	Parent      *product
	Big         [4]float64
}

type price struct {
	Currency string
	Amount   float64
	Note     *string
}

type (
	huge     [512]float64
	base     struct{ Tags []huge }
	embedder struct {
		*base
		Name string
	}
	doubled struct { // in JSON, a may be either
		A []string `json:"a"`
		B []huge   `json:"A"`
	}
	renamed struct {
		A []huge            `json:"x" msgpack:"x"`
		B map[string][]huge `json:",omitempty"`
		C []string          `json:"-" msgpack:"-"`
		D any
	}
	sequence struct{ A, B string }
)

func (s *sequence) DecodeMsgpack(d *msgpack.Decoder) error { return d.DecodeMulti(&s.A, &s.B) }

// targets are types to decode into.
var targets = []reflect.Type{
	reflect.TypeFor[[]int64](), reflect.TypeFor[[]int8](), reflect.TypeFor[[]string](), reflect.TypeFor[string](), reflect.TypeFor[[]byte](),
	reflect.TypeFor[any](), reflect.TypeFor[map[string]any](), reflect.TypeFor[[]any](), reflect.TypeFor[[][]string](),
	reflect.TypeFor[map[string]string](), reflect.TypeFor[map[string]int8](), reflect.TypeFor[map[string]map[string]string](),
	reflect.TypeFor[map[int]huge](), reflect.TypeFor[map[string]*huge](), reflect.TypeFor[[]map[string]huge](),
	reflect.TypeFor[product](), reflect.TypeFor[[]product](), reflect.TypeFor[[]*product](), reflect.TypeFor[map[string]*product](),
	reflect.TypeFor[[]*huge](), reflect.TypeFor[[]huge](), reflect.TypeFor[[]*int](), reflect.TypeFor[[]**string](),
	reflect.TypeFor[[]embedder](), reflect.TypeFor[[]doubled](), reflect.TypeFor[[]renamed](), reflect.TypeFor[[]*big.Int](),
	reflect.TypeFor[[]*sequence](), reflect.TypeFor[[]struct{}](), reflect.TypeFor[[3][]huge](),
}

// elements are what hostile data consists of, in JSON.
var elements = []string{
	`null`, `0`, `""`, `"a"`, `[]`, `{}`, `[null]`, `[0,0]`, `{"a":null}`, `{"a":[]}`, `{"A":[[]]}`, `{"x":[null,null]}`, `{"":""}`, `{"1":[]}`,
	`{"Name":"a","Tags":["",""],"Prices":[{},{},null]}`, `{"Tags":[[],[],[]]}`, `{"\u0061":[[],[]]}`, `{"Parent":{"Parent":{}}}`,
	`{"Attrs":{"a":"b","c":"d"}}`, `{"Prices":[{"Note":""},{"Note":""}]}`, `{"D":[{},[],"a",0]}`, `{"B":{"a":[[],[]]}}`,
	`{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0,"g":0,"h":0,"i":0}`, `[{"a":"b"},{"a":"b"}]`, `[[],[],[]]`, `"` + strings.Repeat("long", 20) + `"`,
}

// hostile returns data that repeats an element n times, as an array and as an object,
// in JSON and in msgpack.
func hostile(t *testing.T, element string, n int) (inJSON, inMsgpack [][]byte) {
	t.Helper()
	object := make([]string, n)
	for i := range object {
		object[i] = fmt.Sprintf(`"%d":%s`, i, element)
	}
	for _, text := range []string{
		"[" + strings.Repeat(element+",", n) + element + "]", "{" + strings.Join(object, ",") + "}",
		`{"Tags":[` + strings.Repeat(element+",", n) + element + `]}`,
	} {
		var v any
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		data, err := msgpack.Marshal(compact(v))
		if err != nil {
			t.Fatal(err)
		}
		inJSON, inMsgpack = append(inJSON, []byte(text)), append(inMsgpack, data)
	}
	return inJSON, inMsgpack
}

// compact makes whole numbers integers, which take a byte in msgpack.
func compact(v any) any {
	switch v := v.(type) {
	case float64:
		return int8(v)
	case []any:
		for i := range v {
			v[i] = compact(v[i])
		}
	case map[string]any:
		for key := range v {
			v[key] = compact(v[key])
		}
	}
	return v
}

// made returns how many bytes f allocates.
func made(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// What a decoder allocates, the freed included, is at most the estimate, for whatever
// data and type; and no byte costs more than the worst.
//
//test:long
func TestEstimateIsAnUpperBound(t *testing.T) {
	const n = 300
	for _, element := range elements {
		inJSON, inMsgpack := hostile(t, element, n)
		for _, target := range targets {
			for i := range inJSON {
				wantBound(t, target, true, inJSON[i], json.Unmarshal)
				wantBound(t, target, false, inMsgpack[i], msgpack.Unmarshal)
			}
		}
	}
}

func wantBound(t *testing.T, target reflect.Type, isJSON bool, data []byte, decode func([]byte, any) error) {
	t.Helper()
	const slack = 24 << 10 // the decoder itself
	b := budget.New(target, isJSON, 1)
	spent := b.Spent(data)
	once := func() int64 {
		v := reflect.New(target).Interface()
		return made(func() {
			defer func() { _ = recover() }() // msgpack panics on an embedded pointer to an unexported type
			_ = decode(data, v)
		})
	}
	took := once()
	if took > spent+slack {
		took = once() // the first time, the decoder may have learned new types
	}
	if took > spent+slack {
		t.Errorf("%v from %d bytes of %.40q: %d bytes were allocated, the estimate is %d", target, len(data), data, took, spent)
	}
	if most := b.Worst() * int64(len(data)); spent > most {
		t.Errorf("%v from %d bytes of %.40q: the estimate is %d, more than the worst, %d", target, len(data), data, spent, most)
	}
}

// An ordinary value is far from the limit, and a hostile one beyond it.
//
//test:long
func TestOrdinaryValuesFit(t *testing.T) {
	note := "a note"
	ordinary := make([]*product, 4_000)
	for i := range ordinary {
		ordinary[i] = &product{
			ID: i, Name: fmt.Sprint("product ", i), Tags: []string{"new", "sale"}, Attrs: map[string]string{"colour": "red", "size": "xl"},
			Prices: []price{{"EUR", rand.Float64(), &note}, {"USD", 1, nil}}, At: time.Unix(int64(i), 0),
		}
	}
	for _, codec := range []struct {
		json      bool
		marshal   func(any) ([]byte, error)
		unmarshal func([]byte, any) error
		hostile   string
	}{
		{true, json.Marshal, json.Unmarshal, "[" + strings.Repeat("{},", 1<<19-1) + "{}]"},
		{false, msgpack.Marshal, msgpack.Unmarshal, "\xdd\x00\x0f\xff\xf0" + strings.Repeat("\x80", 1<<20-16)},
	} {
		data, err := codec.marshal(ordinary)
		if err != nil {
			t.Fatal(err)
		}
		b := budget.New(reflect.TypeFor[[]*product](), codec.json, len(data))
		if err := b.Check(data); err != nil {
			t.Errorf("JSON %t, %d bytes: Check = %v; want nil", codec.json, len(data), err)
		}
		t.Logf("JSON %t: ordinary products are estimated at %d bytes for each of data", codec.json, b.Spent(data)/int64(len(data)))
		bad := []byte(codec.hostile)
		b = budget.New(reflect.TypeFor[[]*product](), codec.json, len(bad))
		if err := b.Check(bad); !errors.Is(err, budget.ErrMemory) {
			t.Errorf("JSON %t, %d hostile bytes: Check = %v; want ErrMemory", codec.json, len(bad), err)
		}
		took := made(func() { _ = codec.unmarshal(bad, new([]*product)) })
		t.Logf("JSON %t: without Check, %d hostile bytes become %d, %d for each", codec.json, len(bad), took, took/int64(len(bad)))
	}
}

// Data that is no JSON or msgpack is left to the decoder, and nothing panics on it.
func FuzzCheck(f *testing.F) {
	for _, element := range elements {
		f.Add([]byte("[" + element + "]"))
	}
	f.Add([]byte("\x92\x80\x91\xc0"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, target := range targets {
			for _, isJSON := range []bool{true, false} {
				_ = budget.New(target, isJSON, 1).Check([]byte(strings.Repeat(string(data), 3)))
				padded := append([]byte{}, data...)
				for len(padded) < 16<<10 && isJSON { // so that it is walked over
					padded = append(padded, ' ')
				}
				_ = budget.New(target, isJSON, 1).Check(padded)
			}
		}
	})
}

// The capacity that append gives a slice of bytes is what the allocator takes.
func TestAllocatedIsAnUpperBound(t *testing.T) {
	for n := int64(1); n <= 1<<16; n += 1 + n/64 {
		took := int64(cap(append([]byte(nil), make([]byte, n)...)))
		if got := budget.Allocated(n); got < took || got > 2*took {
			t.Fatalf("allocated(%d) = %d; the allocator takes %d", n, got, took)
		}
	}
}
