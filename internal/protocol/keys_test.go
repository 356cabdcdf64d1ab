package protocol_test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

const owner = "00112233445566778899aabbccddeeff.1"

// names returns all names of a key, which are the same for every schema.
func names(prefix, key string) []string {
	k := protocol.NewNamespace(prefix, "").Key(key)
	return []string{k.Value, k.Meta(), k.Marks(), k.Staged(owner)}
}

func TestNamesAreReadable(t *testing.T) {
	for _, c := range []struct {
		prefix, key string
		want        []string
	}{
		{"things", "london", []string{"things:v:{london}", "things:m:{london}", "things:u:{london}", "things:t:{london}" + owner}},
		{"my:app", "a:b/c d", []string{"my:app:v:{a:b/c d}", "my:app:m:{a:b/c d}", "my:app:u:{a:b/c d}", "my:app:t:{a:b/c d}" + owner}},
		{"p", "Zürich", []string{"p:v:{Zürich}", "p:m:{Zürich}", "p:u:{Zürich}", "p:t:{Zürich}" + owner}},
		{"p", "", []string{"p:v:{%}", "p:m:{%}", "p:u:{%}", "p:t:{%}" + owner}},
		{"{p}", "{k}", []string{"%7Bp%7D:v:{%7Bk%7D}", "%7Bp%7D:m:{%7Bk%7D}", "%7Bp%7D:u:{%7Bk%7D}", "%7Bp%7D:t:{%7Bk%7D}" + owner}},
		{"p", "100%\r\n\x00\x7f", []string{"p:v:{100%25%0D%0A%00%7F}", "p:m:{100%25%0D%0A%00%7F}", "p:u:{100%25%0D%0A%00%7F}", "p:t:{100%25%0D%0A%00%7F}" + owner}},
	} {
		if got := names(c.prefix, c.key); !slices.Equal(got, c.want) {
			t.Errorf("names of %q, %q = %q, want %q", c.prefix, c.key, got, c.want)
		}
	}
	if got, want := protocol.NewNamespace("my{app}", "2").Channel("p1"), "my%7Bapp%7D:b:p1"; got != want {
		t.Errorf("channel = %q, want %q", got, want)
	}
}

// The builds share the names, so a Delete of one ends the values of all.
func TestSchemasShareNamesAndNoDigest(t *testing.T) {
	one, other := protocol.NewNamespace("things", "1").Key("k"), protocol.NewNamespace("things", "2").Key("k")
	if one.Value != other.Value || one.Meta() != other.Meta() || one.Marks() != other.Marks() {
		t.Errorf("two schemas have the names %q and %q", one.Value, other.Value)
	}
	if one.Digest() == other.Digest() {
		t.Error("two schemas have the same digest")
	}
}

func TestNamesOfLongKeysAreShort(t *testing.T) {
	longest := strings.Repeat("k", protocol.Longest)
	if got, want := names("p", longest)[0], "p:v:{"+longest+"}"; got != want {
		t.Errorf("the longest key that is readable has the name %q, want %q", got, want)
	}
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte(longest+"k")))
	seen := map[string]string{}
	for _, key := range []string{
		longest + "k", longest + "l", strings.Repeat("k", 1<<20), strings.Repeat("{", protocol.Longest), strings.Repeat("{", protocol.Longest/3+1),
		hash, "#" + hash, "%#" + hash,
	} {
		name := names("p", key)[0]
		if len(name) > protocol.Longest+20 {
			t.Errorf("a key of %d bytes has a name of %d", len(key), len(name))
		}
		if other, ok := seen[name]; ok {
			t.Errorf("keys of %d and %d bytes have the same name, %q", len(key), len(other), name)
		}
		seen[name] = key
	}
}

// checkNames checks the rules for all names of a key.
func checkNames(t *testing.T, prefix, key string) {
	t.Helper()
	all := names(prefix, key)
	for _, name := range all {
		if slot(name) != slot(all[0]) {
			t.Errorf("%q and %q are in different slots", name, all[0])
		}
		if strings.Count(name, "{") != 1 || strings.Count(name, "}") != 1 || strings.Contains(name, "{}") {
			t.Errorf("%q has not one hash tag", name)
		}
		if i := strings.IndexFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
			t.Errorf("%q has a control byte", name)
		}
		if utf8.ValidString(prefix) && utf8.ValidString(key) && !utf8.ValidString(name) {
			t.Errorf("the name of valid text is not: %q", name)
		}
		if limit := 3*len(prefix) + 3*protocol.Longest; len(name) > limit {
			t.Errorf("a name of %d bytes, want at most %d", len(name), limit)
		}
	}
}

// Inside a process, each key has a handle of its own. An invalidation has the key's name, and leads
// to the same handle.
func checkHandles(t *testing.T, one, other string) {
	t.Helper()
	if a, b := protocol.Handle(one), protocol.Handle(other); (a == b) != (one == other) {
		t.Errorf("keys %q and %q have the handles %q and %q", one, other, a, b)
	}
	if h, want := protocol.HandleOf(protocol.Tag(one)), protocol.Handle(one); h != want {
		t.Errorf("%q has the handle %q, and by its name %q", one, want, h)
	}
}

func TestHandlesAreInjective(t *testing.T) {
	hashed := protocol.Tag(strings.Repeat("k", 500))
	keys := []string{
		"", "%", "k", "%6B", "%7B", "{", "a b+c", "\xff%", "%#", "%zz", hashed, hashed[:65], hashed + "k",
		strings.Repeat("{", 65), strings.Repeat("{", 66), strings.Repeat("{", 67), strings.Repeat("{", 68), strings.Repeat("k", 500),
		strings.Repeat("k", 65), strings.Repeat("k", 66), strings.Repeat("%7B", 22), strings.Repeat("%", 66), protocol.Tag(strings.Repeat("{", 22)),
	}
	for _, one := range keys {
		for _, other := range keys {
			checkHandles(t, one, other)
		}
	}
}

// Two names are equal only if prefix, key and kind are. The strings consist of the special characters
// of names.
func TestNamesAreInjective(t *testing.T) {
	parts := []string{"", "{", "}", "%", ":", "@", "#", "v", "m", "7", "B", "\x00", "\xff", "{}", ":{", "}:", "%7B", ":v", ":m:{"}
	text := func() string {
		var b strings.Builder
		for range rand.IntN(4) {
			b.WriteString(parts[rand.IntN(len(parts))])
		}
		return b.String()
	}
	seen := map[string]string{}
	for range 30_000 {
		prefix, key := text(), text()
		for kind, name := range names(prefix, key) {
			id := fmt.Sprintf("%q %q %d", prefix, key, kind)
			if other, ok := seen[name]; ok && other != id {
				t.Fatalf("%s and %s have the same name, %q", id, other, name)
			}
			seen[name] = id
		}
		lock := protocol.NewNamespace(prefix, "").Lock(key).Names()
		for kind, name := range lock {
			id := fmt.Sprintf("lock %q %q %d", prefix, key, kind)
			if other, ok := seen[name]; ok && other != id {
				t.Fatalf("%s and %s have the same name, %q", id, other, name)
			}
			seen[name] = id
			if slot(name) != slot(lock[0]) {
				t.Errorf("%q and %q are in different slots", name, lock[0])
			}
		}
		checkNames(t, prefix, key)
	}
}

func FuzzNames(f *testing.F) {
	f.Add("things", "london", "things", "paris")
	f.Add("a", "b", "a:v", "b")
	f.Add("a", "b", "a", ":{b")
	f.Add("a", "", "a", "%")
	f.Add("{a}", "}{", "%7Ba%7D", "%7D%7B")
	f.Fuzz(func(t *testing.T, prefix1, key1, prefix2, key2 string) {
		checkNames(t, prefix1, key1)
		checkNames(t, prefix2, key2)
		checkHandles(t, key1, key2)
		same := prefix1 == prefix2 && key1 == key2
		for i, a := range names(prefix1, key1) {
			for j, b := range names(prefix2, key2) {
				if (a == b) != (same && i == j) {
					t.Errorf("%q %q %d and %q %q %d: names %q and %q", prefix1, key1, i, prefix2, key2, j, a, b)
				}
			}
		}
		one, other := protocol.NewNamespace(prefix1, ""), protocol.NewNamespace(prefix2, "")
		lock := one.Lock(key1).Names()
		for i, a := range lock {
			if slot(a) != slot(lock[0]) {
				t.Errorf("%q and %q are in different slots", a, lock[0])
			}
			for _, b := range names(prefix2, key2) {
				if a == b {
					t.Errorf("lock %q %q and key %q %q have the name %q", prefix1, key1, prefix2, key2, a)
				}
			}
			for j, b := range other.Lock(key2).Names() {
				if (a == b) != (same && i == j) {
					t.Errorf("locks %q %q %d and %q %q %d: names %q and %q", prefix1, key1, i, prefix2, key2, j, a, b)
				}
			}
		}
		if a, b := one.Channel("p"), other.Channel("p"); (a == b) != (prefix1 == prefix2) {
			t.Errorf("prefixes %q and %q have the channels %q and %q", prefix1, prefix2, a, b)
		}
	})
}

// slot returns the cluster slot of a name, computed as the specification of Redis Cluster says.
func slot(name string) int {
	if _, tag, ok := strings.Cut(name, "{"); ok {
		if tag, _, ok = strings.Cut(tag, "}"); ok && tag != "" {
			name = tag
		}
	}
	crc := uint16(0)
	for i := range len(name) {
		crc ^= uint16(name[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc % 16384)
}

func TestAllNamesOfAKeyHaveOneSlot(t *testing.T) {
	rdb := redistest.Cluster(t).Client()
	for _, key := range []string{"", "k", "{", "}", "{}", "}{", "{a}b", "a{}b", "\x00\xff", "%", "Zürich", strings.Repeat("k", 1000)} {
		var slots []int64
		for _, name := range names("pre{fix}", key) {
			n, err := rdb.ClusterKeySlot(t.Context(), name).Result()
			if err != nil {
				t.Fatal(err)
			}
			if int(n) != slot(name) {
				t.Errorf("slot of %q = %d, and by our reckoning %d", name, n, slot(name))
			}
			slots = append(slots, n)
		}
		if len(slices.Compact(slots)) != 1 {
			t.Errorf("key %q is in slots %v", key, slots)
		}
	}
}
