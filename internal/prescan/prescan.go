// Package prescan looks over msgpack that may be hostile before it is decoded.
//
// The decoder, github.com/vmihailenco/msgpack/v5, believes what it reads. It
// allocates by declared lengths and recurses as deep as the data goes: [Check]
// bounds both. And where it expects a map but finds an extension, it takes the
// payload of that for the map: a [Reader] keeps it out of payloads.
//
// The package knows the format and nothing of Go types: what an element of one
// byte becomes in memory is up to the type it is decoded into. It is used by
// the codec Msgpack.
package prescan

import "encoding/binary"

// MaxDepth is how many arrays and maps may stand in one another. A level takes
// less than 1 KiB of the decoder's stack, of which Go allows 1 GB.
const MaxDepth = 1000

// commonDepth is how many levels Check remembers without an allocation.
const commonDepth = 64

// An Error says what is wrong with data. Its text quotes none of it.
type Error string

// Error returns the text.
func (e Error) Error() string { return string(e) }

const (
	// ErrShort says that data is shorter than it declares.
	ErrShort Error = "msgpack: data is shorter than it declares"

	// ErrTrailing says that data goes on after what was decoded.
	ErrTrailing Error = "msgpack: data goes on after the value"

	// ErrDepth says that more than [MaxDepth] arrays and maps stand in one another.
	ErrDepth Error = "msgpack: nested deeper than 1000"

	// ErrReserved says that the byte 0xc1 stands where a value should begin.
	ErrReserved Error = "msgpack: 0xc1 is not a value"

	// ErrInterned says that data has interned strings, an extension that is the
	// msgpack library's own. Its decoder reads their payload byte by byte, just
	// as it reads that of an extension which it mistakes for a map.
	ErrInterned Error = "msgpack: interned strings are not supported"

	// ErrNoPayload says that data has an extension without a payload: the
	// decoder could take the value behind it for one.
	ErrNoPayload Error = "msgpack: extension without a payload"
)

// The first byte of a value says what follows it: so many bytes, up to
// maxFixed, or a length of so many bytes (width) of such a thing (class). With
// a width of 0 the length is in the first byte itself.
const (
	maxFixed = 31
	width    = 0x07
	class    = 0xf0

	blob  = 0x20 // a str or bin
	array = 0x30
	dict  = 0x40
	ext   = 0x50 // its type, a byte, stands between the length and the payload
	never = 0x60

	interned = 0x80 // the extension type -128
)

// heads is by first byte; nothing follows nil, false, true and small numbers.
var heads = [256]uint8{
	0x80: dict, dict, dict, dict, dict, dict, dict, dict,
	0x88: dict, dict, dict, dict, dict, dict, dict, dict,
	0x90: array, array, array, array, array, array, array, array,
	0x98: array, array, array, array, array, array, array, array,
	0xa0: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, // fixstr
	0xb0: 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
	0xc1: never,
	0xc4: blob | 1, blob | 2, blob | 4, // bin
	0xc7: ext | 1, ext | 2, ext | 4,
	0xca: 4, 8, // float
	0xcc: 1, 2, 4, 8, // uint
	0xd0: 1, 2, 4, 8, // int
	0xd4: ext, ext, ext, ext, ext, // fixext 1, 2, 4, 8, 16
	0xd9: blob | 1, blob | 2, blob | 4, // str
	0xdc: array | 2, array | 4,
	0xde: dict | 2, dict | 4,
}

// Check returns nil if data is one value or several in sequence, all of them
// complete and nested no deeper than [MaxDepth]. Otherwise the error is the
// [Error] that says what is wrong. Check visits each value once, and allocates
// only for data that nests deeper than most: once, 8 KiB.
//
// A type that encodes itself may write several values in sequence. Whether they
// all belong to one Go value shows when it is decoded: see [Reader.End].
func Check(data []byte) error {
	_, err := check(data)
	return err
}

// check is [Check]; it also reports whether there are extensions in data.
func check(data []byte) (exts bool, err error) {
	var common [commonDepth]int
	around := common[:] // the values still missing in each container around this one
	depth := 0
	missing := 1 // in this container
	off := 0
	for {
		if off >= len(data) {
			return false, ErrShort
		}
		head := heads[data[off]]
		missing--
		switch {
		case head <= maxFixed:
			off += 1 + int(head)
		case head == never:
			return false, ErrReserved
		default:
			var n uint64
			n, off = length(data, off)
			// Each value takes at least a byte, which bounds a count just as a size.
			if off > len(data) || n > uint64(len(data)-off) {
				return false, ErrShort
			}
			switch head & class {
			case array, dict:
				if depth == len(around) {
					if depth == MaxDepth {
						return false, ErrDepth
					}
					around = deeper(around)
				}
				around[depth] = missing
				depth++
				missing = int(n)
			case ext:
				if err := checkExt(data, off, n); err != nil {
					return false, err
				}
				exts = true
				off += int(n)
			default: // blob
				off += int(n)
			}
		}
		for missing == 0 {
			if depth == 0 {
				if off >= len(data) {
					return exts, checkEnd(data, off)
				}
				missing = 1 // the next in sequence
				break
			}
			depth--
			missing = around[depth]
		}
	}
}

// deeper returns a copy of around that has room for [MaxDepth] levels.
func deeper(around []int) []int {
	all := make([]int, MaxDepth)
	copy(all, around)
	return all
}

// checkExt checks an extension with n bytes of payload at off.
func checkExt(data []byte, off int, n uint64) error {
	switch {
	case n == 0:
		return ErrNoPayload
	case data[off-1] == interned:
		return ErrInterned
	}
	return nil
}

// checkEnd checks that the last value ends within data.
func checkEnd(data []byte, off int) error {
	if off > len(data) {
		return ErrShort
	}
	return nil
}

// length returns how many bytes or values the value at off declares, a pair
// being two, and where they begin. That is behind the end of data if the
// length itself is cut off.
func length(data []byte, off int) (n uint64, begin int) {
	first := data[off]
	head := heads[first]
	begin = off + 1 + int(head&width)
	if head&class == ext {
		begin++
	}
	if begin > len(data) {
		return 0, begin
	}
	switch head & width {
	case 1:
		n = uint64(data[off+1])
	case 2:
		n = uint64(binary.BigEndian.Uint16(data[off+1:]))
	case 4:
		n = uint64(binary.BigEndian.Uint32(data[off+1:]))
	default:
		n = uint64(first & 0x0f)
	}
	switch head {
	case ext:
		n = 1 << (n - 4) // 0xd4 is followed by 1 byte, 0xd8 by 16
	case dict, dict | 2, dict | 4:
		n *= 2
	}
	return n, begin
}

// payload returns where the payload of the first extension of data at or after
// off begins and ends, or twice the end of data if there is none. The data has
// been checked, and a value begins at off.
func payload(data []byte, off int) (begin, end int) {
	for off < len(data) {
		head := heads[data[off]]
		if head <= maxFixed {
			off += 1 + int(head)
			continue
		}
		n, begin := length(data, off)
		switch head & class {
		case ext:
			return begin, begin + int(n)
		case blob:
			off = begin + int(n)
		default:
			off = begin // the values in it
		}
	}
	return len(data), len(data)
}
