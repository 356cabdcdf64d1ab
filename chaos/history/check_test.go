package history_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/chaos/history"
)

const lease = 400

// parse reads a history in a short form, one event per line: its time, process, op and key, and then,
// in any order, "v" and the version, "since" and the time it began, "by" and the writer, "update",
// "err" and so on. An underscore stands for a space.
func parse(t *testing.T, text string) []history.Event {
	t.Helper()
	var events []history.Event
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		var e history.Event
		scan := func(word string, to any) {
			t.Helper()
			if _, err := fmt.Sscan(word, to); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		scan(words[0], &e.At)
		e.Process, e.Op = words[1], history.Op(words[2])
		words = words[3:]
		if e.Op != history.Died && e.Op != history.Ended && (e.Op != history.Hit || words[0] != "since") {
			e.Key, words = words[0], words[1:]
		}
		for len(words) > 0 {
			switch words[0] {
			case "update":
				e.Update, words = true, words[1:]
				continue
			case "v":
				scan(words[1], &e.Version)
			case "since":
				scan(words[1], &e.Began)
			case "by":
				e.Writer = words[1]
			case "err":
				e.Err = strings.ReplaceAll(words[1], "_", " ")
			case "fence":
				scan(words[1], &e.Fence)
			case "cut":
				scan(words[1], &e.Cut)
			case "value":
				e.Value = words[1]
			case "build":
				scan(words[1], &e.Build)
			case "fault":
				e.Fault = history.Fault(strings.ReplaceAll(words[1], "_", " "))
			case "calls":
				scan(words[1], &e.Calls)
			case "node":
				scan(words[1], &e.Node)
			case "count":
				scan(words[1], &e.Count)
			default:
				t.Fatalf("%q: unknown word %q", line, words[0])
			}
			words = words[2:]
		}
		events = append(events, e)
	}
	return events
}

// The first version of k is committed before all else.
const first = `
	1 s committing k v 1
	2 s committed k v 1
`

// An Update of a that writes version 2 between 100 and 200.
const second = first + `
	120 a committing k v 2 by a1 update
	140 a committed k v 2 by a1 update
	200 a updated k since 100 v 2 by a1 update
`

// The same Update, but a dies at 150.
const died = first + `
	120 a committing k v 2 by a1 update
	140 a committed k v 2 by a1 update
	150 a died
`

func TestCheckFindsEachBrokenRule(t *testing.T) {
	for _, c := range []struct {
		name, history string
		want          string // kind and time of the wrong event; "" for none
	}{
		{"nothing", "", ""},
		{"the first version", first + "20 r got k since 10 v 1", ""},

		{"old, begun before the Update", second + "250 r got k since 90 v 1", ""},
		{"old, begun during the Update", second + "250 r got k since 199 v 1", ""},
		{"old, begun when it returned", second + "250 r got k since 200 v 1", ""},
		{"old, begun after the Update", second + "250 r got k since 201 v 1", "stale 250"},
		{"new, begun after the Update", second + "250 r got k since 201 v 2", ""},
		{"new, begun during the Update", second + "190 r got k since 110 v 2", ""},
		{"newer, begun after the Update", second + "201 a committing k v 3\n 250 r got k since 201 v 3", ""},
		{"new before it is committed", second + "119 r got k since 110 v 2", "uncommitted 119"},
		{"a version that was never written", second + "250 r got k since 201 v 7", "uncommitted 250"},
		{"old, of another key", second + "3 s committing l v 1\n250 r got l since 201 v 1", ""},
		{"recorded in another order", "250 r got k since 201 v 1" + second, "stale 250"},

		{
			"an Update that failed", first + "140 a committing k v 2 by a1 update\n150 a committed k v 2 by a1 update\n" +
				"200 a updated k since 100 v 2 by a1 update err down\n250 r got k since 201 v 1", "failed 200",
		},
		{"a Get that failed", second + "250 r got k since 201 err down", "failed 250"},

		{
			"a Delete after a commit", first + "140 a committing k v 2 by a1\n150 a committed k v 2 by a1\n" +
				"200 a deleted k since 160\n250 r got k since 201 v 1", "stale 250",
		},
		{
			"a Delete that began before a commit", first + "140 a committing k v 2 by a1\n150 a committed k v 2 by a1\n" +
				"200 b deleted k since 149\n250 r got k since 201 v 1", "",
		},
		{
			"a Delete that failed", first + "140 a committing k v 2 by a1\n150 a committed k v 2 by a1\n" +
				"200 a deleted k since 160 err down\n250 r got k since 201 v 1", "failed 200",
		},

		{"old, a lease after the death", died + "600 r got k since 550 v 1", ""},
		{"old, more than a lease after the death", died + "600 r got k since 551 v 1", "stale 600"},
		{"new, more than a lease after the death", died + "600 r got k since 551 v 2", ""},
		{
			"committed by a dead process, found late", first + "120 a committing k v 2 by a1 update\n150 a died\n" +
				"700 a committed k v 2 by a1 update\n800 r got k since 650 v 1\n801 r got k since 701 v 1", "stale 801",
		},
		{"not committed by a dead process", first + "120 a committing k v 2 by a1 update\n150 a died\n800 r got k since 750 v 1", ""},
		{
			"died between a commit and its Delete", first + "120 a committing k v 2 by a1\n140 a committed k v 2 by a1\n150 a died\n" +
				"800 r got k since 750 v 1", "",
		},
		{"died after the Update", second + "250 a died\n300 r got k since 260 v 1", "stale 300"},
		{
			"an older Update returns after a newer", second + "150 b committing k v 3 by b1 update\n160 b committed k v 3 by b1 update\n" +
				"190 b updated k since 110 v 3 by b1 update\n250 r got k since 201 v 2", "stale 250",
		},
		{"committed without committing", first + "140 a committed k v 2 by a1", "inconsistent 140"},
		{"an unknown op", first + "140 a eaten k", "inconsistent 140"},
	} {
		t.Run(c.name, func(t *testing.T) {
			found := history.Check(parse(t, c.history), lease)
			var got []string
			for _, v := range found {
				got = append(got, fmt.Sprintf("%s %d", v.Kind, v.At))
			}
			if got := strings.Join(got, ", "); got != c.want {
				t.Errorf("Check found %q, want %q\n%v", got, c.want, found)
			}
		})
	}
}

// long returns a correct history of 4 processes. Every Get returns the newest version. Some writers
// die.
func long(rng *rand.Rand, keys, steps int) []history.Event {
	var events []history.Event
	now := history.Time(0)
	add := func(e history.Event) {
		now += history.Time(rng.IntN(20) + 1)
		e.At = now
		events = append(events, e)
	}
	versions := make([]int64, keys)
	for n := range steps {
		k := rng.IntN(keys)
		process := fmt.Sprint(rng.IntN(4))
		e := history.Event{Process: process, Key: fmt.Sprint(k), Began: now}
		if versions[k] == 0 || rng.IntN(20) == 0 {
			versions[k]++
			e.Version, e.Writer, e.Update = versions[k], fmt.Sprint(process, "/", n), rng.IntN(2) == 0
			if rng.IntN(4) == 0 {
				e.Process = fmt.Sprint("mortal", n)
			}
			began := now
			e.Began = 0
			e.Op = history.Committing
			add(e)
			e.Op = history.Committed
			add(e)
			switch {
			case strings.HasPrefix(e.Process, "mortal"):
				add(history.Event{Process: e.Process, Op: history.Died})
			case e.Update:
				e.Op, e.Began = history.Updated, began
				add(e)
			default:
				e.Op, e.Began, e.Version, e.Writer = history.Deleted, now, 0, ""
				add(e)
			}
			continue
		}
		e.Op, e.Version = history.Got, versions[k]
		add(e)
	}
	return events
}

// One Get of a correct history is made too old. Check finds that Get and nothing else.
func TestOneStaleGetAmongManyIsFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		events := long(rng, 8, 2000)
		if found := history.Check(events, lease); len(found) > 0 {
			t.Fatalf("in a correct history: %v", found)
		}
		// The wrong Get begins long after the last write of its key, so it must return that
		// version, whether its writer lives or not.
		last := events[rng.IntN(len(events))]
		for last.Op != history.Updated && last.Op != history.Deleted && !(last.Op == history.Committed && last.Update) {
			last = events[rng.IntN(len(events))]
		}
		newest := last.Version
		if last.Op == history.Deleted {
			newest = slices.MaxFunc(events, func(a, b history.Event) int {
				rank := func(e history.Event) int64 {
					if e.Op == history.Committed && e.Key == last.Key && e.At <= last.Began {
						return e.Version
					}
					return 0
				}
				return int(rank(a) - rank(b))
			}).Version
		}
		if newest < 2 {
			continue
		}
		began := last.At + 20 + lease + 1
		corrupt := history.Event{At: began + 5, Began: began, Process: "r", Op: history.Got, Key: last.Key, Version: newest - 1}
		found := history.Check(append([]history.Event{corrupt}, events...), lease)
		if len(found) != 1 || found[0].Kind != history.Stale || found[0].Event != corrupt {
			t.Fatalf("after %v, with %v: found %v", last, corrupt, found)
		}
	}
}

func TestSumCountsTheEvidence(t *testing.T) {
	got := history.Sum(parse(t, died+`
		600 r got k since 551 v 2
		610 r got k since 550 v 2
		620 b updated k since 551 v 3 by b1
		630 b deleted k since 551
		640 b deleted k since 551 err down
	`), lease)
	if want := (history.Count{Gets: 2, Updates: 1, Deletes: 1, Deaths: 1, Orphans: 1, Late: 1}); got != want {
		t.Errorf("Sum = %+v, want %+v", got, want)
	}
}

// BenchmarkCheck judges as many events as a minute of load makes.
func BenchmarkCheck(b *testing.B) {
	events := long(rand.New(rand.NewPCG(1, 2)), 8, 100_000)
	for b.Loop() {
		history.Check(events, lease*time.Nanosecond)
	}
}
