package fetchonce

import (
	"errors"
	"reflect"

	"github.com/fetchonce/fetchonce/internal/codec"
)

// A Codec encodes and decodes values. Its methods are called concurrently. Unmarshal must treat data
// as hostile, because any writer to Redis may have stored it. It must neither keep nor change data,
// because other goroutines may read it. It receives only data that a codec of the same type wrote:
// to change the format, use a codec of a new type or another [Options.Schema].
//
// A value is stored only if Unmarshal can read what Marshal wrote. So a Loader calls Unmarshal once
// before it stores a value. With [Msgpack] and [JSON] it does not if every value of the type can be
// read: the type has no interface and no type with its own encoder, and does not contain itself.
type Codec interface {
	Marshal(v any) ([]byte, error)
	Unmarshal(data []byte, v any) error
}

// A KeyCodec is a [Codec] that receives the key of each value, so it can bind the value to the key.
// For example, an encrypted value that is copied to another key in Redis is a miss there. A [Loader]
// whose [Options.Codec] is a KeyCodec calls only MarshalKey and UnmarshalKey. The key is the
// caller's, without [Options.Prefix].
//
// MarshalKey and UnmarshalKey must follow the rules for Marshal and Unmarshal.
type KeyCodec interface {
	Codec
	MarshalKey(key string, v any) ([]byte, error)
	UnmarshalKey(key string, data []byte, v any) error
}

// The codecs of this package. [New] refuses types that they cannot encode, and logs what they do not
// keep. A nil slice or map is decoded as nil, and an empty one as empty. In a field with omitempty,
// an empty one is decoded as nil.
//
// With these codecs, a Loader neither reads nor stores a value whose decoding would allocate more
// than 32 times [Options.MaxBytes] plus 1 MiB. This limits hostile data, of which one byte may
// otherwise take hundreds of bytes of memory. A codec of your own must have its own limit.
var (
	// Msgpack is the default: compact and fast; see https://msgpack.org. The name of a struct field
	// is that of its tag "msgpack", or its Go name. Msgpack refuses data that is shorter than it
	// declares, nests more than 1000 arrays and maps, or has interned strings.
	//
	// A time.Time keeps its instant but not its location. It is decoded in time.Local, and the zero
	// time in UTC.
	Msgpack Codec = codec.Msgpack{}

	// JSON is encoding/json, for values that people or other programs read.
	//
	// A time.Time keeps its instant and its offset from UTC. It is decoded in UTC if the offset is
	// zero, in time.Local if that has the same offset at that instant, and otherwise in a zone
	// without a name.
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
