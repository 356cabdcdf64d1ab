package budget

import "github.com/fetchonce/fetchonce/internal/prescan"

// A msgpackWalk walks over checked msgpack. It recurses as deep as the data nests;
// [prescan.MaxDepth] limits that.
type msgpackWalk struct{ *walk }

// value walks over one value that is decoded into sh. If sh is nil, the decoder skips it.
func (w *msgpackWalk) value(sh *shape) {
	from := w.off
	t := prescan.Next(w.data, w.off)
	w.off = t.Begin
	if t.Kind == prescan.Nil || w.over() {
		return
	}
	sh = w.target(sh)
	if sh != nil && sh.kind == opaque {
		w.skip(t)
		w.spent += int64(w.off - from)
		return
	}
	switch t.Kind {
	case prescan.Scalar:
		w.off += t.Len
		w.number(sh)
	case prescan.Blob, prescan.Extension:
		w.off += t.Len
		w.text(sh, t.Len)
	case prescan.Array:
		for i := 0; i < t.Len && !w.over(); i++ {
			w.value(w.array(sh, i))
		}
	case prescan.Dict:
		w.dict(sh, t.Len)
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
			w.value(sh.fields[string(w.name())])
		default:
			w.value(nil)
			w.value(nil)
		}
	}
}

// name reads the name of a field. A value that is not a string names no field.
func (w *msgpackWalk) name() []byte {
	t := prescan.Next(w.data, w.off)
	if t.Kind != prescan.Blob {
		w.value(nil)
		return nil
	}
	w.off = t.Begin + t.Len
	return w.data[t.Begin:w.off]
}

// skip walks over the rest of a value after its token.
func (w *msgpackWalk) skip(t prescan.Token) {
	values := t.Len
	switch t.Kind {
	case prescan.Dict:
		values *= 2
	case prescan.Array:
	default:
		w.off += t.Len
		return
	}
	for range values {
		w.value(nil)
	}
}
