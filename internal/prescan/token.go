package prescan

// A Kind says what begins at a place in checked data.
type Kind byte

// The kinds of tokens.
const (
	Scalar    Kind = iota // a number or a boolean
	Nil                   // nil
	Blob                  // a string or bytes
	Array                 // its values follow
	Dict                  // its pairs of a key and a value follow
	Extension             // bytes of a type of its own
)

// A Token describes the value that begins at a place in checked data.
type Token struct {
	Kind Kind

	// Len is the length of a Blob, an Extension or a Scalar without its first byte, in
	// bytes. For an Array it is the number of values, for a Dict that of pairs.
	Len int

	// Begin is where the bytes or the values begin.
	Begin int
}

// Next returns the token that begins at off. The data has passed [Check].
func Next(data []byte, off int) Token {
	first := data[off]
	head := heads[first]
	switch {
	case first == 0xc0:
		return Token{Nil, 0, off + 1}
	case head <= maxFixed && first >= 0xa0 && first <= 0xbf:
		return Token{Blob, int(head), off + 1}
	case head <= maxFixed:
		return Token{Scalar, int(head), off + 1}
	}
	n, begin := length(data, off)
	switch head & class {
	case array:
		return Token{Array, int(n), begin}
	case dict:
		return Token{Dict, int(n / 2), begin}
	case ext:
		return Token{Extension, int(n), begin}
	}
	return Token{Blob, int(n), begin}
}
