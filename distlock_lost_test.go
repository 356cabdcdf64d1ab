package fetchonce_test

import (
	"regexp"
	"testing"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// losses are ways in which Redis loses a lease while its holder believes in it.
// Each is given the lock's string from before the lease.
var losses = map[string]func(t *testing.T, r backend, before string){
	"a failover to a replica that lacks the lease": func(t *testing.T, r backend, before string) {
		testkit.Admin(r).Set(t.Context(), "test:l:{it}", before, 0)
	},
	"DEL": func(t *testing.T, r backend, _ string) {
		testkit.Admin(r).Del(t.Context(), "test:l:{it}")
	},
	"the server's clock steps forward": func(t *testing.T, r backend, _ string) { // no server lets its clock be set
		state := testkit.Admin(r).Get(t.Context(), "test:l:{it}").Val()
		testkit.Admin(r).Set(t.Context(), "test:l:{it}", regexp.MustCompile(`\d+/\d+$`).ReplaceAllString(state, "1"), 0)
	},
}

// Release returns ErrLockLost when another process got the lock meanwhile, also
// when it asks for another lease in the same request.
func TestReleaseOfALostLockSaysSo(t *testing.T) {
	for name, lose := range losses {
		for _, again := range []bool{false, true} {
			what := name
			if again {
				what += ", and another waits here"
			}
			t.Run(what, func(t *testing.T) {
				redistest.Each(t, func(t *testing.T, r backend) {
					lk, other := testkit.NewLocker(t, r), testkit.NewLocker(t, r)
					testkit.Taken(t, r, lk).Release(nil)
					before := testkit.Admin(r).Get(t.Context(), "test:l:{it}").Val()
					if before == "" {
						before = "lock 1"
					}
					holder := testkit.Taken(t, r, lk)
					lose(t, r, before)
					thief := testkit.Taken(t, r, other)
					var next *testkit.Taker
					if again {
						next = testkit.Take(t.Context(), t, r, lk)
						r.Until("it waits", func() bool { return lk.Waiting("it") == 1 })
					}
					holder.Release(fetchonce.ErrLockLost)
					thief.Release(nil)
					if again {
						next.Has()
						next.Release(nil)
					}
				})
			})
		}
	}
}
