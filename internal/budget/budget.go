// Package budget bounds the memory that decoding a value makes.
//
// A byte of msgpack or JSON may become any number of bytes in memory: an empty map is a
// whole struct behind a pointer, an empty array an array of a thousand numbers. A
// [Budget] walks over data before it is decoded, beside the Go type that it is decoded
// into, and adds up what the decoder allocates: elements of slices while they grow,
// maps, targets of pointers, strings. Data that needs more than the limit is refused.
//
// The sum is an estimate from above, of all that is allocated, the freed included. A type
// that decodes itself counts as one value, and as the bytes of that. Small data
// is not walked over: when even the worst byte of the type, times its length, is
// within the limit.
//
// The package is used by the loader, for the codecs Msgpack and JSON.
package budget

import (
	"encoding/json"
	"reflect"

	"github.com/fetchonce/fetchonce/internal/prescan"
)

// An Error says why data is refused. Its text quotes none of it.
type Error string

// Error returns the text.
func (e Error) Error() string { return string(e) }

// ErrMemory says that a value takes more memory than its limit allows.
const ErrMemory Error = "the value takes more memory than Options.MaxBytes allows: more than 32 times MaxBytes and 1 MiB"

// PerByte and Extra are the memory that a value may take: PerByte for each byte of the
// largest value that is read, and Extra.
const (
	PerByte = 32
	Extra   = 1 << 20
)

// A Budget bounds the values of one type. It may be nil, and then bounds nothing.
type Budget struct {
	shapes *shapes
	root   *shape
	limit  int64
	worst  int64 // that one byte of data may cost
}

// New returns the budget for values of type t, encoded in at most maxBytes of JSON or
// else msgpack.
func New(t reflect.Type, isJSON bool, maxBytes int) *Budget {
	s := newShapes(isJSON)
	b := &Budget{shapes: s, root: s.of(t), limit: int64(maxBytes)*PerByte + Extra}
	s.price()
	// A byte is at most one value: an element, the first of a map, and behind pointers.
	b.worst = s.wild.per + s.wild.alloc + s.wild.group + s.wild.pair + mapHeader + 2*wordsOfAny
	if isJSON {
		b.worst += mismatch
	}
	return b
}

// Check returns [ErrMemory] if decoding data takes more memory than the budget has.
// What is wrong with data otherwise is for the decoder to say.
func (b *Budget) Check(data []byte) error {
	if b == nil || int64(len(data)) <= b.limit/b.worst {
		return nil
	}
	w := &walk{data: data, limit: b.limit, wild: b.shapes.wild}
	switch {
	case b.shapes.json:
		if json.Valid(data) {
			w.growth = 2
			(&jsonWalk{w}).value(b.root)
		}
	case prescan.Check(data) == nil:
		w.growth = 1
		root := b.root
		for w.off < len(data) && !w.over() {
			(&msgpackWalk{w}).value(root)
			root = w.wild // it belongs to a type that reads several values
		}
	}
	if w.over() {
		return ErrMemory
	}
	return nil
}

// A walk is one way over data.
type walk struct {
	data   []byte
	off    int
	spent  int64
	limit  int64
	growth int64 // how often the places of a large map are made
	wild   *shape
}

func (w *walk) over() bool { return w.spent > w.limit }

// target spends what a value that is not nil needs for itself, and returns the shape
// behind pointers.
func (w *walk) target(sh *shape) *shape {
	if sh == nil {
		return nil
	}
	w.spent += sh.chain()
	for range 100 {
		if sh.kind != pointer {
			break
		}
		sh = sh.elem
	}
	return sh
}

// text spends what a string or bytes need.
func (w *walk) text(sh *shape, n int) {
	if sh == nil {
		return
	}
	w.spent += 2 * int64(n)
	if n > 0 || sh.boxes() {
		w.spent += wordsOfAny
	}
	if sh.boxes() {
		w.spent += wordsOfAny
	}
}

// number spends what a number needs.
func (w *walk) number(sh *shape) {
	if sh.boxes() {
		w.spent += wordsOfAny
	}
}

// boxes reports whether a value may be put into an interface.
func (sh *shape) boxes() bool { return sh != nil && (sh.kind == anything || sh.kind == wild) }

// array returns the shape of the element at i, and spends what it needs.
func (w *walk) array(sh *shape, i int) *shape {
	if sh == nil {
		return nil
	}
	switch sh.kind {
	case slice, anything, wild:
		if i == 0 {
			w.spent += 2 * wordsOfAny
		}
		w.spent += sh.per
		return sh.elem
	case array:
		return sh.elem
	case structure:
		switch {
		case sh.list == nil:
			return w.wild
		case i < len(sh.list):
			return sh.list[i]
		}
	}
	return nil
}

// pairOf spends what pair i of a map needs.
func (w *walk) pairOf(sh *shape, i int) {
	w.spent += sh.pair
	switch {
	case i == 0:
		w.spent += sh.group
	case i >= 8: //nolint:mnd // a group has eight places, of which at least 3.5 are in use
		w.spent += w.growth * sh.group * 2 / 7
	}
}

// isMap reports whether the shape may be a map, and spends its header.
func (w *walk) isMap(sh *shape) bool {
	if sh == nil || sh.kind != dict && !sh.boxes() {
		return false
	}
	w.spent += mapHeader
	return true
}
