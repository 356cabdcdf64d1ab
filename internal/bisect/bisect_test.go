package bisect_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/fetchonce/fetchonce/internal/bisect"
)

var errBad, errLost = errors.New("bad key"), errors.New("lost connection")

func common(err error) bool { return errors.Is(err, errLost) }

func numbered(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint(i)
	}
	return keys
}

func TestBadKeysFailAlone(t *testing.T) {
	keys := numbered(1000)
	for name, bad := range map[string][]string{
		"none": nil, "first": {"0"}, "last": {"999"}, "neighbours": {"499", "500"},
		"spread": {"1", "100", "200", "300", "400", "500", "600", "700", "800", "999"},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			done := make(map[string]bool)
			errs := bisect.Keys([][]string{keys[:600], keys[600:]}, func(some []string) error {
				calls++
				for _, key := range some {
					if slices.Contains(bad, key) {
						return errBad
					}
				}
				for _, key := range some {
					done[key] = true
				}
				return nil
			}, common)
			for _, key := range keys {
				if isBad := slices.Contains(bad, key); isBad != (errs[key] == errBad) || isBad == done[key] {
					t.Errorf("key %s: error %v, done %t; bad %t", key, errs[key], done[key], isBad)
				}
			}
			if most := 2 + 2*11*len(bad); calls > most {
				t.Errorf("%d calls; want at most %d", calls, most)
			}
		})
	}
}

func TestCommonErrorEndsTheCalls(t *testing.T) {
	keys := numbered(10)
	calls := 0
	errs := bisect.Keys([][]string{keys[:4], keys[4:8], keys[8:]}, func([]string) error {
		if calls++; calls == 2 {
			return errLost
		}
		return nil
	}, common)
	if calls != 2 || len(errs) != 6 {
		t.Errorf("%d calls, %d errors; want 2 calls, and the 6 keys that are left", calls, len(errs))
	}
	for _, key := range keys[4:] {
		if errs[key] != errLost {
			t.Errorf("key %s: error %v; want that of the call", key, errs[key])
		}
	}
}

func TestCallsThatAllFailAreBounded(t *testing.T) {
	keys := numbered(10_000)
	calls := 0
	errs := bisect.Keys([][]string{keys}, func([]string) error { calls++; return errBad }, common)
	if calls > 40 || len(errs) != len(keys) {
		t.Errorf("%d calls, %d errors; want at most 40 calls, and an error of each of %d keys", calls, len(errs), len(keys))
	}
}
