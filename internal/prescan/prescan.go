// Package prescan checks msgpack that may be hostile before it is decoded.
//
// The decoder, github.com/vmihailenco/msgpack/v5, trusts its input. It allocates the
// declared lengths and recurses as deep as the data nests. [Check] bounds both. If the
// decoder finds an extension instead of a map, it decodes the extension's payload as the
// map. A [Reader] refuses that.
//
// The package knows the format, and no Go types. So it cannot tell how much memory an
// element takes: internal/budget does. The codec Msgpack uses both.
package prescan

import "encoding/binary"

// MaxDepth is how deep arrays and maps may nest. A level takes less than 1 KiB of the
// decoder's stack, and Go limits a stack to 1 GB.
const MaxDepth = 1000

// commonDepth is how many levels Check handles without an allocation.
const commonDepth = 64

// An Error says why data is refused. Its text does not quote the data.
type Error string

// Error returns the text.
func (e Error) Error() string { return string(e) }

const (
	// ErrShort says that data is shorter than it declares.
	ErrShort Error = "msgpack: data is shorter than it declares"

	// ErrTrailing says that data continues after the decoded value.
	ErrTrailing Error = "msgpack: data goes on after the value"

	// ErrDepth says that arrays and maps nest deeper than [MaxDepth].
	ErrDepth Error = "msgpack: nested deeper than 1000"

	// ErrReserved says that the byte 0xc1 stands where a value should begin.
	ErrReserved Error = "msgpack: 0xc1 is not a value"

	// ErrInterned says that data has interned strings, an extension of the msgpack
	// library. Its decoder reads their payload with ReadByte, which a [Reader] cannot
	// distinguish from an extension that is decoded as a map.
	ErrInterned Error = "msgpack: interned strings are not supported"

	// ErrNoPayload says that data has an extension without a payload: the decoder could
	// read the next value as the payload.
	ErrNoPayload Error = "msgpack: extension without a payload"
)

// The first byte of a value says what follows. Up to maxFixed, it is that number of bytes.
// Otherwise it is a length, whose size in bytes is the width, and then the bytes or values
// of the class. With a width of 0, the first byte contains the length.
const (
	maxFixed = 31
	width    = 0x07
	class    = 0xf0

	blob  = 0x20 // a str or bin
	array = 0x30
	dict  = 0x40
	ext   = 0x50 // a byte with its type follows the length
	never = 0x60

	interned = 0x80 // the extension type -128
)

// heads has an entry for each first byte. Nothing follows nil, false, true and small numbers.
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

// Check returns nil if data is one or more values in sequence, each complete and nested no
// deeper than [MaxDepth]. Otherwise it returns an [Error]. Check visits each value once. It
// allocates 8 KiB once if data nests deeper than commonDepth.
//
// A type that encodes itself may write several values in sequence. [Reader.End] checks
// that all of them were decoded.
func Check(data []byte) error {
	_, err := check(data)
	return err
}

// check is [Check], and reports whether data has extensions.
func check(data []byte) (exts bool, err error) {
	var common [commonDepth]int
	around := common[:] // the values still missing in each outer container
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
			// Each value takes at least a byte, so the rest of data bounds a count, too.
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

// deeper returns a copy of around with room for [MaxDepth] levels.
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

// length returns how many bytes or values the value at off declares, and where they begin.
// A pair counts as two values. begin is beyond the end of data if the length itself is cut.
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

// payload returns where the payload of the first extension at or after off begins and ends,
// or len(data) for both if there is none. The data has been checked, and a value begins at
// off.
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
