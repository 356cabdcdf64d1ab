//go:build unix

package main_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/chaos/mutant"
)

// A judged is a mutant and the run that catches it.
type judged struct {
	mutant.Mutant
	by func(t *testing.T, s *scene) []history.Violation
}

func with(name, file, old, repl string) mutant.Mutant {
	return mutant.Mutant{Name: name, File: file, Old: old, New: repl}
}

var mutants = []judged{
	{with(
		"ACQUIRE ignores write marks", "internal/protocol/acquire.lua",
		`redis.call("HSET", KEYS[2], "u", "1")`, `local _ = 0`,
	), byCrashes},
	{with(
		"FILL stores a value that was fetched during a write", "internal/protocol/fill.lua",
		`ttl = "0" -- it`, `ttl = ARGV[4] -- it`,
	), byCrashes},
	{with(
		"a mark lasts one millisecond", "internal/protocol/invalidate.lua",
		`string.format("%.0f", now + lasts)`, `string.format("%.0f", now + 1)`,
	), byCrashes},
	{with(
		"a mark keeps the stored value", "internal/protocol/invalidate.lua",
		`if ends and ends > now then`, `if ends then`,
	), byCrashes},
	{with(
		"a mark is not renewed", "update.go",
		"l.redis.Remark(ctx, k.names, mark, l.opt.Lease)", "error(nil)",
	), byCrashes},
	{with(
		"INVALIDATE keeps the lease", "internal/protocol/invalidate.lua",
		`redis.call("UNLINK", meta)`, ``,
	), byLoad},
	{with(
		"INVALIDATE keeps the value", "internal/protocol/invalidate.lua",
		`redis.call("UNLINK", value)`, `0`,
	), byLoad},
	{with(
		"the end of an Update only removes the mark", "internal/protocol/invalidate.lua",
		`local n = 0`, `local n = 0 if marks and lasts == 0 then redis.call("HDEL", marks, ARGV[5]) return 0 end`,
	), byLoad},
	{with(
		"FILL does not check its lease", "internal/protocol/fill.lua",
		`if owner ~= ARGV[1] then`, `if owner == "nobody" then`,
	), byLoad},
	{with(
		"late callers receive a value that was fetched before they came", "fetch.go",
		"	r.flight.CloseToJoiners()\n	filled, err :=", "	r.flight.CloseToJoiners()\n	r.flight.Advance()\n	filled, err :=",
	), byLoad},
	{with(
		"a load can be joined while it is stored", "fetch.go",
		"	r.flight.CloseToJoiners()\n	filled, err :=", "	filled, err :=",
	), byLateReplies},
	{with(
		"late callers receive the value of a notification", "load.go",
		"if !r.flight.HasLate() {", "r.flight.Advance()\n	if !r.flight.HasLate() {",
	), byLateReplies},
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

func byLateReplies(t *testing.T, s *scene) []history.Violation {
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

// With each of these mistakes in the library, the judge finds stale reads.
func TestEachMutantIsCaught(t *testing.T) {
	if !full() {
		t.Skip("builds the tests once for each mutant: FETCHONCE_CHAOS=full runs it")
	}
	for _, m := range mutants {
		t.Run(m.Name, func(t *testing.T) {
			s := newScene(t, 300*time.Millisecond)
			dir := t.TempDir()
			s.binary = filepath.Join(dir, "chaos.test")
			if err := m.Build("..", dir, s.binary, "test", "-c"); err != nil {
				t.Fatal(err)
			}
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

// Each mistake can still be made in the source. A mutant without its mistake would test nothing.
func TestEveryMistakeOfTheTestsAppliesToTheSource(t *testing.T) {
	for _, m := range mutants {
		source, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(m.File)))
		if err != nil {
			t.Fatal(err)
		}
		if mutated, err := m.Apply(string(source)); err != nil || mutated == string(source) {
			t.Errorf("%q does not apply to %s: %v", m.Name, m.File, err)
		}
	}
}
