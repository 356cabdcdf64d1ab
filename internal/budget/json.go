package budget

import (
	"bytes"
	"strings"
)

// A jsonWalk walks over valid JSON. It recurses as deep as the data nests; encoding/json
// limits that.
type jsonWalk struct{ *walk }

// value walks over one value that is decoded into sh. If sh is nil, the decoder skips it.
func (w *jsonWalk) value(sh *shape) {
	w.space()
	if w.over() {
		return
	}
	first, from := w.data[w.off], w.off
	if first == 'n' {
		w.off += len("null")
		return
	}
	sh = w.target(sh)
	if sh != nil && sh.kind == opaque {
		w.some(first, nil)
		w.spent += int64(w.off - from)
		return
	}
	if !fits(first, sh) {
		w.spent += mismatch
	}
	w.some(first, sh)
}

// mismatch is what encoding/json allocates for the error of a value of a wrong type. It makes
// one for each such value, and returns the first.
const mismatch = 128

// fits reports whether a value with this first byte can be decoded into sh.
func fits(first byte, sh *shape) bool {
	if sh == nil || sh.boxes() {
		return true
	}
	switch first {
	case '{':
		return sh.kind == dict || sh.kind == structure
	case '[':
		return sh.kind == slice || sh.kind == array
	}
	switch sh.kind {
	case text:
		return first == '"'
	case boolean:
		return first == 't' || first == 'f'
	case number:
		return first != '"' && first != 't' && first != 'f'
	}
	return sh.kind == slice && first == '"' // bytes
}

func (w *jsonWalk) some(first byte, sh *shape) {
	switch first {
	case '{':
		w.object(sh)
	case '[':
		w.list(sh)
	case '"':
		w.text(sh, len(w.str()))
	default: // a number, true or false
		w.off += len(w.data[w.off:]) - len(bytes.TrimLeft(w.data[w.off:], "+-.0123456789Eaeflrstu"))
		w.number(sh)
	}
}

// list walks over an array.
func (w *jsonWalk) list(sh *shape) {
	w.off++ // the bracket
	for i := 0; w.more(']') && !w.over(); i++ {
		w.value(w.element(sh, i))
	}
}

// element returns the shape of an element. JSON decodes no struct from an array.
func (w *jsonWalk) element(sh *shape, i int) *shape {
	if sh != nil && sh.kind == structure {
		return nil
	}
	return w.array(sh, i)
}

// object walks over an object.
func (w *jsonWalk) object(sh *shape) {
	isMap := w.isMap(sh)
	w.off++ // the brace
	for i := 0; w.more('}') && !w.over(); i++ {
		w.space()
		name := w.str()
		w.space()
		w.off++ // the colon
		switch {
		case isMap:
			w.pairOf(sh, i)
			w.text(sh.key, len(name))
			if sh.key.kind == number {
				w.spent += mismatch // it may not be a number
			}
			w.value(sh.elem)
		case sh != nil && sh.kind == structure:
			w.value(w.field(sh, name))
		default:
			w.value(nil)
		}
	}
}

// more moves to the next part of an object or array, or past its end.
func (w *jsonWalk) more(end byte) bool {
	w.space()
	switch w.data[w.off] {
	case end:
		w.off++
		return false
	case ',':
		w.off++
	}
	return true
}

// field returns the shape of the field with a name, whose case JSON ignores. An escaped or
// non-ASCII name may be that of any field.
func (w *jsonWalk) field(sh *shape, name []byte) *shape {
	for _, c := range name {
		if c == '\\' || c >= 0x80 { //nolint:mnd // ASCII ends there
			return w.wild
		}
	}
	return sh.fields[strings.ToLower(string(name))]
}

// str returns the text of a string without unescaping it, and moves past it.
func (w *jsonWalk) str() []byte {
	from := w.off + 1
	for w.off = from; w.data[w.off] != '"'; w.off++ {
		if w.data[w.off] == '\\' {
			w.off++
		}
	}
	w.off++
	return w.data[from : w.off-1]
}

func (w *jsonWalk) space() {
	for w.off < len(w.data) && (w.data[w.off] == ' ' || w.data[w.off] == '\n' || w.data[w.off] == '\t' || w.data[w.off] == '\r') {
		w.off++
	}
}
