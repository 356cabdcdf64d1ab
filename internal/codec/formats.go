package codec

import (
	"encoding/json"
	"sync"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce/internal/prescan"
)

// JSON is encoding/json.
type JSON struct{}

// Marshal is [json.Marshal].
func (JSON) Marshal(v any) ([]byte, error) { return json.Marshal(v) }

// Unmarshal is [json.Unmarshal].
func (JSON) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// Msgpack is the msgpack format, with its data checked before it is decoded.
type Msgpack struct{}

// Marshal refuses what Unmarshal would refuse.
func (Msgpack) Marshal(v any) ([]byte, error) {
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
func (Msgpack) Unmarshal(data []byte, v any) error {
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
