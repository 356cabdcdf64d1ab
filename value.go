package fetchonce

import (
	"errors"
	"fmt"
	"time"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

var (
	errTooLarge = errors.New("larger than Options.MaxBytes")
	errCodec    = errors.New("written with another codec")
)

// open reads a value that came from Redis, or in a message. Whatever is not one
// of ours, whole and for this key, is unusable: a miss, to be overwritten.
func (l *Loader[V]) open(k keyed, b []byte, source Source) (look[V], error) {
	if len(b) > l.opt.MaxBytes+envelope.Size {
		return l.unusable(b, errTooLarge), nil
	}
	h, payload, err := envelope.Open(b, k.digest)
	switch {
	case err != nil:
		return l.unusable(b, err), nil
	case h.Kind == envelope.NotFound:
		return look[V]{found: true}, ErrNotFound
	case h.Codec != l.codec:
		return l.unusable(b, errCodec), nil
	}
	seen := look[V]{found: true, result: Result[V]{Source: source, Age: l.age(h)}}
	if err := l.decode(payload, &seen.result.Value); err != nil {
		return l.unusable(b, errors.New("the codec cannot read it")), nil // not its error, which may quote the value
	}
	return seen, nil
}

// unusable counts what cannot be used. In what is returned is how b begins, so
// that no newer value is taken for it.
func (l *Loader[V]) unusable(b []byte, why error) look[V] {
	l.notices.warn(noticeUnusable, why)
	return look[V]{unusable: append([]byte{}, b[:min(len(b), envelope.Size)]...)}
}

func (l *Loader[V]) age(h envelope.Header) time.Duration {
	return max(l.serverNow().Sub(time.UnixMilli(h.Created)), 0)
}

// header returns the header of a value that is made now.
func (l *Loader[V]) header(k keyed, kind envelope.Kind, ttl time.Duration) envelope.Header {
	return envelope.Header{
		Kind: kind, Codec: l.codec, Digest: k.digest,
		Created: l.serverNow().UnixMilli(), Fresh: ttl, Keep: ttl,
	}
}

// encode encodes a value, if it may be kept.
func (l *Loader[V]) encode(v V) (payload []byte, err error) {
	defer recoverAs(&err)
	payload, err = l.opt.Codec.Marshal(v)
	if err == nil && len(payload) > l.opt.MaxBytes {
		err = errTooLarge
	}
	return payload, err
}

func (l *Loader[V]) decode(payload []byte, v *V) (err error) {
	defer recoverAs(&err)
	return l.opt.Codec.Unmarshal(payload, v)
}

// recoverAs makes a codec's panic an error: data that nobody can read must not
// end the program, and a value that cannot be written must not be lost.
func recoverAs(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("the codec panicked: %v", r)
	}
}

// keep returns for how long to keep a value in Redis, when it would be ttl and
// the fetch wants it to be own: 0 is not at all.
func (l *Loader[V]) keep(ttl, own time.Duration) time.Duration {
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
