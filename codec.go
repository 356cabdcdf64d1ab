package fetchonce

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"sync"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce/internal/prescan"
)

// A Codec turns values into bytes and back. It is called by many goroutines
// at once. Unmarshal must treat data as hostile, as anybody who can write to
// Redis could have put it there, and must neither keep nor change data, which
// others may be reading. It is given data that the same type of codec wrote, so a
// change of format needs a new type, or a new [Options.Schema].
type Codec interface {
	Marshal(v any) ([]byte, error)
	Unmarshal(data []byte, v any) error
}

// The codecs that come with the package.
var (
	// Msgpack is the default: compact, and quick. Struct fields are named by
	// the tag "msgpack", or as they are in Go. It refuses data that declares
	// more than it has, that nests deeper than 64 arrays and maps, or that has
	// interned strings; see https://msgpack.org for the format.
	Msgpack Codec = msgpackCodec{}

	// JSON is encoding/json: for values that people, or programs in other
	// languages, read in Redis.
	JSON Codec = jsonCodec{}
)

type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

type msgpackCodec struct{}

func (msgpackCodec) Marshal(v any) ([]byte, error) { return msgpack.Marshal(v) }

// Unmarshal has the data looked over first: the decoder believes any length,
// and recurses as deep as the data goes.
func (msgpackCodec) Unmarshal(data []byte, v any) error {
	d := decoders.Get().(*decoder)
	defer d.putBack()
	if err := d.data.Reset(data); err != nil {
		return err
	}
	d.Reset(&d.data)
	return d.Decode(v)
}

// A decoder reads checked data.
type decoder struct {
	*msgpack.Decoder
	data prescan.Reader
}

var decoders = sync.Pool{New: func() any { return &decoder{Decoder: msgpack.NewDecoder(nil)} }}

func (d *decoder) putBack() {
	d.data = prescan.Reader{} // keeps no data of anybody's
	decoders.Put(d)
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
