//go:build unix

package main_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/chaos/history"
)

// A mutant is the library with a mistake in it.
type mutant struct {
	name     string
	file     string // below the library's root
	old, new string // what stands there once, and what in its place
	by       func(t *testing.T, s *scene) []history.Violation
}

var mutants = []mutant{
	{
		"ACQUIRE does not see that somebody writes", "internal/protocol/acquire.lua",
		`redis.call("HSET", KEYS[2], "u", "1")`, `local _ = 0`, byCrashes,
	},
	{
		"FILL stores what was fetched while somebody wrote", "internal/protocol/fill.lua",
		`ttl = "0" -- it`, `ttl = ARGV[4] -- it`, byCrashes,
	},
	{
		"a mark lasts but a moment", "update.go",
		"l.redis.Mark(ctx, k.names, mark, l.opt.Lease); err != nil {\n\t\tif ctx",
		"l.redis.Mark(ctx, k.names, mark, time.Millisecond); err != nil {\n\t\tif ctx", byCrashes,
	},
	{
		"a mark does not end what was stored", "internal/protocol/invalidate.lua",
		`if ends > now then return 0 end`, `do return 0 end`, byCrashes,
	},
	{
		"a mark is not renewed", "update.go",
		"l.redis.Mark(ctx, k.names, mark, l.opt.Lease); err != nil {\n\t\t\t\tpause",
		"error(nil); err != nil {\n\t\t\t\tpause", byCrashes,
	},
	{
		"INVALIDATE leaves the lease", "internal/protocol/invalidate.lua",
		`redis.call("DEL", KEYS[2])`, ``, byLoad,
	},
	{
		"INVALIDATE leaves the value", "internal/protocol/invalidate.lua",
		`redis.call("DEL", KEYS[1])`, `0`, byLoad,
	},
	{
		"the end of an Update only takes the mark off", "internal/protocol/invalidate.lua",
		`redis.call("HDEL", KEYS[3], ARGV[4])`, `do redis.call("HDEL", KEYS[3], ARGV[4]) return 0 end`, byLoad,
	},
	{
		"FILL does not look whose lease it is", "internal/protocol/fill.lua",
		`if owner ~= ARGV[1] then`, `if owner == "nobody" then`, byLoad,
	},
	{
		"late joiners get what was fetched before they came", "load.go",
		"	r.call.Close()\n	filled, err :=", "	r.call.Close()\n	r.call.Mark()\n	filled, err :=", byLoad,
	},
	{
		"a load can be joined until it is stored", "load.go",
		"	r.call.Close()\n	filled, err :=", "	filled, err :=", byLateAnswers,
	},
	{
		"late joiners get what a message brings", "load.go",
		"if !r.call.Late() {", "r.call.Mark()\n	if !r.call.Late() {", byLateAnswers,
	},
}

func byCrashes(t *testing.T, s *scene) []history.Violation {
	t.Helper()
	m := startMatrix(s)
	m.round(0)
	m.stop()
	found, _ := m.judge()
	return found
}

func byLoad(t *testing.T, s *scene) []history.Violation {
	t.Helper()
	return underLoad(startLoad(s, false))
}

func byLateAnswers(t *testing.T, s *scene) []history.Violation {
	t.Helper()
	return underLoad(startLoad(s, true))
}

func underLoad(l *loading) []history.Violation {
	l.t.Helper()
	l.run(5*time.Second, func() { time.Sleep(100 * time.Millisecond) })
	l.stop()
	found, _ := l.judge()
	return found
}

// The judge finds what it is there to find: of a library with any of these
// mistakes, it says that reads were stale.
func TestMutantsAreCaught(t *testing.T) {
	if !full() {
		t.Skip("builds the tests once for each mutant: FETCHONCE_CHAOS=full runs it")
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			s := newScene(t, 300*time.Millisecond)
			s.binary = m.build(t)
			began := history.Now()
			found := m.by(t, s)
			stale := 0
			var first history.Violation
			for _, v := range found {
				if v.Kind == history.Stale {
					if stale++; stale == 1 {
						first = v
					}
				}
			}
			if stale == 0 {
				t.Fatalf("not caught; found %v", found)
			}
			t.Logf("%d stale reads, the first after %v:\n%v", stale, first.At.Sub(began).Round(time.Millisecond), first)
		})
	}
}

// build builds this test with the mutant in the library's place, and returns the
// binary.
func (m mutant) build(t *testing.T) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join("..", m.file))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		t.Fatalf("%s has %q %d times", m.file, m.old, n)
	}
	dir := t.TempDir()
	mutated, overlay, binary := filepath.Join(dir, "mutated"), filepath.Join(dir, "overlay"), filepath.Join(dir, "chaos.test")
	if err := os.WriteFile(mutated, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{file: mutated}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		t.Fatal(err)
	}
	if said, err := exec.Command("go", "test", "-c", "-overlay", overlay, "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, said)
	}
	return binary
}
