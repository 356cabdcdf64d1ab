package fetchonce_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// The test counts the commands and round trips of the connection.
func TestEachOperationCostsItsRoundTrips(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, wire := testkit.LoaderOf(t, rdb), redistest.WireOf(rdb)
		testkit.WarmScripts(t, r, l)
		fetch := func(context.Context, string) (string, error) { return "v", nil }
		get := func(key string) (commands []string, trips int) {
			wire.Reset()
			if got, err := l.Get(t.Context(), key, fetch); got != "v" || err != nil {
				t.Fatalf("Get = %q, %v", got, err)
			}
			return wire.Commands(), wire.RoundTrips()
		}
		if got, trips := get("k"); !slices.Equal(got, []string{"GETRANGE", "EVALSHA", "EVALSHA"}) || trips != 3 {
			t.Errorf("a cold miss sends %v in %d round trips, want 3", got, trips)
		}
		if got, trips := get("k"); !slices.Equal(got, []string{"GETRANGE"}) || trips != 1 {
			t.Errorf("a cold hit sends %v in %d round trips, want 1", got, trips)
		}
		wire.Reset()
		if err := l.Delete(t.Context(), "k"); err != nil || len(wire.Commands()) != 1 {
			t.Errorf("a Delete sends %v, %v; want one script", wire.Commands(), err)
		}
		large := strings.Repeat("large", 10_000)
		wire.Reset()
		if _, err := l.Get(t.Context(), "large", func(context.Context, string) (string, error) { return large, nil }); err != nil {
			t.Fatal(err)
		}
		if got := wire.RoundTrips(); got != 3 {
			t.Errorf("a cold miss of a large value takes %d round trips, want 3: %v", got, wire.Commands())
		}
	})
}
