package history_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/chaos/history"
)

// milli has the rules of these tests, whose histories count milliseconds.
var milli = history.Rules{
	Lease: 500 * time.Millisecond, FetchTimeout: 1500 * time.Millisecond, Deadline: 4 * time.Second,
	Grace: 250 * time.Millisecond, Recovery: time.Second, RedisTimeout: 500 * time.Millisecond, Nodes: 3,
}

// inMillis reads a history whose times are in milliseconds.
func inMillis(t *testing.T, text string) []history.Event {
	t.Helper()
	events := parse(t, text)
	for i := range events {
		for _, moment := range []*history.Time{&events[i].At, &events[i].Began, &events[i].Cut} {
			*moment *= history.Time(time.Millisecond)
		}
	}
	return events
}

// A fetch of k by a from 1000 to 1200.
const byA = `
	1000 a fetching k since 990 fence 5 by a1
	1200 a fetched k fence 5 by a1
	1201 a got k since 990 v 1
`

// A fetch of k by a from 1000 to 1700, whose lease is lost at 1600.
const lostByA = `
	1000 a fetching k since 990 fence 5 by a1
	1700 a fetched k fence 5 by a1 cut 1600 err lost
`

// The Update of a in second and in died.
const begun = "119 a invalidating k by a1\n"

// Each of these breaks one rule, or would if something did not explain it.
var judged = []struct {
	name, history string
	want          string // the invariants that are violated
}{
	{"nothing", "", ""},
	{"a fetch", first + byA, ""},

	{"I0: an error without a fault", first + "100 a got k since 50 err timeout", "I0"},
	{"an error, cut off from Redis", first + "100 a got k since 50 err timeout\n 200 a hit since 60 fault reset", ""},
	{"I0: an error, another was cut off", first + "100 a got k since 50 err timeout\n 200 b hit since 60 fault reset", "I0"},
	{"an error soon after a fault", first + "900 a got k since 850 err timeout\n 200 a hit since 60 fault reset", ""},
	{"I0: an error long after a fault", first + "1900 a got k since 1850 err timeout\n 200 a hit since 60 fault reset", "I0"},
	{"I0: an error by a script flush", first + "100 a got k since 50 err NOSCRIPT\n 70 * hit since 60 fault script_flush", "I0"},
	{"an error while the source was slow", first + "1700 a created k since 50 err fetch_timeout\n 1710 * hit since 150 fault source_slow", ""},
	{"an error on purpose", first + "100 a got k since 50 err injected", ""},
	{"an error of a waiter for a dead process", first + "20 b fetching k since 10 fence 5 by b1\n 30 b died\n 4100 a got k since 50 err deadline", ""},

	{"I1: stale after an Update", begun + second + "250 r got k since 201 v 1", "I1"},
	{"stale, the master that confirmed has died", begun + second + "250 r got k since 201 v 1\n 900 * hit since 210 fault failover", ""},
	{"stale, while a replaced master still answers", begun + second + "8000 r got k since 7990 v 1\n 8100 * hit since 1300 fault two_masters", ""},
	{"I1: stale, long after the replaced master was demoted", begun + second + "9200 r got k since 9150 v 1\n 8100 * hit since 1300 fault two_masters", "I1"},
	{"stale, the replaced master had confirmed the Update", begun + second + "9200 r got k since 9150 v 1\n 8100 * hit since 150 fault two_masters", ""},
	{"I1: stale, while the source was slow", begun + second + "250 r got k since 201 v 1\n 900 * hit since 150 fault source_slow", "I1"},
	{"I1: stale, the master died long after", begun + second + "250 r got k since 201 v 1\n 9000 * hit since 8000 fault failover", "I1"},
	{"I1: stale, Redis was empty between", begun + second + "250 r got k since 201 v 1\n 205 * hit since 202 fault redis_kill", "I1"},
	{"I1: stale after a death in an Update", begun + died + "700 r got k since 660 v 1", "I1"},
	{"stale after a death, and Redis had lost the mark", begun + died + "200 * hit since 160 fault redis_kill\n700 r got k since 660 v 1", ""},
	{"I1: stale after a death, and Redis was lost before", begun + died + "90 * hit since 60 fault redis_kill\n700 r got k since 660 v 1", "I1"},

	{"I2: two fetches at once", first + byA + "1100 b fetching k since 1050 fence 6 by b1\n1300 b fetched k fence 6 by b1\n1301 b got k since 1050 v 1", "I2"},
	{"I2: the older one is cut off and continues", first + byA + "1100 b fetching k since 1050 fence 6 by b1\n1210 b fetched k fence 6 by b1\n" +
		"1211 b got k since 1050 v 1\n1150 a hit since 1010 fault black_hole", "I2"},
	{"two fetches, the older one was stopped", first + byA + "1100 b fetching k since 1050 fence 6 by b1\n1210 b fetched k fence 6 by b1\n" +
		"1211 b got k since 1050 v 1\n1150 a hit since 1010 fault stop", ""},
	{"I2: two fetches, the younger one was stopped", first + byA + "1100 b fetching k since 1050 fence 6 by b1\n1210 b fetched k fence 6 by b1\n" +
		"1211 b got k since 1050 v 1\n1150 b hit since 1010 fault stop", "I2"},
	{"two fetches, the key was deleted between", first + byA + "1050 c invalidating k by c1\n1060 c deleted k since 1050 by c1\n" +
		"1100 b fetching k since 1070 fence 6 by b1\n1300 b fetched k fence 6 by b1\n1301 b got k since 1070 v 1", ""},
	{"I2: two fetches, the key was deleted long before", first + byA + "850 c invalidating k by c1\n860 c deleted k since 850 by c1\n" +
		"1100 b fetching k since 1070 fence 6 by b1\n1300 b fetched k fence 6 by b1\n1301 b got k since 1070 v 1", "I2"},
	{"I13: two fetches, the context of the older one has ended", first + "1000 a fetching k since 990 fence 5 by a1\n1200 a fetched k fence 5 by a1 cut 1080 err lost\n1201 a got k since 990 v 1\n" +
		"1100 b fetching k since 1050 fence 6 by b1\n1300 b fetched k fence 6 by b1\n1301 b got k since 1050 v 1", "I13"},
	{"two fetches, Redis was empty between", first + byA + "1100 b fetching k since 1050 fence 6 by b1\n1300 b fetched k fence 6 by b1\n" +
		"1301 b got k since 1050 v 1\n1040 * hit since 1030 fault redis_kill", ""},
	{"I2: without a lease, and no fault", first + "1000 a fetching k since 990 by a1\n1200 a fetched k by a1\n1201 a got k since 990 v 1", "I2"},
	{"without a lease, Redis was stopped", first + "1000 a fetching k since 990 by a1\n1200 a fetched k by a1\n1201 a got k since 990 v 1\n1100 * hit since 980 fault redis_stop", ""},
	{"I2: two holders of a lock", "100 a locked l since 90 fence 5 by a1\n 300 a unlocked l since 200 by a1\n150 b locked l since 110 fence 6 by b1\n 400 b unlocked l since 350 by b1", "I2, second"},
	{"one holder after the other", "100 a locked l since 90 fence 5 by a1\n 300 a unlocked l since 200 by a1\n205 b locked l since 110 fence 6 by b1\n 400 b unlocked l since 350 by b1", ""},
	{"I2: the lock was lost and the holder continued", "100 a locked l since 90 fence 5 by a1\n 900 a unlocked l since 800 by a1 cut 700 err lost\n" +
		"600 b locked l since 110 fence 6 by b1\n 1000 b unlocked l since 950 by b1\n 500 a hit since 110 fault reset", "I2"},
	{"the death of the older holder is recorded late", "100 a locked l since 90 fence 5 by a1\n700 b locked l since 110 fence 6 by b1\n 800 b unlocked l since 750 by b1\n900 a died", ""},
	{"I2: the older holder died, but lived until then", first + "100 a locked l since 90 fence 5 by a1\n650 b locked l since 110 fence 6 by b1\n 800 b unlocked l since 750 by b1\n" +
		"700 a got k since 690 v 1\n900 a died", "I2"},
	{"the lock was deleted", "100 a locked l since 90 fence 5 by a1\n 300 a unlocked l since 200 by a1\n150 b locked l since 110 fence 6 by b1\n 400 b unlocked l since 350 by b1\n" +
		"120 * hit l since 115 fault del_of_a_lock", ""},

	{"I3: fetched twice, one after the other", first + byA + "1300 b fetching k since 1250 fence 6 by b1\n1400 b fetched k fence 6 by b1\n1401 b got k since 1250 v 1", "I3"},
	{"fetched by two builds, once each", first + byA + "1300 b fetching k since 1250 fence 6 by b1 build 1\n1400 b fetched k fence 6 by b1 build 1\n1401 b got k since 1250 v 1", ""},
	{"I3: fetched by two builds, and by the first again", first + byA + "1300 b fetching k since 1250 fence 6 by b1 build 1\n1400 b fetched k fence 6 by b1 build 1\n1401 b got k since 1250 v 1\n" +
		"1500 a fetching k since 1450 fence 7 by a2\n1600 a fetched k fence 7 by a2\n1601 a got k since 1450 v 1", "I3"},
	{"fetched twice, Redis was full", first + byA + "1300 b fetching k since 1250 fence 6 by b1\n1400 b fetched k fence 6 by b1\n1401 b got k since 1250 v 1\n" +
		"1210 * hit since 1190 fault out_of_memory", ""},
	{"fetched twice, the first fetch failed", first + "1000 a fetching k since 990 fence 5 by a1\n1200 a fetched k fence 5 by a1 err injected\n1201 a got k since 990 err injected\n" +
		"1300 b fetching k since 1250 fence 6 by b1\n1400 b fetched k fence 6 by b1\n1401 b got k since 1250 v 1", ""},

	{"I4: too late", first + "5000 a got k since 700 v 1", "I4"},
	{"I4: too late, while cut off from Redis", first + "5000 a got k since 700 v 1\n 4900 a hit since 800 fault black_hole", "I4"},
	{"too late, while stopped", first + "5000 a got k since 700 v 1\n 4900 a hit since 800 fault stop", ""},

	{"I5: did not return", first + "10 c got k since 5 v 1\n 900 c ended calls 1", "I5"},
	{"I5: did not end", first + "10 z got k since 5 v 1", "I5"},
	{"I6: left goroutines", first + "10 c got k since 5 v 1\n 900 c ended count 3", "I6"},

	{"I7: the fence of a lock falls", "100 a locked l since 90 fence 6 by a1\n 300 a unlocked l since 200 by a1\n" +
		"400 b locked l since 350 fence 5 by b1\n 600 b unlocked l since 500 by b1\n 320 * hit since 310 fault redis_kill", "I7, second"},
	{"I7: the same fence twice", "100 a locked l since 90 fence 6 by a1\n 300 a unlocked l since 200 by a1\n" +
		"400 b locked l since 95 fence 6 by b1\n 600 b unlocked l since 500 by b1", "I7, second"},
	{"I7: the fence of a fetch falls", first + byA + "1300 b fetching k since 1250 fence 4 by b1\n1400 b fetched k fence 4 by b1\n1401 b got k since 1250 v 1\n" +
		"1240 * hit since 1230 fault redis_kill", "I7"},

	{"I8: two values of what is created once", "100 a created n since 90 value x\n 110 b created n since 90 value y", "I8"},
	{"I8: a write was lost", "900 s counted l v 7 count 8", "I8"},
	{"all were counted", "900 s counted l v 8 count 8", ""},
	{"I9: a lease left", "900 s held l", "I9"},
	{"I10: a version that was never committed", first + "100 a got k since 90 v 2", "I10"},
	{"I10: another key's value", first + "100 a got k since 90 v 1 err wrong_value", "I10"},
	{"I11: a secret in a log", "900 s leaked l", "I11"},
	{"I12: a key without a TTL", "900 s endless l", "I12"},
	{"I13: a lease is lost", first + lostByA, "I13"},
	{"I13: a lease is lost in a full Redis", first + lostByA + "1900 * hit since 1050 fault full", "I13"},
	{"a lease is lost, while cut off from Redis", first + lostByA + "1600 a hit since 1050 fault black_hole", ""},
	{"a lease is lost, the key was deleted", first + lostByA + "1550 b invalidating k by b1\n1560 b deleted k since 1550 by b1", ""},
	{"a fetch takes too long", first + "1000 a fetching k since 990 fence 5 by a1\n2600 a fetched k fence 5 by a1 cut 2500 err timeout", ""},
	{"the callers of a fetch leave", first + "4000 a fetching k since 990 fence 5 by a1\n5100 a fetched k fence 5 by a1 cut 4990 err canceled", ""},

	// k is on node 2, l on node 3, n on node 1.
	{"an error for a key of the node that hangs", first + "1600 a got k since 1100 err timeout\n 2000 * hit since 1000 fault node_hang node 2", ""},
	{"I0: an error for a key of another node", first + "1600 a got k since 1100 err timeout\n 2000 * hit since 1000 fault node_hang node 3", "I0"},
	{"I0: an error for a key of another node, its own node was slow before", first + "1600 a got k since 1100 err timeout\n 2000 * hit since 1000 fault node_hang node 3\n" +
		"90 * hit since 10 fault redis_slow node 2", "I0"},
	{"I2: without a lease for a key of another node", first + "1000 a fetching k since 990 by a1\n1200 a fetched k by a1\n1201 a got k since 990 v 1\n" +
		"1100 * hit since 980 fault node_hang node 1", "I2"},
	{"I14: a hit waits for another node", first + "1900 a got k since 1100 v 1\n 2000 * hit since 1000 fault node_hang node 3", "I14"},
	{"a hit waits, and its own node was slow", first + "1900 a got k since 1100 v 1\n 2000 * hit since 1000 fault node_hang node 3\n1400 * hit since 1200 fault redis_slow node 2", ""},
	{"a Get waits for a fetch", first + "1900 a got k since 1100 v 1\n 2000 * hit since 1000 fault node_hang node 3\n" +
		"1090 b fetching k since 1080 fence 5 by b1\n1850 b fetched k fence 5 by b1", ""},
	{"I14: a Delete waits for another node", first + "1800 a invalidating n by a1\n2600 a deleted n since 1800 by a1\n 2000 * hit since 1000 fault node_hang node 3", "I14"},
	{"I14: a Release waits for another node", "100 a locked l since 90 fence 5 by a1\n 1100 a unlocked l since 200 by a1\n2000 * hit since 300 fault node_hang node 1", "I14"},

	{"an Acquire in a full Redis", "300 a refused l since 200 err OOM\n 400 * hit since 100 fault full", ""},
	{"I0: an Acquire in a full Redis fails in another way", "300 a refused l since 200 err timeout\n 400 * hit since 100 fault full", "I0"},
	{"I0: a Release in a full Redis", "100 a locked l since 90 fence 5 by a1\n 300 a unlocked l since 200 by a1 err OOM\n 400 * hit since 150 fault full", "I0"},
	{"I0: a Get in a full Redis", first + "300 a got k since 200 err OOM\n 400 * hit since 100 fault full", "I0"},
	{"without a lease in a full Redis", first + "1000 a fetching k since 990 by a1\n1200 a fetched k by a1\n1201 a got k since 990 v 1\n1300 * hit since 980 fault full", ""},
	{"I2: two fetches under leases in a full Redis", first + byA + "1100 b fetching k since 1050 fence 6 by b1\n1300 b fetched k fence 6 by b1\n1301 b got k since 1050 v 1\n" +
		"1400 * hit since 980 fault full", "I2"},
}

// Each violation is found, and nothing else.
func TestJudge(t *testing.T) {
	violated := make(map[string]bool)
	for _, c := range judged {
		t.Run(c.name, func(t *testing.T) {
			events := inMillis(t, c.history)
			for _, process := range []string{"a", "b", "r"} {
				if !strings.Contains(c.history, process+" died") {
					events = append(events, history.Event{At: history.Time(20 * time.Second), Process: process, Op: history.Ended})
				}
			}
			var got []string
			verdict := history.Judge(events, milli)
			for _, v := range verdict.Found {
				kind, _, _ := strings.Cut(string(v.Kind), ":")
				got = append(got, kind)
				violated[kind] = true
			}
			// The second judge judges locks and stale reads.
			for _, v := range history.Second(events, milli) {
				if v.Kind == history.Unordered && !slices.Contains(got, "I1") {
					got = append(got, "second")
				}
			}
			if got := strings.Join(slices.Compact(got), ", "); got != c.want {
				t.Errorf("found %q, want %q\n%v", got, c.want, verdict.Found)
			}
		})
	}
	for i := range history.Invariants {
		if !violated[fmt.Sprint("I", i)] {
			t.Errorf("no history violates I%d", i)
		}
	}
}

// The second judge finds a stale read by itself.
func TestSecondFindsAStaleRead(t *testing.T) {
	for _, c := range []struct {
		read string
		want int
	}{{"250 r got k since 201 v 1", 1}, {"250 r got k since 199 v 1", 0}, {"250 r got k since 201 v 2", 0}} {
		events := inMillis(t, begun+second+c.read)
		if found := history.Second(events, milli); len(found) != c.want {
			t.Errorf("with %q, it found %v, want %d", c.read, found, c.want)
		}
	}
}
