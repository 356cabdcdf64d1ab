package fetchonce

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/fetchonce/fetchonce/internal/budget"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/prescan"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

var (
	errTooLarge = errors.New("larger than Options.MaxBytes")
	errCodec    = errors.New("written with another codec")

	errUnreadable = errors.New("the codec does not read what it wrote")
)

// clockSlack is by how much a value may outlive its time by this process's clock. Redis
// removes each value of ours in time, so one that is older is a stranger's copy, or this
// clock is wrong. The server's clock decides that: see [protocol.PassOver].
const clockSlack = time.Minute

// openAndKeep reads a value that came from Redis, and judges whether it is fresh.
// With a ticket it keeps a copy of what is.
func (l *Loader[V]) openAndKeep(t near.Ticket, k keyed, b []byte) (look[V], error) {
	h, seen, err := l.unpack(k, b, SourceRedis)
	switch {
	case seen.found && (h.Created < 0 || l.age(h)-h.Keep > clockSlack):
		over := passOver(b)
		over.Ended = h.Created >= 0
		return look[V]{over: over}, nil
	case err == nil && seen.found:
		l.judge(&seen, h, b)
	}
	l.keepNear(t, k, h, &seen, b)
	return seen, err
}

// unpack reads a value that came from Redis, or in a message. Whatever is not one
// of ours, whole and for this key, is unusable: a miss, to be overwritten.
func (l *Loader[V]) unpack(k keyed, b []byte, source Source) (envelope.Header, look[V], error) {
	if len(b) > l.readLimit() {
		return envelope.Header{}, l.unusable(b, errTooLarge), nil
	}
	h, payload, err := envelope.Open(b, k.digest)
	switch {
	case err != nil:
		return h, l.unusable(b, err), nil
	case h.Kind == envelope.NotFound:
		return h, look[V]{found: true, result: Result[V]{Source: source}}, ErrNotFound
	case h.Codec != l.codec:
		return h, l.unusable(b, errCodec), nil
	}
	seen := look[V]{found: true, result: Result[V]{Source: source, Age: l.age(h)}}
	if err := l.decode(k, payload, &seen.result.Value); err != nil {
		return h, l.unusable(b, whyUnread(err)), nil
	}
	return h, seen, nil
}

// judge says what may be done with a value of that age: it is fresh; or it is
// old, and may be returned while a new one is fetched, or if that fails; or it is
// of no use any more. Where Redis keeps values no longer than they are fresh, it
// decides by itself, whatever the clocks say.
func (l *Loader[V]) judge(seen *look[V], h envelope.Header, b []byte) {
	age := seen.result.Age
	switch {
	case age < h.Fresh || h.Keep <= h.Fresh:
		seen.refresh = l.isEarly(h, age)
	case age-h.Fresh < l.opt.StaleWhileRevalidate:
		seen.result.Stale, seen.refresh = true, true
	case age-h.Fresh < l.opt.StaleIfError:
		seen.result.Stale, seen.found, seen.spare = true, false, true
	default:
		*seen = look[V]{over: passOver(b)}
	}
	if seen.refresh || seen.spare {
		seen.over = passOver(b)
		seen.over.Stale = true
		seen.staleFor = max(age-h.Fresh, 0)
	}
}

// isEarly reports whether it is this caller who refreshes a value that is still
// fresh; see [Options.EarlyRefresh].
func (l *Loader[V]) isEarly(h envelope.Header, age time.Duration) bool {
	if l.opt.EarlyRefresh == 0 {
		return false
	}
	return float64(h.Cost)*l.opt.EarlyRefresh*rand.ExpFloat64() >= float64(h.Fresh-age) // ExpFloat64 is -ln(random)
}

// unusable counts what cannot be used.
func (l *Loader[V]) unusable(b []byte, why error) look[V] {
	l.notices.warn(noticeUnusable, why)
	return look[V]{over: passOver(b)}
}

// passOver returns what an ACQUIRE is told of a value that it is to pass over:
// how it begins, so that no newer one is taken for it.
func passOver(b []byte) *protocol.PassOver {
	return &protocol.PassOver{Head: slices.Clone(b[:min(len(b), envelope.Size)])}
}

func (l *Loader[V]) age(h envelope.Header) time.Duration {
	return max(l.serverNow().Sub(time.UnixMilli(h.Created)), 0)
}

// header returns the header of a value, or an absence, that is made now and is
// fresh for ttl. A value is kept for longer, if it may be returned when it is old.
func (l *Loader[V]) header(k keyed, kind envelope.Kind, ttl time.Duration) envelope.Header {
	h := envelope.Header{
		Kind: kind, Codec: l.codec, Digest: k.digest,
		Created: l.serverNow().UnixMilli(), Fresh: ttl, Keep: ttl,
	}
	if kind == envelope.Value && ttl > 0 {
		h.Keep += max(l.opt.StaleWhileRevalidate, l.opt.StaleIfError)
	}
	return h
}

// encode encodes a value, if it may be kept: whatever would be refused on reading
// is refused here.
func (l *Loader[V]) encode(k keyed, v V) (payload []byte, err error) {
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

func (l *Loader[V]) decode(k keyed, payload []byte, v *V) (err error) {
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
func (l *Loader[V]) freshFor(ttl, own time.Duration) time.Duration {
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
