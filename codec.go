package fetchonce

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"reflect"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce/internal/budget"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/prescan"
	"github.com/fetchonce/fetchonce/internal/shape"
)

// A Codec encodes and decodes values. It is called concurrently. Unmarshal must treat data as
// hostile, as any writer to Redis may have stored it, and must neither keep nor change data,
// which other goroutines may read. It receives only data of the same type of codec: to change
// the format, use a codec of a new type or another [Options.Schema].
//
// A value is stored only if Unmarshal reads what Marshal wrote. A Loader calls Unmarshal once
// before it stores a value, unless the codec is [Msgpack] or [JSON] and the type is always
// readable: it has no interface, no type with its own encoder, and does not contain itself.
type Codec interface {
	Marshal(v any) ([]byte, error)
	Unmarshal(data []byte, v any) error
}

// A KeyCodec is a [Codec] that receives the key of each value, so that it can bind one to the
// other: an encrypted value that is copied to another key in Redis is a miss there. A [Loader]
// whose [Options.Codec] is a KeyCodec calls MarshalKey and UnmarshalKey only. The key is the
// caller's, without [Options.Prefix].
//
// The rules for Marshal and Unmarshal hold for MarshalKey and UnmarshalKey.
type KeyCodec interface {
	Codec
	MarshalKey(key string, v any) ([]byte, error)
	UnmarshalKey(key string, data []byte, v any) error
}

// The codecs of this package. [New] refuses types that they cannot encode, and logs what they do
// not keep. A nil slice or map comes back as nil and an empty one as empty, but for a field with
// omitempty, which comes back as nil. A Loader with one of them neither reads nor stores a value whose
// decoding would allocate more than 32 times [Options.MaxBytes] and 1 MiB: hostile data could
// otherwise take hundreds of bytes of memory for each of its own. Your own codec must bound
// that itself.
var (
	// Msgpack is the default: compact and fast; see https://msgpack.org. A struct field has
	// the name of its tag "msgpack", or its Go name. Data that declares more than it has,
	// that nests more than 1000 arrays and maps, or that has interned strings is refused.
	//
	// A time.Time keeps its instant, and not its location: it comes back in time.Local, and the
	// zero time in UTC.
	Msgpack Codec = msgpackCodec{}

	// JSON is encoding/json, for values that people or programs in other languages read.
	//
	// A time.Time keeps its instant and its offset from UTC. It comes back in UTC if the offset is
	// zero, else in time.Local if that has the same offset then, else in a zone without a name.
	JSON Codec = jsonCodec{}
)

type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

type msgpackCodec struct{}

// Marshal refuses what Unmarshal would refuse.
func (msgpackCodec) Marshal(v any) ([]byte, error) {
	data, err := msgpack.Marshal(v)
	if err == nil {
		err = prescan.Check(data)
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Unmarshal checks the data first: the decoder accepts any length and any depth.
func (msgpackCodec) Unmarshal(data []byte, v any) error {
	d := decoders.Get().(*decoder)
	defer d.putBack()
	if err := d.data.Reset(data); err != nil {
		return err
	}
	d.Reset(&d.data)
	if err := d.Decode(v); err != nil {
		return err
	}
	return d.data.End()
}

// A decoder reads checked data.
type decoder struct {
	*msgpack.Decoder
	data prescan.Reader
}

var decoders = sync.Pool{New: func() any { return &decoder{Decoder: msgpack.NewDecoder(nil)} }}

func (d *decoder) putBack() {
	d.data = prescan.Reader{} // keeps no data of a caller
	decoders.Put(d)
}

// shapeOf returns what codec makes of a V.
func shapeOf[V any](codec Codec) shape.Shape {
	rules := shape.Other
	switch codec {
	case Msgpack:
		rules = shape.Msgpack
	case JSON:
		rules = shape.JSON
	}
	return shape.Of(reflect.TypeFor[V](), rules)
}

// nameOfCodec returns a name for errors and fingerprints.
func nameOfCodec(c Codec) string {
	switch c {
	case Msgpack:
		return "Msgpack"
	case JSON:
		return "JSON"
	}
	return fmt.Sprintf("%T", c)
}

// memoryOf returns the budget of a value's memory: none for a codec of the user's.
func memoryOf[V any](codec Codec, maxBytes int) *budget.Budget {
	if codec != Msgpack && codec != JSON {
		return nil
	}
	return budget.New(reflect.TypeFor[V](), codec == JSON, maxBytes)
}

// marshal calls the codec, with the key if it takes one.
func marshal(c Codec, key string, v any) ([]byte, error) {
	if k, ok := c.(KeyCodec); ok {
		return k.MarshalKey(key, v)
	}
	return c.Marshal(v)
}

// unmarshal calls the codec, with the key if it takes one.
func unmarshal(c Codec, key string, data []byte, v any) error {
	if k, ok := c.(KeyCodec); ok {
		return k.UnmarshalKey(key, data, v)
	}
	return c.Unmarshal(data, v)
}

// codecID returns the number by which an envelope says which codec wrote it:
// one for each of ours, and for another's one by the name of its type.
func codecID(c Codec) byte {
	switch c.(type) {
	case msgpackCodec:
		return 1
	case jsonCodec:
		return 2
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%T", c)
	return 0x80 | byte(h.Sum32())
}

var (
	errTooLarge = errors.New("larger than Options.MaxBytes")
	errCodec    = errors.New("written with another codec")

	errUnreadable = errors.New("the codec does not read what it wrote")
)

// header returns the header of a value, or an absence, that is made now and is
// fresh for ttl. A value is kept for longer, if it may be returned when it is old.
func (l *values[V]) header(k keyed, kind envelope.Kind, ttl time.Duration) envelope.Header {
	h := envelope.Header{
		Kind: kind, Codec: l.codec, Digest: k.names.Digest(),
		Created: l.serverNow().UnixMilli(), Fresh: ttl, Keep: ttl,
	}
	if kind == envelope.Value && ttl > 0 {
		h.Keep += max(l.opt.StaleWhileRevalidate, l.opt.StaleIfError)
	}
	return h
}

// encode encodes a value, if it may be kept: whatever would be refused on reading
// is refused here.
func (l *values[V]) encode(k keyed, v V) (payload []byte, err error) {
	defer recoverAs(&err)
	payload, err = marshal(l.opt.Codec, k.user, v)
	switch {
	case err != nil:
		return nil, err
	case len(payload) > l.opt.MaxBytes:
		return nil, errTooLarge
	}
	if err := l.memory.Check(payload); err != nil {
		return nil, err
	}
	if l.unsure {
		var read V
		if err := l.decode(k, payload, &read); err != nil {
			return nil, fmt.Errorf("%w: %w", errUnreadable, err)
		}
	}
	return payload, nil
}

// whyUnread returns what a log may say of an error of decode. A codec's own error may
// quote the value.
func whyUnread(err error) error {
	if memory, ok := errors.AsType[budget.Error](err); ok {
		return memory
	}
	return errors.New("the codec cannot read it")
}

// whyUnstored returns what a log may say of an error of encode. A codec's own
// error may quote the value.
func whyUnstored(err error) error {
	if format, ok := errors.AsType[prescan.Error](err); ok {
		return format
	}
	if memory, ok := errors.AsType[budget.Error](err); ok {
		return memory
	}
	switch {
	case errors.Is(err, errTooLarge):
		return errTooLarge
	case errors.Is(err, errUnreadable):
		return errUnreadable
	}
	return errors.New("the codec cannot write it")
}

func (l *values[V]) decode(k keyed, payload []byte, v *V) (err error) {
	defer recoverAs(&err)
	if err := l.memory.Check(payload); err != nil {
		return err
	}
	return unmarshal(l.opt.Codec, k.user, payload, v)
}

// recoverAs makes a codec's panic an error: data that nobody can read must not
// end the program, and a value that cannot be written must not be lost.
func recoverAs(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("the codec panicked: %v", r)
	}
}

// freshFor returns for how long a value is fresh in Redis, when it would
// be ttl and the fetch wants it to be own: with 0 it is not kept.
func (l *values[V]) freshFor(ttl, own time.Duration) time.Duration {
	switch {
	case l.opt.TTL == 0:
		return 0
	case own == 0:
		own = ttl
	}
	if own < leastTTL || own > longestTTL {
		return 0
	}
	return l.jitter(own)
}

// skipNil returns a clone function that returns a nil pointer or interface as it is.
func skipNil[V any](clone func(V) V) func(V) V {
	kind := reflect.TypeFor[V]().Kind()
	if clone == nil || kind != reflect.Pointer && kind != reflect.Interface {
		return clone
	}
	return func(v V) V {
		if r := reflect.ValueOf(v); !r.IsValid() || r.Kind() == reflect.Pointer && r.IsNil() {
			return v
		}
		return clone(v)
	}
}
