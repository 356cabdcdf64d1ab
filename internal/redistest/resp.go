package redistest

import (
	"bytes"
	"strconv"
)

// frame returns the length of the RESP value at the start of b. It returns 0 if the
// value is incomplete, and -1 if b does not start with a RESP value.
func frame(b []byte) int {
	eol := bytes.Index(b, []byte("\r\n"))
	switch eol {
	case -1:
		return 0
	case 0:
		return -1
	}
	end := eol + 2
	if bytes.IndexByte([]byte("+-:_#,("), b[0]) >= 0 {
		return end
	}
	n, err := strconv.Atoi(string(b[1:eol]))
	if err != nil {
		return -1
	}
	values := 0
	switch b[0] {
	case '$', '=', '!':
		if n >= 0 {
			end += n + 2
		}
		if end > len(b) {
			return 0
		}
	case '*', '>', '~':
		values = n
	case '%':
		values = 2 * n
	case '|':
		values = 2*n + 1
	default:
		return -1
	}
	for range values {
		length := frame(b[end:])
		if length <= 0 {
			return length
		}
		end += length
	}
	return end
}

// bulks returns the first n elements of b, an array or push. An element that is not
// a bulk string is "".
func bulks(b []byte, n int) []string {
	values := make([]string, n)
	if len(b) == 0 || b[0] != '*' && b[0] != '>' {
		return values
	}
	b = b[bytes.Index(b, []byte("\r\n"))+2:]
	for i := range values {
		length := frame(b)
		if length <= 0 {
			break
		}
		if b[0] == '$' {
			_, value, _ := bytes.Cut(b[:length], []byte("\r\n"))
			values[i] = string(bytes.TrimSuffix(value, []byte("\r\n")))
		}
		b = b[length:]
	}
	return values
}

// command encodes args as a request.
func command(args ...string) []byte {
	b := []byte("*" + strconv.Itoa(len(args)) + "\r\n")
	for _, arg := range args {
		b = append(b, "$"+strconv.Itoa(len(arg))+"\r\n"+arg+"\r\n"...)
	}
	return b
}
