//go:build unix

package main_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/chaos/mutant"
)

// A crashed is a mutant, and what catches it.
type crashed struct {
	mutant.Mutant
	by func(t *testing.T, s *scene) []history.Violation
}

func with(name, file, old, repl string) mutant.Mutant {
	return mutant.Mutant{Name: name, File: file, Old: old, New: repl}
}

var mutants = []crashed{
	{with(
		"ACQUIRE does not see that somebody writes", "internal/protocol/acquire.lua",
		`redis.call("HSET", KEYS[2], "u", "1")`, `local _ = 0`,
	), byCrashes},
	{with(
		"FILL stores what was fetched while somebody wrote", "internal/protocol/fill.lua",
		`ttl = "0" -- it`, `ttl = ARGV[4] -- it`,
	), byCrashes},
	{with(
		"a mark lasts but a moment", "update.go",
		"l.redis.Mark(ctx, k.names, mark, l.opt.Lease); err != nil {\n\t\tif ctx",
		"l.redis.Mark(ctx, k.names, mark, time.Millisecond); err != nil {\n\t\tif ctx",
	), byCrashes},
	{with(
		"a mark does not end what was stored", "internal/protocol/invalidate.lua",
		`if ends > now then return 0 end`, `do return 0 end`,
	), byCrashes},
	{with(
		"a mark is not renewed", "update.go",
		"l.redis.Mark(ctx, k.names, mark, l.opt.Lease); err != nil {\n\t\t\t\tpause",
		"error(nil); err != nil {\n\t\t\t\tpause",
	), byCrashes},
	{with(
		"INVALIDATE leaves the lease", "internal/protocol/invalidate.lua",
		`redis.call("DEL", KEYS[2])`, ``,
	), byLoad},
	{with(
		"INVALIDATE leaves the value", "internal/protocol/invalidate.lua",
		`redis.call("DEL", KEYS[1])`, `0`,
	), byLoad},
	{with(
		"the end of an Update only takes the mark off", "internal/protocol/invalidate.lua",
		`redis.call("HDEL", KEYS[3], ARGV[4])`, `do redis.call("HDEL", KEYS[3], ARGV[4]) return 0 end`,
	), byLoad},
	{with(
		"FILL does not look whose lease it is", "internal/protocol/fill.lua",
		`if owner ~= ARGV[1] then`, `if owner == "nobody" then`,
	), byLoad},
	{with(
		"late joiners get what was fetched before they came", "fetch.go",
		"	r.flight.Close()\n	filled, err :=", "	r.flight.Close()\n	r.flight.Advance()\n	filled, err :=",
	), byLoad},
	{with(
		"a load can be joined until it is stored", "fetch.go",
		"	r.flight.Close()\n	filled, err :=", "	filled, err :=",
	), byLateAnswers},
	{with(
		"late joiners get what a message brings", "load.go",
		"if !r.flight.HasLate() {", "r.flight.Advance()\n	if !r.flight.HasLate() {",
	), byLateAnswers},
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
