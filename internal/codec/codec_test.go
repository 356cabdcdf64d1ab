package codec_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/internal/codec"
)

type row struct{ Name string }

func TestValuesRoundTrip(t *testing.T) {
	for _, c := range []codec.Codec{codec.Msgpack{}, codec.JSON{}} {
		values := codec.New[row](c, 1000, true)
		payload, err := values.Encode("k", row{"london"})
		if err != nil {
			t.Fatal(err)
		}
		var got row
		if err := values.Decode("k", payload, &got); err != nil || got.Name != "london" {
			t.Errorf("%T: Decode = %+v, %v; want london", c, got, err)
		}
	}
}

func TestEncodeRefusesAValueThatIsTooLarge(t *testing.T) {
	values := codec.New[row](codec.JSON{}, 100, false)
	if _, err := values.Encode("k", row{strings.Repeat("x", 100)}); !errors.Is(err, codec.ErrTooLarge) {
		t.Errorf("Encode = %v, want %v", err, codec.ErrTooLarge)
	}
}

// oneWay writes what it does not read.
type oneWay struct{ codec.JSON }

func (oneWay) Unmarshal([]byte, any) error { return errors.New("secret") }

func TestEncodeReadsTheValueBack(t *testing.T) {
	values := codec.New[row](oneWay{}, 100, true)
	_, err := values.Encode("k", row{})
	if !errors.Is(err, codec.ErrUnreadable) {
		t.Errorf("Encode = %v, want %v", err, codec.ErrUnreadable)
	}
	for _, said := range []error{codec.WhyUnstored(err), codec.WhyUnread(errors.New("secret"))} {
		if strings.Contains(said.Error(), "secret") {
			t.Errorf("the log would say %q", said)
		}
	}
}

type panicking struct{ codec.JSON }

func (panicking) Marshal(any) ([]byte, error) { panic("no") }
func (panicking) Unmarshal([]byte, any) error { panic("no") }

func TestPanicOfACodecIsAnError(t *testing.T) {
	values := codec.New[row](panicking{}, 100, false)
	if _, err := values.Encode("k", row{}); err == nil {
		t.Error("Encode returned no error")
	}
	var got row
	if err := values.Decode("k", []byte("{}"), &got); err == nil {
		t.Error("Decode returned no error")
	}
}

// Envelopes keep the IDs, so they never change. A codec of another type has another one.
func TestIDNamesTheCodec(t *testing.T) {
	ids := make(map[byte]codec.Codec)
	for want, c := range map[byte]codec.Codec{1: codec.Msgpack{}, 2: codec.JSON{}, 0x80: oneWay{}, 0x81: panicking{}} {
		values := codec.New[row](c, 100, false)
		id := values.ID()
		if want < 0x80 && id != want || want >= 0x80 && id < 0x80 || ids[id] != nil {
			t.Errorf("the ID of %T is %#x", c, id)
		}
		ids[id] = c
	}
}
