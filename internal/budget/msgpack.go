package budget

import "github.com/fetchonce/fetchonce/internal/prescan"

// A msgpackWalk walks over msgpack that was checked. It recurses as deep as the data goes,
// which [prescan.MaxDepth] bounds.
type msgpackWalk struct{ *walk }

// value walks over one value that is decoded into sh; nil is skipped by the decoder.
func (w *msgpackWalk) value(sh *shape) {
	from := w.off
	kind, n, begin := prescan.Next(w.data, w.off)
	w.off = begin
	if kind == prescan.Nil || w.over() {
		return
	}
	sh = w.target(sh)
	if sh != nil && sh.kind == opaque {
		w.skip(kind, n)
		w.spent += int64(w.off - from)
		return
	}
	switch kind {
	case prescan.Scalar:
		w.off += n
		w.number(sh)
	case prescan.Blob, prescan.Extension:
		w.off += n
		w.text(sh, n)
	case prescan.Array:
		for i := 0; i < n && !w.over(); i++ {
			w.value(w.array(sh, i))
		}
	case prescan.Dict:
		w.dict(sh, n)
	}
}

// dict walks over n pairs.
func (w *msgpackWalk) dict(sh *shape, n int) {
	isMap := w.isMap(sh)
	for i := 0; i < n && !w.over(); i++ {
		switch {
		case isMap:
			w.pairOf(sh, i)
			w.value(sh.key)
			w.value(sh.elem)
		case sh != nil && sh.kind == structure:
			w.value(sh.fields[w.name()])
		default:
			w.value(nil)
			w.value(nil)
		}
	}
}

// name reads a field's name. What is no text names no field.
func (w *msgpackWalk) name() string {
	kind, n, begin := prescan.Next(w.data, w.off)
	if kind != prescan.Blob {
		w.value(nil)
		return ""
	}
	w.off = begin + n
	return string(w.data[begin : begin+n])
}

// skip walks over the rest of a value whose kind was read.
func (w *msgpackWalk) skip(kind prescan.Kind, n int) {
	switch kind {
	case prescan.Array, prescan.Dict:
		if kind == prescan.Dict {
			n *= 2
		}
		for range n {
			w.value(nil)
		}
	default:
		w.off += n
	}
}
