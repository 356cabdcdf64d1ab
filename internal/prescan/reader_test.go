package prescan_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce/internal/prescan"
)

// decode decodes data into v as the codec does.
func decode(data []byte, v any) error {
	var r prescan.Reader
	if err := r.Reset(data); err != nil {
		return err
	}
	if err := msgpack.NewDecoder(&r).Decode(v); err != nil {
		return err
	}
	return r.End()
}

// allocated returns how many bytes do allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestPayloadIsNotTakenForMap decodes well-formed data into maps where it has
// extensions, with a map in their payload. For the first one, ten bytes, the
// bare decoder allocates 2.7 GB.
func TestPayloadIsNotTakenForMap(t *testing.T) {
	type recursive map[string]recursive
	tests := map[string]struct {
		data   string
		target any
	}{
		"map 32":                 {"d7 ff df 01 ff ff ff 00 00 00", new(map[string]any)},
		"map 32, all of it":      {"c7 05 07 df 01 ff ff ff", new(map[string]any)},
		"map of strings":         {"c7 05 07 df 01 ff ff ff", new(map[string]string)},
		"map of what follows":    {"92 d4 07 82 a0", new([]map[string]string)},
		"recursive map":          {"93 d4 07 81 a0 d4 07 81", new([]recursive)},
		"nil map":                {"d5 07 c0 df", new(map[string]any)},
		"array 32 in a map":      {"c7 08 07 81 a1 61 dd 02 ff ff ff", new(map[string][]int64)},
		"bin 32 in a map":        {"c8 00 08 07 81 a1 61 c6 7f ff ff ff", new(map[string][]byte)},
		"ext 32":                 {"c9 00 00 00 08 07 81 a1 61 dd 02 ff ff ff", new(map[string][]string)},
		"in a field":             {"81 a1 46 c7 05 07 df 01 ff ff ff", new(struct{ F map[int]bool })},
		"in a map":               {"81 a1 61 c7 05 07 df 01 ff ff ff", new(map[string]map[string]any)},
		"behind other extension": {"92 d4 07 00 c7 05 07 df 01 ff ff ff", new([]msgpackMap)},
		"behind a skipped one":   {"82 a1 58 d4 07 81 a1 46 c7 05 07 df 01 ff ff ff", new(struct{ F map[string]any })},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			data := unhex(t, test.data)
			if err := prescan.Check(data); err != nil {
				t.Fatalf("Check = %v; want nil, so that this is about the Reader", err)
			}
			var err error
			n := allocated(func() { err = decode(data, test.target) })
			if !errors.Is(err, prescan.ErrPayload) {
				t.Errorf("decoding = %v; want ErrPayload", err)
			}
			if n > 64<<10 {
				t.Errorf("decoding allocated %d bytes", n)
			}
		})
	}
}

// A msgpackMap reads an extension by its rules, and then a map.
type msgpackMap map[string]any

func (m *msgpackMap) DecodeMsgpack(dec *msgpack.Decoder) (err error) {
	if _, _, err := dec.DecodeExtHeader(); err != nil {
		return err
	}
	if err := dec.ReadFull(make([]byte, 1)); err != nil {
		return err
	}
	*m, err = dec.DecodeMap()
	return err
}

// TestEveryTimeIsRead has times whose encoding begins with each byte there can
// be, those that begin a map among them, and stands between other values.
func TestEveryTimeIsRead(t *testing.T) {
	type event struct {
		Before map[string]string
		At     time.Time
		After  map[string]string
	}
	for nsec := 0; nsec < 1e9; nsec += 1 << 22 { // the upper byte of its 30 bits is the first
		for _, sec := range []int64{0, 0x80000000, 0xdf000000, 1 << 34, -1} {
			want := event{map[string]string{"a": "b"}, time.Unix(sec, int64(nsec)), map[string]string{"c": "d"}}
			data, err := msgpack.Marshal([]event{want, want})
			if err != nil {
				t.Fatal(err)
			}
			var got []event
			if err := decode(data, &got); err != nil || len(got) != 2 || !got[1].At.Equal(want.At) || got[1].After["c"] != "d" {
				t.Fatalf("decoding %v = %v, %v", want, got, err)
			}
		}
	}
}

func TestReaderReads(t *testing.T) {
	data := unhex(t, "94 2a d9 02 61 62 c3 ca 00 00 00 00")
	var r prescan.Reader
	if err := r.Reset(data); err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(&r, data); err != nil {
		t.Error(err)
	}

	if err := r.Reset(data); err != nil {
		t.Fatal(err)
	}
	for i, want := range data {
		if b, err := r.ReadByte(); b != want || err != nil {
			t.Fatalf("ReadByte %d = %#x, %v; want %#x, nil", i, b, err, want)
		}
		if err := r.UnreadByte(); err != nil {
			t.Fatalf("UnreadByte %d = %v; want nil", i, err)
		}
		if b, err := r.ReadByte(); b != want || err != nil {
			t.Fatalf("second ReadByte %d = %#x, %v; want %#x, nil", i, b, err, want)
		}
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("ReadByte at the end = %v; want EOF", err)
	}
}

func TestReaderOfUnsafeDataIsEmpty(t *testing.T) {
	var r prescan.Reader
	if err := r.Reset([]byte{0xc1}); !errors.Is(err, prescan.ErrReserved) {
		t.Errorf("Reset = %v; want ErrReserved", err)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("ReadByte = %v; want EOF", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("Read = %v; want EOF", err)
	}
	if err := r.UnreadByte(); err == nil {
		t.Errorf("UnreadByte = nil; want an error")
	}
}

func BenchmarkReader(b *testing.B) {
	data, err := msgpack.Marshal(sample)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("bytes.Reader", func(b *testing.B) {
		r, dec := bytes.NewReader(nil), msgpack.NewDecoder(nil)
		b.ReportAllocs()
		for b.Loop() {
			r.Reset(data)
			dec.Reset(r)
			if err := dec.Decode(new(user)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("checked", func(b *testing.B) {
		r, dec := new(prescan.Reader), msgpack.NewDecoder(nil)
		b.ReportAllocs()
		for b.Loop() {
			if err := r.Reset(data); err != nil {
				b.Fatal(err)
			}
			dec.Reset(r)
			if err := dec.Decode(new(user)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
