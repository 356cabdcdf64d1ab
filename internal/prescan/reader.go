package prescan

import (
	"errors"
	"io"
)

// ErrPayload says that the decoder was about to decode the payload of an extension as a
// value. Either the data has an extension where the Go type has a map, or the registered
// decoder of an extension reads its payload in parts.
const ErrPayload Error = "msgpack: unexpected extension"

// A Reader reads checked data for the decoder of the msgpack library, which reads the first
// byte of a value with ReadByte and the rest with Read. In the payload of an extension,
// ReadByte fails, because payloads are not checked.
//
// The zero Reader is at the end of its data.
type Reader struct {
	data []byte
	off  int

	// Where the payload of the next extension that ends after off begins and ends;
	// len(data) for both if there is none.
	payload, payloadEnd int
}

// Reset checks data like [Check]. If there is no error, r reads data from its beginning.
func (r *Reader) Reset(data []byte) error {
	exts, err := check(data)
	if err != nil {
		return err
	}
	*r = Reader{data: data, payload: len(data), payloadEnd: len(data)}
	if exts {
		r.payload, r.payloadEnd = payload(data, 0)
	}
	return nil
}

// Read reads up to len(p) bytes.
func (r *Reader) Read(p []byte) (int, error) {
	n := copy(p, r.data[r.off:])
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	r.off += n
	return n, nil
}

// ReadByte reads a byte. In the payload of an extension it returns [ErrPayload].
func (r *Reader) ReadByte() (byte, error) {
	if r.off >= r.payload {
		if err := r.pass(); err != nil {
			return 0, err
		}
	}
	b := r.data[r.off]
	r.off++
	return b, nil
}

// pass finds the next payload if the current one has been read.
func (r *Reader) pass() error {
	for r.off >= r.payloadEnd && r.payloadEnd < len(r.data) {
		r.payload, r.payloadEnd = payload(r.data, r.payloadEnd)
	}
	switch {
	case r.off >= len(r.data):
		return io.EOF
	case r.off >= r.payload:
		return ErrPayload
	}
	return nil
}

// End returns [ErrTrailing] if not all data was read.
func (r *Reader) End() error {
	if r.off < len(r.data) {
		return ErrTrailing
	}
	return nil
}

// UnreadByte takes back the last ReadByte.
func (r *Reader) UnreadByte() error {
	if r.off == 0 {
		return errors.New("prescan: UnreadByte at the beginning of the data")
	}
	r.off--
	return nil
}
