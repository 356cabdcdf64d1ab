package near_test

import (
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// FuzzChanges sends invalidations with any names, as the server does, or any client that may
// publish. The name of a key always drops the entry of that key. Another name drops at most
// the entry of the key that it names.
func FuzzChanges(f *testing.F) {
	for _, name := range []string{"", "{", "}", "{}", "p:v:{k}", "p:v:{k", "p:v:{}", "q:v:{k}", "p:v:{k}}", "p:v:{{k}", "p:h:process:1", "p:m:{k}"} {
		f.Add("p", "k", name)
	}
	f.Add("p{}", "{}%\x00", "p%7B%7D:v:{%7B%7D%25%00}")
	f.Fuzz(func(t *testing.T, prefix, key, name string) {
		ns := protocol.NewNamespace(prefix, "")
		k := ns.Key(key)
		heartbeats := protocol.Heartbeats(ns.Changes(), "process")
		tags, all := near.Invalidated(ns.Values(), heartbeats, []any{"invalidate", []any{name, nil, int64(7), []any{name}, k.Value}})
		if all {
			t.Errorf("all entries were dropped for %q", name)
		}
		if len(tags) == 0 || tags[len(tags)-1] != protocol.Tag(key) || len(tags) > 2 {
			t.Fatalf("the changes of %q and %q drop the entries of %q", name, k.Value, tags)
		}
		if rest, ours := strings.CutPrefix(name, ns.Values()); len(tags) == 2 && (!ours || tags[0]+"}" != rest) {
			t.Errorf("the change of %q drops the entry of %q", name, tags[0])
		}
	})
}

func TestOnlyNullNamesDropAllEntries(t *testing.T) {
	for _, message := range [][]any{nil, {"invalidate"}, {"invalidate", nil}, {"invalidate", "p:v:{k}"}, {"invalidate", []any{}}, {"invalidate", int64(1)}, {"invalidate", []any{nil}}} {
		tags, all := near.Invalidated(values, "p:h:process:", message)
		if len(tags) > 0 {
			t.Errorf("%v drops the entries of %q", message, tags)
		}
		if flush := len(message) < 2 || message[1] == nil; all != flush {
			t.Errorf("%v drops all entries: %v, want %v", message, all, flush)
		}
	}
}
