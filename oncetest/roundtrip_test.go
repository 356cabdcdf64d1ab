package oncetest_test

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncetest"
)

type (
	line struct {
		Name string
		At   time.Time
		note string
	}
	basket struct {
		Base
		Lines  map[string][]*line
		Extra  any
		Count  int
		Ratio  float64
		Total  *big.Int
		From   netip.Addr
		Maybe  *int
		Cause  error
		Hidden int      `json:"-" msgpack:"-"`
		Tags   []string `json:",omitempty" msgpack:",omitempty"`
		Empty  []int
		Nil    map[string]int
		Sum    [2]byte
	}
	// Base is embedded.
	Base   struct{ ID int64 }
	closed struct{ Done chan int }
)

func full() basket {
	one := 1
	return basket{
		Base: Base{7}, Lines: map[string][]*line{"a": {{Name: "tea"}, nil}}, Count: 3, Ratio: math.NaN(),
		Total: big.NewInt(0), From: netip.MustParseAddr("10.0.0.1"), Maybe: &one, Tags: []string{"x"}, Empty: []int{}, Sum: [2]byte{1, 2},
	}
}

func changed(change func(*basket)) basket {
	b := full()
	change(&b)
	return b
}

// A limitedCodec encodes with gob and loses what gob loses.
type limitedCodec struct{}

func (limitedCodec) Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(v)
	return b.Bytes(), err
}

func (limitedCodec) Unmarshal(data []byte, v any) error {
	return gob.NewDecoder(bytes.NewReader(data)).Decode(v)
}

// A lyingCodec decodes fewer elements than it encoded.
type lyingCodec struct{ fetchonce.Codec }

func (c lyingCodec) Unmarshal(data []byte, v any) error {
	err := c.Codec.Unmarshal(data, v)
	if list, ok := v.(*[]int); ok {
		*list = (*list)[:1]
	}
	return err
}

// Each change makes one difference, which the error names. "" means no error.
func TestRoundTripListsEachDifference(t *testing.T) {
	_ = line{}.note
	berlin := time.FixedZone("CET", 3600)
	at := time.Date(2026, 7, 1, 12, 0, 0, 5, time.UTC)
	for name, test := range map[string]struct {
		change        func(*basket)
		msgpack, json string
	}{
		"unexported field":  {func(b *basket) { b.Lines["a"][0].note = "x" }, "basket.Lines[a][0].note: lost: the field is not exported", "basket.Lines[a][0].note: lost: the field is not exported"},
		"excluded field":    {func(b *basket) { b.Hidden = 1 }, "basket.Hidden: 1 became 0", "basket.Hidden: 1 became 0"},
		"number as any":     {func(b *basket) { b.Extra = 5 }, "basket.Extra: int became int8", "basket.Extra: int became float64"},
		"struct as any":     {func(b *basket) { b.Extra = Base{1} }, "basket.Extra: oncetest_test.Base became map[string]interface {}", "basket.Extra: oncetest_test.Base became map[string]interface {}"},
		"text as any":       {func(b *basket) { b.Extra = "x" }, "", ""},
		"empty, omitempty":  {func(b *basket) { b.Tags = []string{} }, "basket.Tags: a slice of 0 became nil", "basket.Tags: a slice of 0 became nil"},
		"nil":               {func(b *basket) { b.Empty = nil }, "", ""},
		"time in UTC":       {func(b *basket) { b.Lines["a"][0].At = at }, `basket.Lines[a][0].At: the location "UTC" became "Local"`, ""},
		"local time":        {func(b *basket) { b.Lines["a"][0].At = at.Local() }, "", "?"},
		"time in a zone":    {func(b *basket) { b.Lines["a"][0].At = at.In(berlin) }, `basket.Lines[a][0].At: the location "CET" became "Local"`, "?"},
		"time of the clock": {func(b *basket) { b.Lines["a"][0].At = time.Now() }, "", "?"},
	} {
		for _, codec := range []fetchonce.Codec{fetchonce.Msgpack, fetchonce.JSON} {
			want := test.msgpack
			v := changed(test.change)
			if codec == fetchonce.JSON {
				v.Ratio, want = 0.5, test.json // JSON has no NaN
			}
			switch err := oncetest.RoundTrip(codec, &v); {
			case want == "?": // it depends on the zone of the machine
			case want == "" && err != nil:
				t.Errorf("%s, %T: %v; want nil", name, codec, err)
			case want != "" && (err == nil || err.Error() != "oncetest: a decoded *oncetest_test.basket differs: "+want):
				t.Errorf("%s, %T: %v; want %q", name, codec, err, want)
			}
		}
	}
}

func TestRoundTripReportsTypesThatCannotBeEncoded(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"type":               {oncetest.RoundTrip(nil, []closed{{}}), "V[].Done: chan int cannot be encoded"},
		"value":              {oncetest.RoundTrip(fetchonce.JSON, math.NaN()), "encode a float64"},
		"interface":          {oncetest.RoundTrip[fmt.Stringer](fetchonce.Msgpack, time.Second), "decode an encoded fmt.Stringer"},
		"text of an error":   {oncetest.RoundTrip(fetchonce.Msgpack, basket{Cause: errors.New("x")}), ""},
		"codec of one's own": {oncetest.RoundTrip(limitedCodec{}, basket{Empty: []int{}}), "basket.Empty: a slice of 0 became nil"},
		"another length":     {oncetest.RoundTrip(lyingCodec{fetchonce.JSON}, []int{1, 2}), "V: 2 elements became 1"},
		"lost key":           {oncetest.RoundTrip(fetchonce.Msgpack, map[any]int{1000: 1}), "V[1000]: the key is missing"},
	} {
		if test.want == "" && test.err != nil && !strings.Contains(test.err.Error(), "basket.Cause") || test.want != "" && (test.err == nil || !strings.Contains(test.err.Error(), test.want)) {
			t.Errorf("%s: %v; want %q", name, test.err, test.want)
		}
	}
}
