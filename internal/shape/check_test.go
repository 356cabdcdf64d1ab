package shape_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce/internal/shape"
)

type (
	closed struct{ a, b int } // no field is exported
	status int
	octet  byte

	Base struct{ ID int }
	base struct{ ID int }

	Self    struct{ *Self }
	ring    *ring
	Order   struct{ Items []item }
	item    struct{ Done chan struct{} }
	partial struct {
		A int
		b int
	}
	withMutex struct {
		sync.Mutex
		A int
	}
	withBase struct {
		Base
		Name string
	}
	withUnexported struct {
		base
		Name string
	}
	withPointer struct {
		*base
		Name string
	}
	withStatus struct {
		status
		Name string
	}
	hidden struct {
		Base
		ID string
	}
	hiddenSame struct {
		Base
		ID int
	}
	node struct {
		Name string
		Next *node
	}
	forest map[string]forest
	page   struct{ Link *url.URL }
	user   struct{ Name *url.Userinfo }
	sum    struct{ Total big.Int }
	sums   struct{ Total *big.Int }
	octets struct{ Sum [4]octet }
	intern struct {
		A int `msgpack:",intern"`
	}
	inline struct {
		*Base `msgpack:",inline"`
	}
)

// twice returns a struct of two fields with one name in the data.
func twice() any {
	const tag = `json:"x" msgpack:"x"`
	number := reflect.TypeFor[int]()
	return reflect.New(reflect.StructOf([]reflect.StructField{{Name: "A", Type: number, Tag: tag}, {Name: "B", Type: number, Tag: tag}})).Elem().Interface()
}

// A pointKey is a text as a key, and an object as a value.
type pointKey struct{ X, Y int }

func (p pointKey) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d,%d", p.X, p.Y), nil }
func (p *pointKey) UnmarshalText(b []byte) error {
	_, err := fmt.Sscanf(string(b), "%d,%d", &p.X, &p.Y)
	return err
}

// codec encodes v as a Loader does, and decodes it into a new value of its type.
func codec(rules shape.Rules, v any) (read any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panicked: %v", r)
		}
	}()
	encode, decode := json.Marshal, json.Unmarshal
	if rules == shape.Msgpack {
		encode, decode = msgpack.Marshal, msgpack.Unmarshal
	}
	b, err := encode(v)
	if err != nil {
		return nil, err
	}
	into := reflect.New(reflect.TypeOf(v))
	err = decode(b, into.Interface())
	return into.Elem().Interface(), err
}

func name(rules shape.Rules) string { return [...]string{"msgpack", "JSON", "another codec"}[rules] }

// A refused type cannot be encoded, cannot be decoded, or loses everything. Any other type keeps all
// but its lost parts. The test compares with the codecs.
func TestRefusedTypesCannotBeKept(t *testing.T) {
	const both, onlyMsgpack, onlyJSON, neither = 3, 1, 2, 0
	for _, test := range []struct {
		v       any
		refused int
		path    string
	}{
		{1, neither, ""},
		{"v", neither, ""},
		{[]byte("v"), neither, ""},
		{time.Second, neither, ""},
		{map[string]struct{}{"a": {}}, neither, ""},
		{withBase{Base{1}, "a"}, neither, ""},
		{withUnexported{base{1}, "a"}, neither, ""},
		{node{"a", &node{Name: "b"}}, neither, ""},
		{forest{"a": {"b": nil}}, neither, ""},
		{map[int]string{1: "a"}, neither, ""},
		{map[pointKey]int{{1, 2}: 3}, neither, ""},
		{sums{big.NewInt(7)}, neither, ""},
		{[4]byte{1, 2}, neither, ""},
		{&octets{[4]octet{1, 2}}, neither, ""},
		{[]octet{1, 2}, neither, ""},
		{hiddenSame{ID: 1}, neither, ""},

		{hidden{ID: "a"}, onlyMsgpack, "hidden.ID"},
		{make(chan int), both, "V"},
		{func() {}, both, "V"},
		{complex(1, 2), both, "complex128"},
		{unsafe.Pointer(new(int)), both, "Pointer"},
		{uintptr(1), onlyMsgpack, "uintptr"},
		{Order{[]item{{make(chan struct{})}}}, both, "Order.Items[].Done"},
		{&Order{[]item{{make(chan struct{})}}}, both, "Order.Items[].Done"},
		{map[string][2]item{"a": {}}, both, "V[][].Done"},
		{map[string]chan int{"a": nil}, both, "V[]"},
		{closed{1, 2}, both, "closed"},
		{&closed{1, 2}, both, "closed"},
		{[]closed{{1, 2}}, both, "V[]"},
		{map[closed]int{{1, 2}: 1}, both, "V[key]"},
		{map[Base]int{{1}: 1}, onlyJSON, "V[key]"},
		{map[float64]int{1: 1}, onlyJSON, "V[key]"},
		{map[bool]int{true: 1}, onlyJSON, "V[key]"},
		{withPointer{&base{1}, "a"}, both, "withPointer.base"},
		{withStatus{1, "a"}, onlyMsgpack, "withStatus.status"},
		{sum{*big.NewInt(7)}, both, "sum.Total"},
		{map[string]big.Int{"a": *big.NewInt(7)}, both, "V[]"},
		{octets{[4]octet{1, 2}}, onlyMsgpack, "octets.Sum"},
		{intern{1}, onlyMsgpack, "intern.A"},
		{inline{&Base{1}}, onlyMsgpack, "inline.Base"},
	} {
		for _, rules := range []shape.Rules{shape.Msgpack, shape.JSON} {
			t.Run(fmt.Sprintf("%s/%T", name(rules), test.v), func(t *testing.T) {
				s := shape.Of(reflect.TypeOf(test.v), rules)
				want := test.refused>>rules&1 != 0
				if got := len(s.Refused) > 0; got != want {
					t.Fatalf("refused = %v, want refused = %t", s.Refused, want)
				}
				if want && s.Refused[0].Path != test.path {
					t.Errorf("refused = %v, want the path %s", s.Refused, test.path)
				}
				read, err := codec(rules, test.v)
				if came := err == nil && reflect.DeepEqual(read, test.v); came == want && len(s.Lost) == 0 {
					t.Errorf("the codec returned %+v, %v", read, err)
				}
			})
		}
	}
}

// A type that msgpack would follow without end is refused without a value: the stack would overflow.
func TestEndlessTypeIsRefused(t *testing.T) {
	if s := shape.Of(reflect.TypeFor[Self](), shape.Msgpack); len(s.Refused) != 1 || s.Refused[0].Path != "Self.Self" {
		t.Errorf("Self: refused = %v", s.Refused)
	}
	for _, rules := range []shape.Rules{shape.Msgpack, shape.JSON} {
		if s := shape.Of(reflect.TypeFor[ring](), rules); len(s.Refused) != 1 {
			t.Errorf("ring: refused = %v", s.Refused)
		}
	}
	shape.Of(reflect.TypeFor[ring](), shape.Other)
}

type extension struct{ a int } //nolint:unused // reflect reads it

func TestTypeInTheRegistryOfMsgpackIsNotRefused(t *testing.T) {
	const id = 77
	if s := shape.Of(reflect.TypeFor[extension](), shape.Msgpack); len(s.Refused) != 1 {
		t.Fatalf("before: refused = %v", s.Refused)
	}
	msgpack.RegisterExtEncoder(id, extension{}, func(_ *msgpack.Encoder, v reflect.Value) ([]byte, error) {
		return []byte{byte(v.Field(0).Int())}, nil
	})
	defer msgpack.UnregisterExt(id)
	if s := shape.Of(reflect.TypeFor[extension](), shape.Msgpack); len(s.Refused) != 0 {
		t.Errorf("refused = %v", s.Refused)
	}
}

// Lost parts are named, and are not in the data.
func TestLostPartsAreNotInTheData(t *testing.T) {
	for _, test := range []struct {
		v             any
		msgpack, json string // the paths
	}{
		{Base{1}, "", ""},
		{time.Now(), "", ""},
		{partial{1, 2}, "partial.b", "partial.b"},
		{[]*partial{{1, 2}}, "V[].b", "V[].b"},
		{withMutex{A: 1}, "withMutex.Mutex", "withMutex.Mutex"},
		{withStatus{1, "a"}, "", "withStatus.status"},
		{hiddenSame{Base{1}, 2}, "hiddenSame.ID", "hiddenSame.Base.ID"},
		{twice(), "V.B", "V.A V.B"},
		{map[string]any{"a": int64(1)}, "V[]", "V[]"},
		{struct{ Err error }{}, "V.Err", "V.Err"},
		{struct{ By fmt.Stringer }{}, "V.By", "V.By"},
		{page{&url.URL{User: url.User("a")}}, "", "page.Link.User"},
		{user{url.User("a")}, "user.Name", "user.Name"},
	} {
		for rules, want := range map[shape.Rules]string{shape.Msgpack: test.msgpack, shape.JSON: test.json} {
			t.Run(fmt.Sprintf("%s/%T", name(rules), test.v), func(t *testing.T) {
				s := shape.Of(reflect.TypeOf(test.v), rules)
				var paths []string
				for _, p := range s.Lost {
					paths = append(paths, p.Path)
				}
				if got := strings.Join(paths, " "); got != want || len(s.Refused) > 0 && want != "" {
					t.Errorf("lost = %v, refused = %v, want %q", s.Lost, s.Refused, want)
				}
			})
		}
	}
}

type oneWay struct{ A string }

func (oneWay) MarshalText() ([]byte, error) { return []byte("text"), nil }

type stamped struct{ time.Time }

// A value that the codec may refuse to read is read back before it is stored.
func TestUnsureTypesMayBeUnreadable(t *testing.T) {
	for _, rules := range []shape.Rules{shape.Msgpack, shape.JSON} {
		for _, test := range []struct {
			t    reflect.Type
			want bool
		}{
			{reflect.TypeFor[string](), false},
			{reflect.TypeFor[*partial](), false},
			{reflect.TypeFor[map[string]*withBase](), false},
			{reflect.TypeFor[struct{ A, B Base }](), false}, // twice, and not in itself
			{reflect.TypeFor[struct {
				A  Base
				At time.Time
			}](), false},
			{reflect.TypeFor[any](), true},
			{reflect.TypeFor[error](), true},
			{reflect.TypeFor[struct{ A []struct{ B any } }](), true},
			{reflect.TypeFor[map[string]*big.Int](), true},
			{reflect.TypeFor[oneWay](), true},
			{reflect.TypeFor[stamped](), true},
			{reflect.TypeFor[node](), true},
			{reflect.TypeFor[forest](), true},
		} {
			if got := shape.Of(test.t, rules).Unsure; got != test.want {
				t.Errorf("%s: %v is unsure = %t, want %t", name(rules), test.t, got, test.want)
			}
		}
	}
	if !shape.Of(reflect.TypeFor[string](), shape.Other).Unsure {
		t.Error("a codec that is not known is sure")
	}
}

// The fields are those that the codecs encode.
func TestFieldsAreThoseInTheData(t *testing.T) {
	type Deep struct {
		X    int `json:"x"`
		Same string
	}
	type Middle struct {
		*Deep
		Same int
		Y    int `json:"y,omitempty" msgpack:"y,omitempty"`
	}
	type outer struct {
		Middle
		Named  Deep `json:"-," msgpack:"-"` //nolint:staticcheck // a field of the name "-"
		Tagged Base `json:"tag ged" msgpack:"tagged"`
		Base   `json:"base" msgpack:",noinline"`
		odd    int
		Bad    int `json:"a\"b"` //nolint:staticcheck // no valid name
	}
	full := outer{Middle: Middle{Deep: &Deep{1, "s"}, Same: 2, Y: 3}}
	_ = full.odd
	for _, rules := range []shape.Rules{shape.Msgpack, shape.JSON} {
		var data map[string]any
		b, decode := must(json.Marshal(full)), json.Unmarshal
		if rules == shape.Msgpack {
			b, decode = must(msgpack.Marshal(full)), msgpack.Unmarshal
		}
		if err := decode(b, &data); err != nil {
			t.Fatal(err)
		}
		var names []string
		for n := range data {
			names = append(names, n)
		}
		slices.Sort(names)
		if got := shape.Names(reflect.TypeFor[outer](), rules); !slices.Equal(got, names) {
			t.Errorf("%s: the fields are %q, in the data are %q", name(rules), got, names)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
