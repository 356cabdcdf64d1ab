// Package codec turns values into bytes and back, with the checks that bytes from Redis need.
//
// Any client of a Redis may write to it, so what is read is hostile until it is checked. The
// two codecs of fetchonce decode nothing that would take far more memory than it has bytes. A
// value is stored only if the same codec reads it back.
//
// The loader uses it. It knows nothing of Redis, keys' names or the age of a value.
package codec

import (
	"errors"
	"fmt"
	"hash/fnv"
	"reflect"

	"github.com/fetchonce/fetchonce/internal/budget"
	"github.com/fetchonce/fetchonce/internal/prescan"
	"github.com/fetchonce/fetchonce/internal/shape"
)

// A Codec encodes and decodes values.
type Codec interface {
	Marshal(v any) ([]byte, error)
	Unmarshal(data []byte, v any) error
}

// A keyCodec is a codec that receives the key of each value.
type keyCodec interface {
	Codec
	MarshalKey(key string, v any) ([]byte, error)
	UnmarshalKey(key string, data []byte, v any) error
}

// Why a value is neither stored nor read.
var (
	ErrTooLarge   = errors.New("larger than Options.MaxBytes")
	ErrUnreadable = errors.New("the codec does not read what it wrote")
)

// Values encodes and decodes the values of one Loader.
type Values[V any] struct {
	codec    Codec
	id       byte
	maxBytes int            // of an encoded value
	memory   *budget.Budget // of a decoded value; nil for a codec of the user's
	readBack bool           // the codec may refuse to read what it wrote
}

// New returns the Values of a codec. With readBack, each value is decoded before it is stored.
func New[V any](c Codec, maxBytes int, readBack bool) Values[V] {
	v := Values[V]{codec: c, id: idOf(c), maxBytes: maxBytes, readBack: readBack}
	if isOurs(c) {
		v.memory = budget.New(reflect.TypeFor[V](), c == JSON{}, maxBytes)
	}
	return v
}

// ID returns the number that an envelope has of its codec: one for each of ours, and for
// another's one by the name of its type.
func (c *Values[V]) ID() byte { return c.id }

// Encode encodes a value. It refuses what Decode would refuse.
func (c *Values[V]) Encode(key string, v V) (payload []byte, err error) {
	defer recoverAs(&err)
	payload, err = c.marshal(key, v)
	switch {
	case err != nil:
		return nil, err
	case len(payload) > c.maxBytes:
		return nil, ErrTooLarge
	}
	if err := c.memory.Check(payload); err != nil {
		return nil, err
	}
	if c.readBack {
		var read V
		if err := c.Decode(key, payload, &read); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
	}
	return payload, nil
}

// Decode decodes a value.
func (c *Values[V]) Decode(key string, payload []byte, v *V) (err error) {
	defer recoverAs(&err)
	if err := c.memory.Check(payload); err != nil {
		return err
	}
	if k, ok := c.codec.(keyCodec); ok {
		return k.UnmarshalKey(key, payload, v)
	}
	return c.codec.Unmarshal(payload, v)
}

func (c *Values[V]) marshal(key string, v V) ([]byte, error) {
	if k, ok := c.codec.(keyCodec); ok {
		return k.MarshalKey(key, v)
	}
	return c.codec.Marshal(v)
}

// recoverAs turns the panic of a codec into an error. Data that it cannot read does not end the
// program, and a value that it cannot write still reaches its callers.
func recoverAs(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("the codec panicked: %v", r)
	}
}

// WhyUnread returns what a log may say of an error of Decode. A codec's own error may quote the
// value.
func WhyUnread(err error) error {
	if memory, ok := errors.AsType[budget.Error](err); ok {
		return memory
	}
	return errors.New("the codec cannot read it")
}

// WhyUnstored returns what a log may say of an error of Encode. A codec's own error may quote
// the value.
func WhyUnstored(err error) error {
	if format, ok := errors.AsType[prescan.Error](err); ok {
		return format
	}
	if memory, ok := errors.AsType[budget.Error](err); ok {
		return memory
	}
	for _, own := range []error{ErrTooLarge, ErrUnreadable} {
		if errors.Is(err, own) {
			return own
		}
	}
	return errors.New("the codec cannot write it")
}

// Name returns a codec's name for errors and fingerprints.
func Name(c Codec) string {
	switch c.(type) {
	case Msgpack:
		return "Msgpack"
	case JSON:
		return "JSON"
	}
	return fmt.Sprintf("%T", c)
}

// ShapeOf returns what a codec makes of a V.
func ShapeOf[V any](c Codec) shape.Shape {
	rules := shape.Other
	switch c.(type) {
	case Msgpack:
		rules = shape.Msgpack
	case JSON:
		rules = shape.JSON
	}
	return shape.Of(reflect.TypeFor[V](), rules)
}

func idOf(c Codec) byte {
	switch c.(type) {
	case Msgpack:
		return 1
	case JSON:
		return 2
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%T", c)
	return 0x80 | byte(h.Sum32())
}

func isOurs(c Codec) bool { return c == Msgpack{} || c == JSON{} }
