package keytext_test

import (
	"math"
	"math/big"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/fetchonce/fetchonce/internal/keytext"
)

type (
	id     int
	name   string
	stamp  time.Time
	secret string
	query  struct {
		Shop  id
		tags  []string
		Limit *int
		_     int
	}
	box[T any] struct{ V T }
	tree       struct{ kids []*tree }
	größe      struct{ Länge int }
	stringer   interface{ String() string }
)

func (secret) MarshalText() ([]byte, error) { return []byte("hidden"), nil }
func (secret) String() string               { return "hidden" }

const here = "github.com/fetchonce/fetchonce/internal/keytext_test."

// These texts are in users' Redis and in processes of other builds, so they must not change.
var texts = []struct {
	want string
	args []any
}{
	{``, nil},
	{`nil`, []any{nil}},
	{`""`, []any{""}},
	{`"teapot",3`, []any{"teapot", 3}},
	{`"a","b"`, []any{"a", "b"}},
	{`"a,b"`, []any{"a,b"}},
	{`"a\",\"b"`, []any{`a","b`}},
	{`"\\ \u00e9 \U0001f375 \ufffd \xff \x00\x0a\x7f {}%"`, []any{"\\ é 🍵 \ufffd \xff \x00\n\x7f {}%"}},
	{`true,false`, []any{true, false}},
	{`-3,int64(-3),uint8(3),int32(97),uintptr(1)`, []any{-3, int64(-3), uint8(3), 'a', uintptr(1)}},
	{`float64(1),float64(-0),float64(0.1),float32(0.1),float64(1e+300)`, []any{1.0, math.Copysign(0, -1), 0.1, float32(0.1), 1e300}},
	{`float64(NaN),float64(+Inf),float64(-Inf)`, []any{math.NaN(), math.Inf(1), math.Inf(-1)}},
	{`complex128([1,-2])`, []any{1 - 2i}},
	{here + `id(3),` + here + `name("3")`, []any{id(3), name("3")}},
	{here + `secret("swordfish")`, []any{secret("swordfish")}},
	{`[]int([1,2]),[]int([]),[]int(nil)`, []any{[]int{1, 2}, []int{}, []int(nil)}},
	{`[2]string(["a","b"])`, []any{[2]string{"a", "b"}}},
	{`[]uint8("plain"),[]uint8(0x00ff),[]uint8(""),[]uint8(nil)`, []any{[]byte("plain"), []byte{0, 255}, []byte{}, []byte(nil)}},
	{`[4]uint8(0xdeadbeef)`, []any{[4]byte{0xde, 0xad, 0xbe, 0xef}}},
	{`map[string]int(["a":1,"b":2,"c":3]),map[string]int(nil)`, []any{map[string]int{"c": 3, "a": 1, "b": 2}, map[string]int(nil)}},
	{`*int(&3),*int(nil),**int(&&3)`, []any{new(3), (*int)(nil), new(new(3))}},
	{`[]any(["a",int64(1),nil,*int(nil)])`, []any{[]any{"a", int64(1), nil, (*int)(nil)}}},
	{here + `query(Shop:7,tags:["hot"],Limit:&3)`, []any{query{Shop: 7, tags: []string{"hot"}, Limit: new(3)}}},
	{`*` + here + `query(&(Shop:0,tags:nil,Limit:nil))`, []any{&query{}}},
	{`struct(A int "x:\"y\"",` + here + `b any,Duration =time.Duration)(A:1,b:"x",Duration:2)`, []any{struct {
		A int `x:"y"`
		b any
		time.Duration
	}{1, "x", 2}}},
	{here + `box[int](V:1)`, []any{box[int]{1}}},
	{here + `"box[struct { A string }]"(V:(A:"x"))`, []any{box[struct{ A string }]{struct{ A string }{"x"}}}},
	{here + `gr\u00f6\u00dfe(L\u00e4nge:1)`, []any{größe{1}}},
	{here + `tree(kids:[&(kids:nil),nil])`, []any{tree{[]*tree{{}, nil}}}},
	{`time.Time(2026-11-24T18:00:00.5Z)`, []any{time.Date(2026, 11, 24, 18, 0, 0, 5e8, time.UTC)}},
	{`time.Time(2026-11-24T18:00:00Z "CET" 3600)`, []any{time.Date(2026, 11, 24, 19, 0, 0, 0, time.FixedZone("CET", 3600))}},
	{here + `stamp(2026-11-24T18:00:00Z)`, []any{stamp(time.Date(2026, 11, 24, 18, 0, 0, 0, time.UTC))}},
	{`time.Duration(1500000000)`, []any{1500 * time.Millisecond}},
	{`net/netip.Addr("::ffff:1.2.3.4"),net/netip.Addr("1.2.3.4")`, []any{netip.MustParseAddr("::ffff:1.2.3.4"), netip.MustParseAddr("1.2.3.4")}},
	{`*math/big.Int(&-12)`, []any{big.NewInt(-12)}},
	{`"` + strings.Repeat("a", 197) + `"`, []any{strings.Repeat("a", 197)}},
	{`"` + strings.Repeat("a", 134) + `~ed5b14ffbce3b6b0e9ff6336e593aba4a2a2e516b4554e932f6716416b1fe134`, []any{strings.Repeat("a", 198)}},
}

func TestTexts(t *testing.T) {
	for _, test := range texts {
		got, err := keytext.Of(test.args...)
		if err != nil || got != test.want {
			t.Errorf("Of(%#v) = %s, %v;\nwant %s", test.args, got, err, test.want)
		}
	}
	if got := keytext.OfString(`a"b`); got != `"a\"b"` {
		t.Errorf("OfString = %s", got)
	}
	if got := keytext.OfInt(-3); got != "-3" {
		t.Errorf("OfInt = %s", got)
	}
}

func TestTextIsBounded(t *testing.T) {
	seen := map[string]int{}
	for n := range 1000 {
		text, err := keytext.Of(strings.Repeat("a", n))
		if err != nil || len(text) > keytext.Longest {
			t.Fatalf("the text of %d bytes has %d, %v; want %d at most", n, len(text), err, keytext.Longest)
		}
		if before, ok := seen[text]; ok {
			t.Fatalf("%d and %d bytes have the same text", before, n)
		}
		seen[text] = n
	}
}

// Equal values have the same text, whatever made them.
func TestWhatDoesNotCount(t *testing.T) {
	now := time.Now().UTC()
	grown := append(make([]string, 0, 10), "hot")
	zero := new(big.Int).Sub(big.NewInt(1), big.NewInt(1))
	for what, pair := range map[string][2]any{
		"a monotonic clock": {now, now.Round(0)},
		"one in a struct":   {struct{ at time.Time }{now}, struct{ at time.Time }{now.Round(0)}},
		"one in an array":   {[1]time.Time{now}, [1]time.Time{now.Round(0)}},
		"one of a type":     {stamp(now), stamp(now.Round(0))},
		"capacity":          {query{tags: grown}, query{tags: []string{"hot"}}},
		"an address":        {query{Limit: new(3)}, query{Limit: new(3)}},
		"a NaN's bits":      {math.NaN(), math.Float64frombits(math.Float64bits(math.NaN()) ^ 2)},
		"a number's array":  {zero, new(big.Int)},
		"a blank field":     {struct{ A, _ int }{A: 1}, *(*struct{ A, _ int })(unsafe.Pointer(&[2]int{1, 2}))},
	} {
		a, errA := keytext.Of(pair[0])
		b, errB := keytext.Of(pair[1])
		if a != b || errA != nil || errB != nil {
			t.Errorf("%s: %s, %v and %s, %v; want the same", what, a, errA, b, errB)
		}
	}
}

func localInt() any { type local int; return local(1) }

func localString() any { type local string; return local("1") }

func TestTypesOfOneNameDifferWhereTheirValuesDo(t *testing.T) {
	a, _ := keytext.Of(localInt())
	b, _ := keytext.Of(localString())
	if a == b {
		t.Errorf("both are %s", a)
	}
}

func TestTypesWithoutATextAreRefused(t *testing.T) {
	cyclic := &tree{}
	cyclic.kids = []*tree{cyclic}
	var list []any
	list = append(list, nil)
	list[0] = list
	entries := map[string]any{}
	entries["self"] = entries
	double := any(0)
	for range 45 { // in full its text would have 2^45 numbers
		double = []any{double, double}
	}
	for what, test := range map[string]struct {
		arg  any
		want string
	}{
		"a func":             {func() {}, "a func() has no text"},
		"a nil func":         {(func(int))(nil), "a func(int) has no text"},
		"a channel":          {make(chan int), "a chan int has no text"},
		"an address":         {unsafe.Pointer(new(int)), "a unsafe.Pointer has no text"},
		"a func in a struct": {struct{ F func() }{}, "F of struct { F func() }: a func() has no text"},
		"no funcs at all":    {[]func(){}, "a func() has no text"},
		"a func as an entry": {map[int]func(){}, "a func() has no text"},
		"a channel as a key": {map[chan int]int{}, "a chan int has no text"},
		"a mutex":            {&sync.Mutex{}, "a sync.Mutex has no text: it is a state"},
		"an atomic":          {&atomic.Int64{}, "a atomic.Int64 has no text: it is a state"},
		"no name":            {[]interface{ String() string }{}, "an interface with methods needs a name"},
		"behind interfaces":  {[]any{1, box[any]{[]any{func() {}}}}, "[1]: V: [0]: a func() has no text"},
		"in a map":           {map[any]any{1: func() {}}, "an entry: a func() has no text"},
		"itself":             {cyclic, "contains itself"},
		"a list of itself":   {list, "contains itself"},
		"a map of itself":    {entries, "contains itself"},
		"very much":          {double, "longer than 16 MiB"},
	} {
		text, err := keytext.Of("first", test.arg)
		if text != "" || err == nil || !strings.HasPrefix(err.Error(), "argument 2 of 2: ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %.100q, %v; want an error with %q", what, text, err, test.want)
		}
	}
}

func TestInterfaceWithANameMayHoldWhatHasAText(t *testing.T) {
	got, err := keytext.Of([]stringer{secret("x"), time.Second})
	if want := "[]" + here + `stringer([` + here + `secret("x"),time.Duration(1000000000)])`; got != want || err != nil {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}
