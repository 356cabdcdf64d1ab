package keytext

import (
	"fmt"
	"strconv"
	"unicode/utf8"
)

// mostQuoted is how many bytes of a key Quote quotes.
const mostQuoted = 200

// Quote returns a key as the text of an error quotes it: at most its first 200 bytes, and the
// length of a longer key.
func Quote(key string) string {
	if len(key) <= mostQuoted {
		return strconv.Quote(key)
	}
	end := mostQuoted
	for end > mostQuoted-utf8.UTFMax && !utf8.RuneStart(key[end]) {
		end--
	}
	return fmt.Sprintf("%q... (%d bytes)", key[:end], len(key))
}
