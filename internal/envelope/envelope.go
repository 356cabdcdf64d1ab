// Package envelope lays out the bytes of a stored value: a fixed header, then
// the value as its codec wrote it.
//
// It knows no Redis, no codec and no clock. The loader uses it to write and to
// read values; the scripts of internal/protocol know two things of it, the
// magic bytes and where the stamp is, so both are frozen.
//
// Bytes that come back from Redis are not trusted. [Open] tells a value of ours
// for the right key from everything else, and never reads past what it was
// given.
package envelope

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"time"
)

// The header, big endian. A checksum over everything but itself and the stamp
// makes any other damage visible; the stamp is left out because a script
// writes it where only Redis knows the time and the fence.
//
//	 0  magic "fo"
//	 2  version (high four bits), kind (low four)
//	 3  codec
//	 4  checksum, CRC-32C
//	 8  cost of the fetch in µs, at most 2^32-1
//	12  length of the payload
//	16  stamp: created, ms since 1970 by the server's clock
//	24  stamp: fence of the lease under which it was stored
//	32  fresh for ms after created
//	40  kept for ms after created
//	48  digest of the Redis key
//	56  payload
const (
	Size       = 56
	StampStart = 16 // frozen: the scripts write here,
	FenceStart = 24 // and read the fence here
	StampEnd   = 32

	version = 1
)

// A Kind says what an envelope holds.
type Kind byte

// The kinds. The state of a key has a field of its own: no value can be taken
// for "not found", whatever its bytes.
const (
	Value    Kind = 1
	NotFound Kind = 2
)

// A Header is what is known of a stored value besides the value.
type Header struct {
	Kind    Kind
	Codec   byte
	Cost    time.Duration // how long the fetch took
	Created int64         // ms since 1970, by the server's clock
	Fence   int64
	Fresh   time.Duration // from Created
	Keep    time.Duration // from Created
	Digest  uint64        // see [Digest]
}

// Why bytes are not a value that can be used.
var (
	ErrForeign   = errors.New("not one of our values")
	ErrVersion   = errors.New("of a version this build does not know")
	ErrTruncated = errors.New("truncated")
	ErrChecksum  = errors.New("checksum does not match")
	ErrKey       = errors.New("the value of another key")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seal returns a new envelope with the payload in it.
func Seal(h Header, payload []byte) []byte {
	b := make([]byte, Size+len(payload))
	b[0], b[1] = 'f', 'o'
	b[2] = version<<4 | byte(h.Kind)
	b[3] = h.Codec
	binary.BigEndian.PutUint32(b[8:], uint32(min(max(h.Cost.Microseconds(), 0), math.MaxUint32)))
	binary.BigEndian.PutUint32(b[12:], uint32(len(payload)))
	binary.BigEndian.PutUint64(b[16:], uint64(h.Created))
	binary.BigEndian.PutUint64(b[24:], uint64(h.Fence))
	binary.BigEndian.PutUint64(b[32:], uint64(h.Fresh.Milliseconds()))
	binary.BigEndian.PutUint64(b[40:], uint64(h.Keep.Milliseconds()))
	binary.BigEndian.PutUint64(b[48:], h.Digest)
	copy(b[Size:], payload)
	binary.BigEndian.PutUint32(b[4:], checksum(b))
	return b
}

// Open returns the header and the payload of an envelope for the key with the
// given digest. The payload is a part of b, not a copy.
func Open(b []byte, digest uint64) (Header, []byte, error) {
	switch {
	case len(b) < 3 || b[0] != 'f' || b[1] != 'o':
		return Header{}, nil, ErrForeign
	case b[2]>>4 != version:
		return Header{}, nil, ErrVersion
	case len(b) < Size || uint64(len(b)-Size) != uint64(binary.BigEndian.Uint32(b[12:])):
		return Header{}, nil, ErrTruncated
	case binary.BigEndian.Uint32(b[4:]) != checksum(b):
		return Header{}, nil, ErrChecksum
	case binary.BigEndian.Uint64(b[48:]) != digest:
		return Header{}, nil, ErrKey
	}
	h := Header{
		Kind:    Kind(b[2] & 0x0f),
		Codec:   b[3],
		Cost:    time.Duration(binary.BigEndian.Uint32(b[8:])) * time.Microsecond,
		Created: int64(binary.BigEndian.Uint64(b[16:])),
		Fence:   int64(binary.BigEndian.Uint64(b[24:])),
		Fresh:   millis(binary.BigEndian.Uint64(b[32:])),
		Keep:    millis(binary.BigEndian.Uint64(b[40:])),
		Digest:  digest,
	}
	if h.Kind != Value && h.Kind != NotFound {
		return Header{}, nil, ErrVersion
	}
	return h, b[Size:], nil
}

// Digest returns a number that two keys share only by rare accident: FNV-1a.
// It catches the reply to another key's command, not an enemy.
func Digest(redisKey string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(redisKey) {
		h = (h ^ uint64(redisKey[i])) * 1099511628211
	}
	return h
}

func checksum(b []byte) uint32 {
	sum := crc32.Update(0, castagnoli, b[:4])
	sum = crc32.Update(sum, castagnoli, b[8:StampStart])
	return crc32.Update(sum, castagnoli, b[StampEnd:])
}

// millis keeps a hostile number from overflowing a Duration.
func millis(n uint64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond
}
