package fetchonce

import (
	"errors"
	"reflect"

	"github.com/fetchonce/fetchonce/internal/codec"
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
	Msgpack Codec = codec.Msgpack{}

	// JSON is encoding/json, for values that people or programs in other languages read.
	//
	// A time.Time keeps its instant and its offset from UTC. It comes back in UTC if the offset is
	// zero, else in time.Local if that has the same offset then, else in a zone without a name.
	JSON Codec = codec.JSON{}
)

var errCodec = errors.New("written with another codec")

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
