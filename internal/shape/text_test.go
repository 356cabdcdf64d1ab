package shape_test

import (
	"math/big"
	"reflect"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/shape"
)

func fingerprint[V any](rules shape.Rules) string {
	return shape.Of(reflect.TypeFor[V](), rules).Fingerprint("codec")
}

type (
	Thing struct {
		ID   int64
		Name string
		Tags []string
	}
	// Renamed has another name, another order of fields, and names for its types.
	Renamed struct {
		Tags labels
		Name label
		ID   int64
		note string //nolint:unused // it is not encoded
	}
	label  string
	labels []label

	Head  struct{ ID int64 }
	Built struct {
		Name string
		Head
		Tags []string
	}
	Tagged struct {
		Key   int64    `json:"ID" msgpack:"ID"`
		Label string   `json:"Name" msgpack:"Name"`
		Marks []string `json:"Tags" msgpack:"Tags"`
		Skip  int      `json:"-" msgpack:"-"`
	}
	array struct {
		_msgpack struct{} `msgpack:",as_array"` //nolint:unused // msgpack reads the tag
		A, B     int
	}
	arrayTurned struct {
		_msgpack struct{} `msgpack:",as_array"` //nolint:unused // msgpack reads the tag
		B, A     int
	}
	link  struct{ Next *link }
	links struct{ Next []links }
)

func (Renamed) Method() {}

// Parts that the codec ignores are not in the fingerprint.
func TestFingerprintIsTheSameForTheSameForm(t *testing.T) {
	for _, rules := range []shape.Rules{shape.Msgpack, shape.JSON} {
		want := fingerprint[Thing](rules)
		for _, got := range []string{fingerprint[Renamed](rules), fingerprint[Built](rules), fingerprint[Tagged](rules)} {
			if got != want {
				t.Errorf("%s: fingerprints %s and %s, want the same", name(rules), got, want)
			}
		}
	}
}

// The fingerprints are written here: another machine, build or Go version has the same.
func TestFingerprintIsFixed(t *testing.T) {
	type all struct {
		Thing
		At    time.Time
		Took  time.Duration
		Of    map[int32]*Thing
		Sum   [4]byte
		Any   any
		Big   *big.Int
		First link
		Again *link
		Trees map[string]forest
	}
	for rules, want := range map[shape.Rules][2]string{
		shape.Msgpack: {`{"Again" *{"Next" *#2};"Any" any;"At" "time.Time";"Big" *"math/big.Int";"First" #2;"ID" int64;"Name" string;"Of" map[int32]*{"ID" int64;"Name" string;"Tags" []string};"Sum" [4]uint8;"Tags" []string;"Took" int64;"Trees" map[string]map[string]^1}`, "cc07c1e342a758e7"},
		shape.JSON:    {`{"Again" *{"Next" *#2};"Any" any;"At" "time.Time";"Big" *"math/big.Int""math/big.Int";"First" #2;"ID" int64;"Name" string;"Of" map[int32]*{"ID" int64;"Name" string;"Tags" []string};"Sum" [4]uint8;"Tags" []string;"Took" int64;"Trees" map[string]map[string]^1}`, "20eaba7e94dda45c"},
	} {
		s := shape.Of(reflect.TypeFor[*all](), rules)
		if s.Text != "*"+want[0] || s.Fingerprint("codec") != want[1] {
			t.Errorf("%s: the text is\n%s\nand its fingerprint %s", name(rules), s.Text, s.Fingerprint("codec"))
		}
	}
	if s := shape.Of(reflect.TypeFor[int](), shape.JSON); s.Fingerprint("a") == s.Fingerprint("b") {
		t.Error("two codecs have one fingerprint")
	}
	other := shape.Of(reflect.TypeFor[Tagged](), shape.Other)
	if want := `("Key""json:\"ID\" msgpack:\"ID\"" int64;"Label""json:\"Name\" msgpack:\"Name\"" string;"Marks""json:\"Tags\" msgpack:\"Tags\"" []string;"Skip""json:\"-\" msgpack:\"-\"" int)`; other.Text != want {
		t.Errorf("another codec: the text is\n%s", other.Text)
	}
}

type ownA struct{ a int }

func (ownA) MarshalBinary() ([]byte, error) { return nil, nil }
func (*ownA) UnmarshalBinary([]byte) error  { return nil }
func (ownA) MarshalText() ([]byte, error)   { return nil, nil }
func (*ownA) UnmarshalText(b []byte) error  { return nil }

type ownB struct{ a int }

func (ownB) MarshalText() ([]byte, error)  { return nil, nil }
func (*ownB) UnmarshalText(b []byte) error { return nil }

// An option has its own encoding, and another type in it.
type option[T any] struct{ v *T }

func (option[T]) MarshalText() ([]byte, error)  { return nil, nil }
func (*option[T]) UnmarshalText(b []byte) error { return nil }

// A reading type decodes itself only, from what its fields are encoded as.
type reading[T any] struct{ V T }

func (*reading[T]) UnmarshalText(b []byte) error { return nil }

// A type that the codec decodes in another way has another fingerprint.
func TestFingerprintDiffersForAnotherForm(t *testing.T) {
	_, _, _ = ownA{}.a, ownB{}.a, option[int]{}.v
	for _, rules := range []shape.Rules{shape.Msgpack, shape.JSON, shape.Other} {
		said := make(map[string]reflect.Type)
		for _, typ := range []reflect.Type{
			reflect.TypeFor[Thing](), reflect.TypeFor[*Thing](), reflect.TypeFor[[]Thing](), reflect.TypeFor[[2]Thing](), reflect.TypeFor[[3]Thing](),
			reflect.TypeFor[map[string]Thing](), reflect.TypeFor[map[int]Thing](), reflect.TypeFor[map[string]*Thing](),
			reflect.TypeFor[int](), reflect.TypeFor[int64](), reflect.TypeFor[uint64](), reflect.TypeFor[string](), reflect.TypeFor[[]byte](), reflect.TypeFor[any](),
			reflect.TypeFor[struct{ ID int }](), reflect.TypeFor[struct{ ID int32 }](), reflect.TypeFor[struct{ Id int }](), reflect.TypeFor[struct{ ID *int }](),
			reflect.TypeFor[struct{ ID, Age int }](), reflect.TypeFor[struct{}](),
			reflect.TypeFor[struct{ A struct{ B struct{ C int } } }](), reflect.TypeFor[struct {
				A struct{ B struct{ C string } }
			}](),
			reflect.TypeFor[struct {
				A []struct{ B map[string]*struct{ C int } }
			}](), reflect.TypeFor[struct {
				A []struct {
					B map[string]*struct{ C string }
				}
			}](),
			reflect.TypeFor[struct {
				ID int `json:"id" msgpack:"id"`
			}](), reflect.TypeFor[struct {
				ID int `json:"id,omitempty" msgpack:"id,omitempty"`
			}](),
			reflect.TypeFor[ownA](), reflect.TypeFor[ownB](), reflect.TypeFor[time.Time](),
			reflect.TypeFor[reading[int]](), reflect.TypeFor[reading[string]](),
			reflect.TypeFor[link](), reflect.TypeFor[links](), reflect.TypeFor[forest](),
		} {
			f := shape.Of(typ, rules).Fingerprint("codec")
			if other := said[f]; other != nil {
				t.Errorf("%s: %v and %v have one fingerprint", name(rules), typ, other)
			}
			said[f] = typ
		}
	}
	if fingerprint[option[int]](shape.JSON) == fingerprint[option[string]](shape.JSON) {
		t.Error("the argument of a type that encodes itself is not in the fingerprint")
	}
}

// Only a codec that writes fields in order has another fingerprint for another order.
func TestOrderOfFieldsCountsIfTheCodecWritesIt(t *testing.T) {
	type ab struct{ A, B int }
	type ba struct{ B, A int }
	if fingerprint[ab](shape.Msgpack) != fingerprint[ba](shape.Msgpack) || fingerprint[ab](shape.JSON) != fingerprint[ba](shape.JSON) {
		t.Error("the order of names counts")
	}
	if fingerprint[array](shape.Msgpack) == fingerprint[arrayTurned](shape.Msgpack) || fingerprint[array](shape.Msgpack) == fingerprint[ab](shape.Msgpack) {
		t.Error("the order of an array does not count")
	}
	if fingerprint[ab](shape.Other) == fingerprint[ba](shape.Other) {
		t.Error("the order does not count for a codec that may write it")
	}
}

type (
	deep0 struct{ A, B, C, D, E, F, G, H deep1 }
	deep1 struct{ A, B, C, D, E, F, G, H deep2 }
	deep2 struct{ A, B, C, D, E, F, G, H deep3 }
	deep3 struct{ A, B, C, D, E, F, G, H *deep0 }
)

// A type that contains others many times has a short text.
func TestTextIsAsShortAsTheTypes(t *testing.T) {
	if n := len(shape.Of(reflect.TypeFor[deep0](), shape.JSON).Text); n > 1000 {
		t.Errorf("the text has %d bytes", n)
	}
}
