package prescan_test

import (
	"errors"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce/internal/prescan"
)

// A record has a field of each kind whose decoding allocates by what it reads.
type record struct {
	ID     int64
	Names  []string
	Data   []byte
	Raw    msgpack.RawMessage
	Counts map[string]int
	Next   *record
	Parts  map[string]record
	Grid   [][]float64
	Fixed  [4]byte
	Wait   time.Duration
	ID2    uint8 `msgpack:"id,omitempty"`
	address
}

// FuzzChecked decodes what Check accepts into types of many shapes: none may
// make the decoder panic, or allocate more than what its elements take.
func FuzzChecked(f *testing.F) {
	for _, v := range []any{
		nil, true, -1, int64(1) << 40, 3.5, "text",
		[]byte{1, 2, 3},
		time.Unix(1, 2), time.Unix(-1, 2), sample,
		[]int64{1, 2, 3},
		map[string]string{"a": "b"},
		[]quad{{"a", "b", "c", "d"}},
		[]any{nil, []any{1}},
		record{Names: []string{"a"}, Next: &record{ID: 1}, Parts: map[string]record{"b": {Grid: [][]float64{{1}, nil}}}},
	} {
		data, err := msgpack.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, data := range []string{
		"\xdd\x02\xff\xff\xff", "\xc6\x7f\xff\xff\xff", "\xdf\x7f\xff\xff\xff\x00", "\x91\x91\x91\x91\xc0",
		"\xd7\xff\xdf\x01\xff\xff\xff\x00\x00\x00", "\xc7\x08\x07\x81\xa1a\xdd\x02\xff\xff\xff",
		"\x92\xa3abc\xd4\x80\x00", "\xdc\x00\x03\xc0\xc0\xc0", "\xde\x00\x02\xa0\xc0\xa0\xc0",
	} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if prescan.Check(data) != nil {
			return
		}
		// How much one byte may come to; see TestHostileDataInASmallProcess.
		for target, most := range map[any]int{
			new(string): 16, new([]byte): 16, new(map[string]string): 24, new([]int64): 18, new([]string): 36, new([][]byte): 52,
			new(any): 80, new([]quad): 160, new(map[int]quad): 160, new(map[string]map[string]any): 160,
			new(record): 1000, new([]record): 1000,
		} {
			before := heapAllocated()
			err := decode(data, target)
			if n, most := heapAllocated()-before, uint64(most*len(data)+1<<20); n > most {
				t.Errorf("decoding %d bytes into %T allocated %d bytes; want at most %d", len(data), target, n, most)
			}
			if errors.Is(err, prescan.ErrShort) {
				t.Errorf("decoding into %T = %v, but Check accepted the data", target, err)
			}
		}
	})
}

type quad struct{ A, B, C, D string }

// heapAllocated returns how many bytes were allocated so far. It counts small
// ones late, which is good enough for a bound, and stops nothing.
func heapAllocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// FuzzMarshaled makes values and checks that what msgpack makes of them is
// accepted and decoded to the same.
func FuzzMarshaled(f *testing.F) {
	f.Add(int64(1), "name", []byte("data"), 1.5, true, uint16(3), uint8(2))
	f.Add(int64(-1<<63), "", []byte(nil), 0.0, false, uint16(0xffff), uint8(63))
	f.Fuzz(func(t *testing.T, n int64, s string, b []byte, x float64, ok bool, many uint16, deep uint8) {
		var nested any = map[string]any{s: b, s + "x": x}
		for range 4 * int(deep) % (prescan.MaxDepth - 3) {
			nested = []any{nested, n}
		}
		v := map[string]any{
			"n": n, "s": s, "b": b, "x": x, "f": float32(x), "ok": ok, "small": int8(n), "u": uint64(n), "nested": nested,
			"many": make([]bool, many), "long": make([]byte, many), "map": map[string]string{s: s}, "time": time.Unix(n, n),
			"user": user{Name: s, Balance: x, Created: time.Unix(int64(many), n)}, "ptr": &user{}, "nil": (*user)(nil),
			"record": record{ID: n, Names: []string{s, s}, Data: b, Raw: msgpack.RawMessage{0xc0}, Wait: time.Duration(n)},
		}
		data, err := msgpack.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := prescan.Check(data); err != nil {
			t.Fatalf("Check of what msgpack made = %v; want nil", err)
		}
		var got struct {
			N    int64  `msgpack:"n"`
			S    string `msgpack:"s"`
			Many []bool `msgpack:"many"`
			User user   `msgpack:"user"`
		}
		if err := decode(data, &got); err != nil {
			t.Fatalf("decoding what msgpack made = %v; want nil", err)
		}
		if got.N != n || got.S != s || len(got.Many) != int(many) || got.User.Name != s || !got.User.Created.Equal(time.Unix(int64(many), n)) {
			t.Errorf("decoded %v, %q, %d, %v", got.N, got.S, len(got.Many), got.User)
		}
	})
}
