package protocol

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

// A Value is the stored value of a key, read by one schema; see "Segments" in the package comment.
// The zero Value says that nothing is stored.
type Value struct {
	// Own is the segment of this schema, or nil. If the value is not a sequence of segments,
	// Own is all of it, and it is unusable.
	Own []byte

	// Head has the first bytes of the whole value. They identify it in ACQUIRE.
	Head []byte

	// Alone says that the value has this segment only, so Redis deletes it when the segment
	// ends. A segment of another schema may keep the value for longer.
	Alone bool

	// Cut says that only the first bytes of the value were read, and this segment may come
	// after them.
	Cut bool

	next int64 // with Cut: the offset where this segment may begin
}

// Split parses the bytes of a value for the key's schema. If they are more than limit, the value
// may be longer.
func (k Key) Split(b []byte, limit int) Value {
	if len(b) == 0 {
		return Value{}
	}
	v := Value{Head: b[:min(len(b), envelope.Size)]}
	var own []byte
	at := int64(0)
	for range envelope.Segments {
		f, ok := envelope.ReadFrame(b[at:])
		end := at + f.Size
		if !ok || end > int64(len(b)) {
			if len(b) <= limit || at == 0 && (!ok || f.Digest == k.digest) {
				break // not segments, or too large
			}
			if own == nil {
				v.Cut, v.next = true, at
				if ok && f.Digest != k.digest {
					v.next = end
				}
			}
			v.Own = own
			return v
		}
		if f.Digest == k.digest && own == nil {
			own = b[at:end]
			v.Alone = len(own) == len(b)
		}
		if at = end; at == int64(len(b)) {
			v.Own = own
			return v
		}
	}
	v.Own, v.Alone = b, len(b) <= limit
	return v
}

// Get reads the bytes of a key's value; nil if nothing is stored. It reads at most one byte more
// than limit: a value that is too large is detected without being read.
func (c *Client) Get(ctx context.Context, k Key, limit int) ([]byte, error) {
	return c.getRange(ctx, k.Value, 0, limit)
}

// ReadRest reads the segment of a value that was cut. If the value has changed since, the result
// may have no segment or an unusable one; ACQUIRE detects that by the head.
func (c *Client) ReadRest(ctx context.Context, k Key, v Value, limit int) (Value, error) {
	for range envelope.Segments {
		if !v.Cut {
			break
		}
		b, err := c.getRange(ctx, k.Value, v.next, limit)
		if err != nil {
			return Value{}, err
		}
		rest := k.Split(b, limit)
		v.Own, v.Cut, v.next = rest.Own, rest.Cut, v.next+rest.next
	}
	v.Cut = false
	return v, nil
}

// getRange reads at most limit+1 bytes of a value, from an offset.
func (c *Client) getRange(ctx context.Context, name string, from int64, limit int) ([]byte, error) {
	to, started := from+int64(limit), time.Now()
	cmd := redis.NewStringCmd(ctx, "getrange", name, from, to)
	err := Discreet(c.run.Read(ctx, c.timeout, cmd))
	if err != nil {
		err = c.persist(ctx, err, func(within time.Duration) error {
			cmd = redis.NewStringCmd(ctx, "getrange", name, from, to)
			return Discreet(c.run.Read(ctx, within, cmd))
		})
	}
	switch {
	case err != nil && redis.HasErrorPrefix(err, "WRONGTYPE"):
		return nil, ErrType
	case err != nil || cmd.Val() == "":
		return nil, c.failed(ctx, call{"read", name, started}, err)
	}
	return cmd.Bytes()
}
