package prescan

// A Kind says what begins at a place in checked data.
type Kind byte

// The kinds of what may stand there.
const (
	Scalar Kind = iota // a number or a boolean
	Nil
	Blob      // a string or bytes
	Array     // as many values follow as its length says
	Dict      // twice as many
	Extension // bytes of a type of its own
)

// Next returns what begins at off in data that [Check] has passed: its kind, its length in
// bytes, values or pairs, and where that which belongs to it begins. Scalars have
// the length of what follows their first byte.
func Next(data []byte, off int) (kind Kind, n, begin int) {
	first := data[off]
	head := heads[first]
	switch {
	case first == 0xc0:
		return Nil, 0, off + 1
	case head <= maxFixed && first >= 0xa0 && first <= 0xbf:
		return Blob, int(head), off + 1
	case head <= maxFixed:
		return Scalar, int(head), off + 1
	}
	count, begin := length(data, off)
	switch head & class {
	case array:
		return Array, int(count), begin
	case dict:
		return Dict, int(count / 2), begin
	case ext:
		return Extension, int(count), begin
	}
	return Blob, int(count), begin
}
