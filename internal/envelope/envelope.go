// Package envelope encodes a stored value: a fixed header, then the payload, which is the
// value as the codec encoded it.
//
// The value of a key in Redis is a sequence of envelopes, its segments: one for each schema,
// the newest first. There is more than one only while builds with different schemas run.
//
// The package knows nothing of Redis, codecs or clocks. The loader uses it to write and read
// values. The scripts of internal/protocol know the magic bytes, the version, the length,
// the times and the digest: none of them may move.
//
// Bytes from Redis are not trusted. [Open] accepts only an undamaged value of the right key.
package envelope

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"time"
)

// The header, big endian. The checksum covers everything but itself and the stamp: a script
// writes the stamp, because only Redis knows the time and the fence.
//
//	 0  magic "fo"
//	 2  version (high four bits), kind (low four)
//	 3  codec
//	 4  checksum, CRC-32C
//	 8  cost of the fetch in µs, at most 2^32-1
//	12  length of the payload
//	16  stamp: created, ms since 1970 by the server's clock
//	24  stamp: fence of the lease that stored it
//	32  fresh for ms after created
//	40  kept for ms after created
//	48  digest of the schema and the Redis key
//	56  payload
const (
	Size       = 56
	StampStart = 16 // fixed: the scripts write here,
	FenceStart = 24 // and read the fence here
	StampEnd   = 32

	// Segments is how many envelopes a value has at most.
	Segments = 3

	version = 1
)

// A Kind says what an envelope holds.
type Kind byte

// The kinds. The kind has its own field, so no bytes of a value can mean "not found".
const (
	Value    Kind = 1
	NotFound Kind = 2
)

// A Header describes a stored value.
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

// Why a value is unusable.
var (
	ErrForeign   = errors.New("not one of our values")
	ErrVersion   = errors.New("of a version this build does not know")
	ErrTruncated = errors.New("truncated")
	ErrChecksum  = errors.New("checksum does not match")
	ErrDigest    = errors.New("the value of another key or schema")
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

// An Opened is the content of an envelope.
type Opened struct {
	Header
	Payload []byte
}

// Open returns the content of an envelope with the given digest. The payload is a part of b,
// not a copy.
func Open(b []byte, digest uint64) (Opened, error) {
	switch {
	case len(b) < 3 || b[0] != 'f' || b[1] != 'o':
		return Opened{}, ErrForeign
	case b[2]>>4 != version:
		return Opened{}, ErrVersion
	case len(b) < Size || uint64(len(b)-Size) != uint64(binary.BigEndian.Uint32(b[12:])):
		return Opened{}, ErrTruncated
	case binary.BigEndian.Uint32(b[4:]) != checksum(b):
		return Opened{}, ErrChecksum
	case binary.BigEndian.Uint64(b[48:]) != digest:
		return Opened{}, ErrDigest
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
		return Opened{}, ErrVersion
	}
	return Opened{h, b[Size:]}, nil
}

// A Frame is what the header of an envelope says before its payload is read.
type Frame struct {
	Size   int64 // of the whole envelope
	Digest uint64
}

// ReadFrame reads the frame of the envelope that b begins with. It reports false if b does not
// begin with a header of this version.
func ReadFrame(b []byte) (Frame, bool) {
	if len(b) < Size || b[0] != 'f' || b[1] != 'o' || b[2]>>4 != version {
		return Frame{}, false
	}
	return Frame{Size + int64(binary.BigEndian.Uint32(b[12:])), binary.BigEndian.Uint64(b[48:])}, true
}

// Seed returns the seed with which the digests of a schema begin.
func Seed(schema string) uint64 {
	sum := sha256.Sum256([]byte(schema))
	return binary.BigEndian.Uint64(sum[:])
}

// Digest returns the FNV-1a hash of a key, which begins with the seed of a schema. It detects
// the envelope of another schema and the reply to another key's command. It does not protect
// against an attacker.
//
// Each step of FNV-1a is a bijection, so two seeds never have the same digest for a key.
func Digest(seed uint64, redisKey string) uint64 {
	h := seed
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

// millis returns a Duration, or the longest one if the number would overflow it.
func millis(n uint64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond
}
