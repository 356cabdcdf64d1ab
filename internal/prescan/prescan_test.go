package prescan_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/fetchonce/fetchonce/internal/prescan"
)

// TestEachFormatIsKnown gives Check one value of each format that the msgpack
// specification lists, whole, one byte short and one byte long.
func TestEachFormatIsKnown(t *testing.T) {
	fill := func(n int) string { return strings.Repeat("2a", n) } // n times the number 42
	tests := map[string]string{
		"positive fixint": "00", "positive fixint max": "7f", "negative fixint": "e0", "negative fixint max": "ff",
		"nil": "c0", "false": "c2", "true": "c3",
		"fixmap empty": "80", "fixmap": "81 2a 2a", "fixmap max": "8f" + fill(30),
		"fixarray empty": "90", "fixarray": "91 2a", "fixarray max": "9f" + fill(15),
		"fixstr empty": "a0", "fixstr": "a3" + fill(3), "fixstr max": "bf" + fill(31),
		"bin 8 empty": "c4 00", "bin 8": "c4 02 2a 2a", "bin 8 max": "c4 ff" + fill(0xff),
		"bin 16": "c5 01 00" + fill(0x100), "bin 32": "c6 00 01 00 00" + fill(0x10000),
		"ext 8": "c7 03 07" + fill(3), "ext 16": "c8 01 00 07" + fill(0x100), "ext 32": "c9 00 01 00 00 07" + fill(0x10000),
		"float 32": "ca" + fill(4), "float 64": "cb" + fill(8),
		"uint 8": "cc" + fill(1), "uint 16": "cd" + fill(2), "uint 32": "ce" + fill(4), "uint 64": "cf" + fill(8),
		"int 8": "d0" + fill(1), "int 16": "d1" + fill(2), "int 32": "d2" + fill(4), "int 64": "d3" + fill(8),
		"fixext 1": "d4 07" + fill(1), "fixext 2": "d5 07" + fill(2), "fixext 4": "d6 07" + fill(4),
		"fixext 8": "d7 07" + fill(8), "fixext 16": "d8 07" + fill(16), "timestamp 96": "c7 0c ff" + fill(12),
		"str 8 empty": "d9 00", "str 8": "d9 02 2a 2a", "str 16": "da 01 00" + fill(0x100), "str 32": "db 00 01 00 00" + fill(0x10000),
		"array 16 empty": "dc 00 00", "array 16": "dc 01 00" + fill(0x100), "array 32": "dd 00 01 00 00" + fill(0x10000),
		"map 16 empty": "de 00 00", "map 16": "de 01 00" + fill(0x200), "map 32": "df 00 01 00 00" + fill(0x20000),
		"long lengths of little": "dd 00 00 00 02 db 00 00 00 01 2a df 00 00 00 00",
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			data := unhex(t, text)
			if err := prescan.Check(data); err != nil {
				t.Errorf("Check = %v; want nil", err)
			}
			if err := prescan.Check(data[:len(data)-1]); !errors.Is(err, prescan.ErrShort) {
				t.Errorf("Check without the last byte = %v; want ErrShort", err)
			}
			if err := prescan.Check(append(data, 0xc0)); err != nil {
				t.Errorf("Check with a nil in sequence = %v; want nil", err)
			}
			if err := prescan.Check(append(data, 0xc1)); !errors.Is(err, prescan.ErrReserved) {
				t.Errorf("Check with a reserved byte in sequence = %v; want ErrReserved", err)
			}
		})
	}
}

func TestUnsafeDataIsRefused(t *testing.T) {
	tests := map[string]struct {
		data string
		want error
	}{
		"nothing":                    {"", prescan.ErrShort},
		"reserved":                   {"c1", prescan.ErrReserved},
		"reserved in an array":       {"92 2a c1", prescan.ErrReserved},
		"reserved as a key":          {"81 c1 2a", prescan.ErrReserved},
		"second value too long":      {"2a dc 00 03 2a 2a", prescan.ErrShort},
		"second value cut off":       {"2a a3 61", prescan.ErrShort},
		"array 32 of 50 million":     {"dd 02 ff ff ff", prescan.ErrShort},
		"array 32 of 4 billion":      {"dd ff ff ff ff 2a", prescan.ErrShort},
		"map 32 of 4 billion":        {"df ff ff ff ff 2a 2a", prescan.ErrShort},
		"map 32 of 2 billion":        {"df 80 00 00 00 2a 2a", prescan.ErrShort}, // twice as many are 0 in 32 bits
		"bin 32 of 2 GB":             {"c6 7f ff ff ff", prescan.ErrShort},
		"str 32 of 4 GB":             {"db ff ff ff ff 2a", prescan.ErrShort},
		"ext 32 of 4 GB":             {"c9 ff ff ff ff 07 2a", prescan.ErrShort},
		"map with a key only":        {"81 2a", prescan.ErrShort},
		"inner array too long":       {"93 dc 00 03 2a 2a", prescan.ErrShort},
		"outer array too long":       {"93 92 2a 2a 2a", prescan.ErrShort},
		"length cut off":             {"dd 00 00", prescan.ErrShort},
		"extension without its type": {"d4", prescan.ErrShort},
		"extension without payload":  {"c7 00 07", prescan.ErrNoPayload},
		"interned string":            {"92 a3 61 62 63 d4 80 00", prescan.ErrInterned},
		"interned string, 16 bits":   {"92 a3 61 62 63 d5 80 00 00", prescan.ErrInterned},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := prescan.Check(unhex(t, test.data)); !errors.Is(err, test.want) {
				t.Errorf("Check(%s) = %v; want %v", test.data, err, test.want)
			}
		})
	}
}

func TestDepthIsBounded(t *testing.T) {
	repeat := func(text string, n int) []byte { return bytes.Repeat(unhex(t, text), n) }
	null := []byte{0xc0}
	tests := map[string]func(depth int) []byte{
		"arrays":              func(n int) []byte { return append(repeat("91", n), null...) },
		"arrays, long length": func(n int) []byte { return append(repeat("dd 00 00 00 01", n), null...) },
		"values of maps":      func(n int) []byte { return append(repeat("81 a0", n), null...) },
		"keys of maps":        func(n int) []byte { return slices.Concat(repeat("81", n), null, repeat("c0", n)) },
		"last of several":     func(n int) []byte { return append(repeat("93 2a 2a", n), null...) },
		"first of several":    func(n int) []byte { return slices.Concat(repeat("93", n), null, repeat("2a 2a", n)) },
		"second in sequence":  func(n int) []byte { return slices.Concat([]byte{0x91, 0xc0}, repeat("91", n), null) },
		"around an empty one": func(n int) []byte { return append(repeat("91", n-1), 0x90) },
	}
	for name, nested := range tests {
		t.Run(name, func(t *testing.T) {
			if err := prescan.Check(nested(prescan.MaxDepth)); err != nil {
				t.Errorf("Check of %d in one another = %v; want nil", prescan.MaxDepth, err)
			}
			for _, depth := range []int{prescan.MaxDepth + 1, 10_000, 2 << 20} {
				if err := prescan.Check(nested(depth)); !errors.Is(err, prescan.ErrDepth) {
					t.Errorf("Check of %d in one another = %v; want ErrDepth", depth, err)
				}
			}
		})
	}
}

func TestSiblingsAreNotDeep(t *testing.T) {
	deep := append(bytes.Repeat([]byte{0x91}, prescan.MaxDepth-1), 0xc0)
	wide := slices.Concat([]byte{0xdc, 0x10, 0x00}, bytes.Repeat(deep, 0x1000))
	if err := prescan.Check(wide); err != nil {
		t.Errorf("Check = %v; want nil", err)
	}
}

func TestCheckDoesNotAllocate(t *testing.T) {
	sound, err := msgpack.Marshal(sample)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"sound": sound,
		"deep":  append(bytes.Repeat([]byte{0x91}, 64), 0xc0),
		"short": {0xdd, 0x02, 0xff, 0xff, 0xff},
	} {
		if n := testing.AllocsPerRun(10, func() { _ = prescan.Check(data) }); n != 0 {
			t.Errorf("Check of %s data allocates %v times; want 0", name, n)
		}
	}
	hostile := bytes.Repeat([]byte{0x91}, 1<<20)
	if n := testing.AllocsPerRun(10, func() { _ = prescan.Check(hostile) }); n > 1 {
		t.Errorf("Check of a million arrays allocates %v times; want 1", n)
	}
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A user is like a value that programs cache. The sample takes about 200 bytes.
type user struct {
	ID      int64
	Name    string
	Email   string
	Roles   []string
	Created time.Time
	Address address
	Balance float64
	Active  bool
}

type address struct {
	Street, City, Country string
}

var sample = user{
	ID:      4711,
	Name:    "Ada Lovelace",
	Email:   "ada@example.com",
	Roles:   []string{"reader", "author", "admin"},
	Created: time.Unix(1700000000, 123456789),
	Address: address{"12 St James's Square", "London", "United Kingdom"},
	Balance: 1234.5,
	Active:  true,
}

func BenchmarkCheck(b *testing.B) {
	data, err := msgpack.Marshal(sample)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("user", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			if err := prescan.Check(data); err != nil {
				b.Fatal(err)
			}
		}
	})
	// The most work that a megabyte can make.
	worst := slices.Concat([]byte{0xdd, 0, 0x10, 0, 0}, bytes.Repeat([]byte{0x90}, 0x100000))
	b.Run("worst", func(b *testing.B) {
		b.SetBytes(int64(len(worst)))
		for b.Loop() {
			if err := prescan.Check(worst); err != nil {
				b.Fatal(err)
			}
		}
	})
}
