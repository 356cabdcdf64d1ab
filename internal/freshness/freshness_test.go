package freshness_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/freshness"
)

// Each state ends where the next one begins: to the nanosecond.
func TestStatesFollowEachOtherByAge(t *testing.T) {
	rules := freshness.Rules{TTL: 10, StaleWhileRevalidate: 5, StaleIfError: 20}
	h := envelope.Header{Fresh: 10, Keep: 30}
	for age, want := range map[time.Duration]freshness.State{
		0: freshness.Fresh, 9: freshness.Fresh,
		10: freshness.Stale, 14: freshness.Stale,
		15: freshness.Fallback, 29: freshness.Fallback,
		30: freshness.Expired, 1000: freshness.Expired,
	} {
		if got := rules.Judge(h, age); got != want {
			t.Errorf("at age %d the state is %d, want %d", age, got, want)
		}
	}
}

// Another Loader may have stored a value to be kept for longer than this one returns it.
func TestOwnRulesDecideOnAStaleValue(t *testing.T) {
	rules := freshness.Rules{TTL: 10}
	if got := rules.Judge(envelope.Header{Fresh: 10, Keep: 30}, 10); got != freshness.Expired {
		t.Errorf("the state is %d without StaleWhileRevalidate and StaleIfError, want Expired", got)
	}
}

// Redis removes a value in time by its own clock. The clock of this process may be wrong.
func TestValueThatIsKeptOnlyWhileFreshIsFresh(t *testing.T) {
	rules := freshness.Rules{TTL: 10, StaleWhileRevalidate: 5}
	if got := rules.Judge(envelope.Header{Fresh: 10, Keep: 10}, 1000); got != freshness.Fresh {
		t.Errorf("the state is %d, want Fresh", got)
	}
}

func TestNothingIsRefreshedEarlyWithoutTheOption(t *testing.T) {
	rules := freshness.Rules{TTL: 10}
	if rules.IsEarly(envelope.Header{Cost: time.Hour, Fresh: 10}, 9) {
		t.Error("a value is refreshed early, and EarlyRefresh is off")
	}
}

// A refresh whose fetch takes far longer than the value has left is started by nearly every
// caller, and one whose value is far from its end by nearly none.
func TestExpensiveValuesNearTheirEndAreRefreshedEarly(t *testing.T) {
	rules := freshness.Rules{EarlyRefresh: 1}
	count := func(cost, left time.Duration) (early int) {
		h := envelope.Header{Cost: cost, Fresh: time.Hour}
		for range 1000 {
			if rules.IsEarly(h, h.Fresh-left) {
				early++
			}
		}
		return early
	}
	if n := count(time.Minute, time.Microsecond); n < 900 {
		t.Errorf("%d of 1000 callers refresh a value that ends now", n)
	}
	if n := count(time.Microsecond, time.Minute); n > 0 {
		t.Errorf("%d of 1000 callers refresh a value that has a minute left, and is fetched in a microsecond", n)
	}
}

func TestLifetimeOfValuesAndAbsences(t *testing.T) {
	rules := freshness.Rules{TTL: time.Minute, NotFoundTTL: time.Second, StaleWhileRevalidate: time.Minute, StaleIfError: time.Hour}
	for name, c := range map[string]struct {
		kind        envelope.Kind
		own         time.Duration
		fresh, keep time.Duration
	}{
		"a value":                      {envelope.Value, 0, time.Minute, time.Minute + time.Hour},
		"an absence":                   {envelope.NotFound, 0, time.Second, time.Second},
		"a value with its own TTL":     {envelope.Value, time.Hour, time.Hour, 2 * time.Hour},
		"an absence with its own TTL":  {envelope.NotFound, time.Hour, time.Hour, time.Hour},
		"a value not to be kept":       {envelope.Value, -1, 0, 0},
		"a value with too short a TTL": {envelope.Value, time.Microsecond, 0, 0},
		"a value with too long a TTL":  {envelope.Value, freshness.Longest + 1, 0, 0},
	} {
		if fresh, keep := rules.Lifetime(c.kind, c.own); fresh != c.fresh || keep != c.keep {
			t.Errorf("%s is fresh for %v and kept for %v, want %v and %v", name, fresh, keep, c.fresh, c.keep)
		}
	}
	rules.TTL = 0
	if fresh, keep := rules.Lifetime(envelope.Value, time.Hour); fresh != 0 || keep != 0 {
		t.Errorf("with TTL off, a value is fresh for %v and kept for %v", fresh, keep)
	}
}

func TestJitterShortensATTLByItsShareAtMost(t *testing.T) {
	rules := freshness.Rules{TTL: time.Minute, Jitter: 0.5}
	least, most := time.Hour, time.Duration(0)
	for range 1000 {
		fresh, _ := rules.Lifetime(envelope.Value, 0)
		least, most = min(least, fresh), max(most, fresh)
	}
	if least < 30*time.Second || least > 35*time.Second || most > time.Minute || most < 55*time.Second {
		t.Errorf("a TTL of a minute with a jitter of a half is from %v to %v", least, most)
	}
}

func TestClockFollowsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c freshness.Clock
		h := envelope.Header{Created: time.Now().Add(time.Hour).UnixMilli()}
		if age := c.Age(h); age != 0 {
			t.Errorf("a value of the future has the age %v", age)
		}
		c.Learn(time.Time{}, time.Now())
		if ahead := time.Until(c.Now()); ahead != 0 {
			t.Errorf("the clock is ahead by %v without an answer", ahead)
		}
		sent := time.Now()
		time.Sleep(2 * time.Second)                      // the round trip
		c.Learn(sent.Add(time.Second+2*time.Hour), sent) // the server answered in its middle
		if ahead := time.Until(c.Now()); ahead != 2*time.Hour {
			t.Errorf("the clock is ahead by %v, want 2h", ahead)
		}
		if age := c.Age(h); age != time.Hour+2*time.Second {
			t.Errorf("the age is %v, want 1h0m2s", age)
		}
	})
}
