package near_test

import (
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// FuzzChanges has somebody say that a name has changed, as the server does, or
// anybody who may publish. A key's own name is never missed, and no other name
// costs more than a copy of the key that it names.
func FuzzChanges(f *testing.F) {
	for _, name := range []string{"", "{", "}", "{}", "p:v:{k}", "p:v:{k", "p:v:{}", "p:v@2:{k}", "q:v:{k}", "p:v:{k}}", "p:v:{{k}", "p:h:process:1", "p:m:{k}"} {
		f.Add("p", "", "k", name)
	}
	f.Add("p{}", "2:", "{}%\x00", "p%7B%7D:v@2%3A:{%7B%7D%25%00}")
	f.Fuzz(func(t *testing.T, prefix, schema, key, name string) {
		ns := protocol.NewNamespace(prefix, schema)
		k := ns.Key(key)
		beats := protocol.Beats(ns.Changes(), "process")
		tags, all := near.Heard(ns.Values(), beats, []any{"invalidate", []any{name, nil, int64(7), []any{name}, k.Value}})
		if all {
			t.Errorf("everything was forgotten for %q", name)
		}
		if len(tags) == 0 || tags[len(tags)-1] != protocol.Tag(key) || len(tags) > 2 {
			t.Fatalf("the changes of %q and %q drop the copies of %q", name, k.Value, tags)
		}
		if rest, ours := strings.CutPrefix(name, ns.Values()); len(tags) == 2 && (!ours || tags[0]+"}" != rest) {
			t.Errorf("the change of %q drops the copy of %q", name, tags[0])
		}
	})
}

// What is no list of names is not one.
func TestPushesOfAnyShape(t *testing.T) {
	for _, message := range [][]any{nil, {"invalidate"}, {"invalidate", nil}, {"invalidate", "p:v:{k}"}, {"invalidate", []any{}}, {"invalidate", int64(1)}, {"invalidate", []any{nil}}} {
		tags, all := near.Heard(values, "p:h:process:", message)
		if len(tags) > 0 {
			t.Errorf("%v drops the copies of %q", message, tags)
		}
		if flush := len(message) < 2 || message[1] == nil; all != flush {
			t.Errorf("%v drops everything: %v, want %v", message, all, flush)
		}
	}
}
