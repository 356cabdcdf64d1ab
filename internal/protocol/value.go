package protocol

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

// A Value is the value of a key as one schema finds it; see the package's "Segments". The zero
// Value says that there is none.
type Value struct {
	// Own is the segment of this schema: nil if there is none. If the value is not a
	// sequence of segments, Own is all of it, and unusable.
	Own []byte

	// Head has the first bytes of the whole value, by which ACQUIRE knows it.
	Head []byte

	// Alone says that the value is this segment only, so Redis removes it when the segment
	// ends. Another schema's segment may keep the value for longer.
	Alone bool

	// Cut says that only the first bytes of the value were read, and that this segment is not
	// in them.
	Cut bool

	next int64 // with Cut: where this segment may begin
}

// Split returns what the bytes of the key's value hold for its schema. If there are more than
// limit, they are only the first ones.
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

// Get reads the bytes of a key's value: nil if there is none. It requests at most one byte
// more than limit, so that a segment that is too large is recognized without being read.
func (c *Client) Get(ctx context.Context, k Key, limit int) ([]byte, error) {
	return c.getRange(ctx, k.Value, 0, limit)
}

// ReadOn reads on where a value was cut. If the value has changed meanwhile, the result may have
// no segment, or an unusable one: ACQUIRE then finds that the head differs.
func (c *Client) ReadOn(ctx context.Context, k Key, v Value, limit int) (Value, error) {
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

// getRange reads the bytes of a value from one offset.
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
