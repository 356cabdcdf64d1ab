// Package budget limits the memory that decoding a value allocates.
//
// A byte of msgpack or JSON may become any number of bytes in memory. For example, an
// empty map may become a whole struct behind a pointer. A [Budget] walks over the data and
// the Go type together, before the data is decoded. It sums what the decoder allocates:
// slices while they grow, maps, targets of pointers, strings. It refuses data that needs
// more than the limit.
//
// The sum is an upper bound of all allocations, including those that are freed. A type
// that decodes itself counts as one value of its encoded size. The Budget skips the walk
// if the data is so short that even the most expensive byte of the type, times the length,
// is within the limit.
//
// The loader uses the package for the codecs Msgpack and JSON.
package budget

import (
	"encoding/json"
	"reflect"

	"github.com/fetchonce/fetchonce/internal/prescan"
)

// An Error says why data is refused. Its text does not quote the data.
type Error string

// Error returns the text.
func (e Error) Error() string { return string(e) }

// ErrMemory says that a value takes more memory than its limit allows.
const ErrMemory Error = "the value takes more memory than Options.MaxBytes allows: more than 32 times MaxBytes and 1 MiB"

// A value may take PerByte bytes of memory for each byte of the largest encoded value, plus
// Extra.
const (
	PerByte = 32
	Extra   = 1 << 20
)

// A Budget limits the values of one type. A nil Budget has no limit.
type Budget struct {
	shapes *shapes
	root   *shape
	limit  int64
	worst  int64 // the most that one byte of data costs
}

// New returns the Budget for values of type t that are encoded in at most maxBytes of JSON or
// msgpack.
func New(t reflect.Type, isJSON bool, maxBytes int) *Budget {
	s := newShapes(isJSON)
	b := &Budget{shapes: s, root: s.of(t), limit: int64(maxBytes)*PerByte + Extra}
	s.price()
	// A byte is at most one value: an element of a slice, the first one of a map, and the
	// target of pointers.
	b.worst = s.wild.per + s.wild.alloc + s.wild.group + s.wild.pair + mapHeader + 2*wordsOfAny
	if isJSON {
		b.worst += mismatch
	}
	return b
}

// Check returns [ErrMemory] if decoding data may take more memory than the limit. It reports
// no other problems: the decoder does.
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
			root = w.wild // a type that decodes itself may read several values
		}
	}
	if w.over() {
		return ErrMemory
	}
	return nil
}

// A walk is one walk over data.
type walk struct {
	data   []byte
	off    int
	spent  int64
	limit  int64
	growth int64 // how often the slots of a large map are allocated
	wild   *shape
}

func (w *walk) over() bool { return w.spent > w.limit }

// target counts the memory of a non-nil value itself, and returns the shape behind its
// pointers.
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

// text counts the memory of a string or bytes.
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

// number counts the memory of a number.
func (w *walk) number(sh *shape) {
	if sh.boxes() {
		w.spent += wordsOfAny
	}
}

// boxes reports whether a value may be stored in an interface.
func (sh *shape) boxes() bool { return sh != nil && (sh.kind == anything || sh.kind == wild) }

// array counts the memory of the element at i, and returns its shape.
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

// pairOf counts the memory of pair i of a map.
func (w *walk) pairOf(sh *shape, i int) {
	w.spent += sh.pair
	switch {
	case i == 0:
		w.spent += sh.group
	case i >= 8: //nolint:mnd // a group has eight slots, and at least 3.5 are in use
		w.spent += w.growth * sh.group * 2 / 7
	}
}

// isMap reports whether the shape may be a map, and counts the memory of its header.
func (w *walk) isMap(sh *shape) bool {
	if sh == nil || sh.kind != dict && !sh.boxes() {
		return false
	}
	w.spent += mapHeader
	return true
}
