package oncetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/fetchonce/fetchonce"
)

// TestStore checks that store does what a [fetchonce.Loader] relies on. It returns nil,
// or an error that describes the first fault. It is for tests of your own Store:
//
//	if err := oncetest.TestStore(ctx, store); err != nil { t.Fatal(err) }
//
// It checks that
//   - Lookup of a key without a value returns ErrNotFound.
//   - Create returns the value that is kept, which is the first, also with many
//     concurrent creators and with concurrent Lookups.
//   - A value is returned unchanged, including an empty one and one with quotes, and two
//     keys may have equal values.
//   - Keys that differ in any way are different keys: in case, a blank at the end, the
//     form of an accent, or the last of a thousand letters. A Store may refuse such a key
//     with an error other than ErrNotFound, if both Lookup and Create do.
//   - With a context that has ended, the result is an error other than ErrNotFound.
//   - LookupMany, if the Store has it, returns what Lookup does, also for some thousand
//     keys.
//
// It makes some hundred calls, at most 16 at once. The store may be in use: the keys are
// new, begin with "oncetest-" and a random text, and stay there. Only ctx ends a call of a
// store that hangs.
//
// Run it with the race detector, on a store like that of production: a table with the
// same types and collations, and more than one connection.
func TestStore(ctx context.Context, store fetchonce.Store[string]) error {
	c := storeCheck{store: store, prefix: "oncetest-" + rand.Text() + "-"}
	for _, check := range []func(ctx context.Context) error{
		c.absent, c.firstValueIsKept, c.valuesComeBack, c.creatorsMeet, c.keysAreToldApart, c.endedContext, c.many,
	} {
		err := check(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("oncetest: the test was cut short: %w", context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("oncetest: %w", err)
		}
	}
	return nil
}

// A storeCheck is one TestStore.
type storeCheck struct {
	store  fetchonce.Store[string]
	prefix string // of every key
}

func (c storeCheck) absent(ctx context.Context) error {
	key := c.prefix + "absent"
	for range 2 { // asking for it does not make it
		if v, err := c.store.Lookup(ctx, key); !errors.Is(err, fetchonce.ErrNotFound) {
			return complain("Lookup", key, v, err, "an error that is ErrNotFound, as the key has no value")
		}
	}
	return nil
}

func (c storeCheck) firstValueIsKept(ctx context.Context) error {
	key := c.prefix + "first"
	for _, v := range []string{"first", "second", "first"} {
		if kept, err := c.store.Create(ctx, key, v); kept != "first" || err != nil {
			return complain("Create of "+quote(v)+" for", key, kept, err, `"first", which was created first`)
		}
		if kept, err := c.store.Lookup(ctx, key); kept != "first" || err != nil {
			return complain("Lookup", key, kept, err, `"first", which was created first`)
		}
	}
	return nil
}

func (c storeCheck) valuesComeBack(ctx context.Context) error {
	for i, v := range []string{
		"", " ", "null", "0", "a ", " a", "a\nb\tc", `'"` + "`" + `\`, `\x41 \101 \u0041`, "%s ? $1 :a", "é e\u0301 日本 \U0001F600",
		strings.Repeat("long", 25_000),
	} {
		key := c.prefix + fmt.Sprintf("value-%d", i)
		if kept, err := c.store.Create(ctx, key, v); kept != v || err != nil {
			return complain("Create of "+quote(v)+" for", key, kept, err, "that value")
		}
		if kept, err := c.store.Lookup(ctx, key); kept != v || err != nil {
			return complain("Lookup", key, kept, err, quote(v)+", which was created")
		}
		key += "-again"
		if kept, err := c.store.Create(ctx, key, v); kept != v || err != nil {
			return complain("Create of "+quote(v)+" for", key, kept, err, "that value, though another key has it too")
		}
	}
	return nil
}

// creatorsMeet has many create a key at once, some rounds of it, as those who
// check and then create meet in some of them only.
func (c storeCheck) creatorsMeet(ctx context.Context) error {
	const rounds, creators, watchers = 8, 12, 4
	for round := range rounds {
		key := c.prefix + fmt.Sprintf("race-%d", round)
		var (
			start    = make(chan struct{})
			created  = make(chan struct{}) // closed when no creator is under way
			create   sync.WaitGroup
			watching sync.WaitGroup
			kept     = make([]string, creators+watchers)
			errs     = make([]error, creators+watchers)
		)
		for i := range creators {
			create.Go(func() {
				<-start
				kept[i], errs[i] = c.store.Create(ctx, key, fmt.Sprintf("%s by %d", key, i))
			})
		}
		for i := creators; i < creators+watchers; i++ {
			watching.Go(func() {
				<-start
				kept[i], errs[i] = c.watch(ctx, key, created)
			})
		}
		close(start)
		create.Wait()
		close(created)
		watching.Wait()
		for i, err := range errs {
			if err != nil {
				return fmt.Errorf("%d creators of %q at once: %w", creators, key, err)
			}
			if kept[i] != kept[0] {
				return fmt.Errorf("%d creators of %q at once: one got %s and another, or a Lookup, %s; want one value for all",
					creators, key, quote(kept[0]), quote(kept[i]))
			}
		}
		if !strings.HasPrefix(kept[0], key+" by ") {
			return fmt.Errorf("%d creators of %q at once got %s, which none of them gave", creators, key, quote(kept[0]))
		}
	}
	return nil
}

// watch looks up key until its creators have ended, and once more. It returns
// its value, or an error if that has changed or is not there in the end.
func (c storeCheck) watch(ctx context.Context, key string, created <-chan struct{}) (string, error) {
	var (
		seen  string
		found bool
	)
	for last := false; ; {
		v, err := c.store.Lookup(ctx, key)
		switch {
		case errors.Is(err, fetchonce.ErrNotFound) && !found && !last:
		case err != nil:
			return "", fmt.Errorf("a Lookup meanwhile: %w", err)
		case found && v != seen:
			return "", fmt.Errorf("a Lookup meanwhile returned %s, and a later one %s", quote(seen), quote(v))
		default:
			seen, found = v, true
		}
		if last {
			return seen, nil
		}
		select {
		case <-created:
			last = true
		default:
		}
	}
}

// oddKeys are told apart by every byte of them. Each is a key with a prefix.
var oddKeys = []string{
	"", "k", "K", " k", "k ", "k  ", "k\t", "k\n", "kk", "k%", "k_", "k*", "k?", "k.", "k:", "k/", "k\\", `k'`, `k''`, `k"`, "k`", "k,", "k;", "k{}", "k$1",
	"k' OR '1'='1", "1", "01", "1.0", "1 ", "é", "e\u0301", "e", "ß", "ss", "ı", "i", "I", "日本", "\U0001F600", "\U0001F601",
	"k\x00", "k\x00k", "k\xff", "k\xfe", "k\ufffd",
	strings.Repeat("k", 300) + "a", strings.Repeat("k", 300) + "b",
	strings.Repeat("k", 1000) + "a", strings.Repeat("k", 1000) + "b",
	strings.Repeat("k", 5000) + "a", strings.Repeat("k", 5000) + "b",
}

// plainKeys are those of oddKeys that no Store may refuse.
var plainKeys = []string{"", "k", "K", "1", "01", "k.", "k:", "k_"}

func (c storeCheck) keysAreToldApart(ctx context.Context) error {
	taken := make(map[string]string) // the values of the keys that were not refused
	for i, odd := range oddKeys {
		key, v := c.prefix+"key-"+odd, fmt.Sprintf("value of odd key %d", i)
		found, lookupErr := c.store.Lookup(ctx, key)
		if lookupErr == nil {
			return complain("Lookup", key, found, nil, "ErrNotFound, as only other keys were created")
		}
		kept, err := c.store.Create(ctx, key, v)
		switch {
		case err == nil && kept != v:
			return complain("Create of "+quote(v)+" for", key, kept, nil, "that value, as only other keys were created before")
		case errors.Is(err, fetchonce.ErrNotFound):
			return complain("Create of "+quote(v)+" for", key, kept, err, "that value, or an error that is not ErrNotFound")
		case err == nil && !errors.Is(lookupErr, fetchonce.ErrNotFound):
			return complain("Lookup", key, found, lookupErr, "ErrNotFound, as Create does not refuse the key")
		case err != nil && slices.Contains(plainKeys, odd):
			return complain("Create of "+quote(v)+" for", key, kept, err, "that value: there is nothing odd about the key")
		case err == nil:
			taken[key] = v
		}
	}
	for key, v := range taken {
		if found, err := c.store.Lookup(ctx, key); found != v || err != nil {
			return complain("Lookup", key, found, err, quote(v)+", which was created")
		}
	}
	// The empty key may be somebody's, so that it is only looked at.
	if found, err := c.store.Lookup(ctx, ""); err == nil && slices.Contains(slices.Collect(maps.Values(taken)), found) {
		return complain("Lookup", "", found, nil, "not the value of another key")
	}
	return nil
}

func (c storeCheck) endedContext(ctx context.Context) error {
	there, absent := c.prefix+"there", c.prefix+"nobody's"
	if kept, err := c.store.Create(ctx, there, "v"); kept != "v" || err != nil {
		return complain(`Create of "v" for`, there, kept, err, "that value")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for _, key := range []string{there, absent} {
		if v, err := c.store.Lookup(ended, key); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
			return complain("with a context that has ended: Lookup", key, v, err, "an error that is not ErrNotFound")
		}
		if v, err := c.store.Create(ended, key, "late"); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
			return complain(`with a context that has ended: Create of "late" for`, key, v, err, "an error that is not ErrNotFound")
		}
	}
	// What failed has spoilt nothing. It may have been kept, so either will do.
	kept, err := c.store.Create(ctx, absent, "in time")
	if kept != "in time" && kept != "late" || err != nil {
		return complain(`Create of "in time" for`, absent, kept, err, "that value, after a Create whose context had ended")
	}
	if v, err := c.store.Lookup(ctx, absent); v != kept || err != nil {
		return complain("Lookup", absent, v, err, quote(kept)+", which Create returned")
	}
	return nil
}

// many checks LookupMany, if there is one.
func (c storeCheck) many(ctx context.Context) error {
	store, ok := c.store.(interface {
		LookupMany(ctx context.Context, keys []string) (map[string]string, error)
	})
	if !ok {
		return nil
	}
	lookup := func(what string, keys []string, want map[string]string) error {
		given := slices.Clone(keys)
		got, err := store.LookupMany(ctx, given)
		if err != nil {
			return fmt.Errorf("LookupMany of %s: %w; want no error, also for keys without a value", what, err)
		}
		if !slices.Equal(given, keys) {
			return fmt.Errorf("LookupMany of %s changed the keys it was given", what)
		}
		for key, v := range want {
			if found, ok := got[key]; !ok || found != v {
				return fmt.Errorf("LookupMany of %s: the value of %q is %s, %t; want %s, true", what, key, quote(found), ok, quote(v))
			}
		}
		for key, v := range got {
			if _, ok := want[key]; !ok {
				return fmt.Errorf("LookupMany of %s returned %s for %q, which was not asked for or has no value", what, quote(v), key)
			}
		}
		return nil
	}

	there := make(map[string]string)
	for _, name := range []string{"a", "A", "b", "c", "", "e\u0301", "it's"} {
		key, v := c.prefix+"many-"+name, "value of "+name
		kept, err := c.store.Create(ctx, key, v)
		if err != nil || kept != v {
			continue // refused; we were here before
		}
		there[key] = v
	}
	keys := slices.Sorted(maps.Keys(there))
	absent := c.prefix + "many-absent"
	for _, step := range []struct {
		what string
		keys []string
		want map[string]string
	}{
		{"no keys", nil, nil},
		{"one key", keys[:1], map[string]string{keys[0]: there[keys[0]]}},
		{"a key without a value", []string{absent}, nil},
		{"keys with and without a value", append([]string{absent}, keys...), there},
		{"keys that are there twice", slices.Concat(keys, keys, []string{absent, absent}), there},
	} {
		if err := lookup(step.what, step.keys, step.want); err != nil {
			return err
		}
	}

	// More keys than a statement may have parameters in many a database.
	some := slices.Clone(keys[:len(keys)/2])
	for i := range 3000 {
		some = append(some, fmt.Sprintf("%s-%d", absent, i))
	}
	some = append(some, keys[len(keys)/2:]...)
	if err := lookup(fmt.Sprintf("%d keys", len(some)), some, there); err != nil {
		return err
	}

	ended, cancel := context.WithCancel(ctx)
	cancel()
	if got, err := store.LookupMany(ended, keys); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
		return fmt.Errorf("with a context that has ended: LookupMany = %d values, %v; want an error that is not ErrNotFound", len(got), err) //nolint:errorlint // may be nil
	}
	return nil
}

// complain returns an error about the result of a call.
func complain(call, key, v string, err error, want string) error {
	if err == nil {
		return fmt.Errorf("%s %s = %s, nil; want %s", call, quote(key), quote(v), want)
	}
	return fmt.Errorf("%s %s = %s, %w; want %s", call, quote(key), quote(v), err, want)
}

// quote quotes s, or its ends if it is long.
func quote(s string) string {
	if len(s) <= 100 {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprintf("%q...%q (%d bytes)", s[:60], s[len(s)-20:], len(s))
}
