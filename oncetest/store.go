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

// TestStore checks that store behaves as a [fetchonce.Loader] requires. It returns nil, or
// an error that describes the first fault. Call it in a test of your own Store:
//
//	if err := oncetest.TestStore(t.Context(), store); err != nil {
//		t.Fatal(err)
//	}
//
// It checks these rules:
//   - Lookup of a key without a value returns [fetchonce.ErrNotFound].
//   - The first Create of a key decides its value. Every Create returns that value, and so
//     does every later Lookup, also when many creators run at once.
//   - Values are returned unchanged, including empty, long and quoted ones. Two keys may
//     have equal values.
//   - Keys that differ in any byte are different keys: in case, a space at the end, the
//     form of an accent, or the last of a thousand letters. A Store may refuse an unusual
//     key with an error other than ErrNotFound, if Lookup and Create both refuse it.
//   - A call whose context has ended returns an error other than ErrNotFound.
//   - LookupMany, if the Store has it, returns the same values as Lookup, for any number
//     of keys. A key without a value is no error.
//
// TestStore makes a few hundred calls, at most 16 at once. The store may be in use: all keys
// that it creates are new and begin with "oncetest-" and a random text. They stay in the
// store. TestStore has no timeout of its own; ctx ends a call of the store that hangs.
//
// Run it with the race detector and on a store like that of production: a table with the
// same column types and collations, and more than one connection.
func TestStore(ctx context.Context, store fetchonce.Store[string]) error {
	c := storeCheck{store: store, prefix: "oncetest-" + rand.Text() + "-"}
	for _, check := range []func(ctx context.Context) error{
		c.absent, c.firstValueIsKept, c.valuesAreUnchanged, c.concurrentCreators, c.keysAreDistinct, c.endedContext, c.many,
	} {
		err := check(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("oncetest: TestStore has not finished: %w", context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("oncetest: %w", err)
		}
	}
	return nil
}

// A storeCheck is one call of TestStore.
type storeCheck struct {
	store  fetchonce.Store[string]
	prefix string // of every key
}

func (c storeCheck) absent(ctx context.Context) error {
	key := c.prefix + "absent"
	for range 2 { // a Lookup does not create a value
		if v, err := c.store.Lookup(ctx, key); !errors.Is(err, fetchonce.ErrNotFound) {
			return unexpected("Lookup", key, v, err, "an error that is ErrNotFound, as the key has no value")
		}
	}
	return nil
}

func (c storeCheck) firstValueIsKept(ctx context.Context) error {
	key := c.prefix + "first"
	for _, v := range []string{"first", "second", "first"} {
		if kept, err := c.store.Create(ctx, key, v); kept != "first" || err != nil {
			return unexpected("Create of "+quote(v)+" for", key, kept, err, `"first", which was created first`)
		}
		if kept, err := c.store.Lookup(ctx, key); kept != "first" || err != nil {
			return unexpected("Lookup", key, kept, err, `"first", which was created first`)
		}
	}
	return nil
}

func (c storeCheck) valuesAreUnchanged(ctx context.Context) error {
	for i, v := range []string{
		"", " ", "null", "0", "a ", " a", "a\nb\tc", `'"` + "`" + `\`, `\x41 \101 \u0041`, "%s ? $1 :a", "é e\u0301 日本 \U0001F600",
		strings.Repeat("long", 25_000),
	} {
		key := c.prefix + fmt.Sprintf("value-%d", i)
		if kept, err := c.store.Create(ctx, key, v); kept != v || err != nil {
			return unexpected("Create of "+quote(v)+" for", key, kept, err, "that value")
		}
		if kept, err := c.store.Lookup(ctx, key); kept != v || err != nil {
			return unexpected("Lookup", key, kept, err, quote(v)+", which was created")
		}
		key += "-again"
		if kept, err := c.store.Create(ctx, key, v); kept != v || err != nil {
			return unexpected("Create of "+quote(v)+" for", key, kept, err, "that value, though another key has it too")
		}
	}
	return nil
}

// concurrentCreators lets many goroutines create one key at once. It repeats that: a Store
// that looks up and then inserts, without a unique key, fails only in some rounds.
func (c storeCheck) concurrentCreators(ctx context.Context) error {
	const rounds, creators, watchers = 8, 12, 4
	for round := range rounds {
		key := c.prefix + fmt.Sprintf("race-%d", round)
		var (
			start    = make(chan struct{})
			created  = make(chan struct{}) // closed when all creators have returned
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
				return fmt.Errorf("%d creators of %q at once: one call returned %s and another %s; want one value for all",
					creators, key, quote(kept[0]), quote(kept[i]))
			}
		}
		if !strings.HasPrefix(kept[0], key+" by ") {
			return fmt.Errorf("%d creators of %q at once got %s, which none of them created", creators, key, quote(kept[0]))
		}
	}
	return nil
}

// watch looks up key until created is closed, and once more after that. It returns the
// value, or an error if the value changed or is missing in the last Lookup.
func (c storeCheck) watch(ctx context.Context, key string, created <-chan struct{}) (string, error) {
	var (
		first string
		found bool
	)
	for last := false; ; {
		v, err := c.store.Lookup(ctx, key)
		switch {
		case errors.Is(err, fetchonce.ErrNotFound) && !found && !last:
		case err != nil:
			return "", fmt.Errorf("concurrent Lookup: %w", err)
		case found && v != first:
			return "", fmt.Errorf("a concurrent Lookup returned %s, and a later one %s", quote(first), quote(v))
		default:
			first, found = v, true
		}
		if last {
			return first, nil
		}
		select {
		case <-created:
			last = true
		default:
		}
	}
}

// oddKeys are the ends of keys that a Store might confuse.
var oddKeys = []string{
	"", "k", "K", " k", "k ", "k  ", "k\t", "k\n", "kk", "k%", "k_", "k*", "k?", "k.", "k:", "k/", "k\\", `k'`, `k''`, `k"`, "k`", "k,", "k;", "k{}", "k$1",
	"k' OR '1'='1", "1", "01", "1.0", "1 ", "é", "e\u0301", "e", "ß", "ss", "ı", "i", "I", "日本", "\U0001F600", "\U0001F601",
	"k\x00", "k\x00k", "k\xff", "k\xfe", "k\ufffd",
	strings.Repeat("k", 300) + "a", strings.Repeat("k", 300) + "b",
	strings.Repeat("k", 1000) + "a", strings.Repeat("k", 1000) + "b",
	strings.Repeat("k", 5000) + "a", strings.Repeat("k", 5000) + "b",
}

// plainKeys are the oddKeys that a Store must not refuse.
var plainKeys = []string{"", "k", "K", "1", "01", "k.", "k:", "k_"}

func (c storeCheck) keysAreDistinct(ctx context.Context) error {
	taken := make(map[string]string) // the values of the keys that Create accepted
	for i, odd := range oddKeys {
		key, v := c.prefix+"key-"+odd, fmt.Sprintf("value of odd key %d", i)
		found, lookupErr := c.store.Lookup(ctx, key)
		if lookupErr == nil {
			return unexpected("Lookup", key, found, nil, "ErrNotFound, as only other keys were created")
		}
		kept, err := c.store.Create(ctx, key, v)
		switch {
		case err == nil && kept != v:
			return unexpected("Create of "+quote(v)+" for", key, kept, nil, "that value, as only other keys were created before")
		case errors.Is(err, fetchonce.ErrNotFound):
			return unexpected("Create of "+quote(v)+" for", key, kept, err, "that value, or an error that is not ErrNotFound")
		case err == nil && !errors.Is(lookupErr, fetchonce.ErrNotFound):
			return unexpected("Lookup", key, found, lookupErr, "ErrNotFound, as Create does not refuse the key")
		case err != nil && slices.Contains(plainKeys, odd):
			return unexpected("Create of "+quote(v)+" for", key, kept, err, "that value: a Store must not refuse this key")
		case err == nil:
			taken[key] = v
		}
	}
	for key, v := range taken {
		if found, err := c.store.Lookup(ctx, key); found != v || err != nil {
			return unexpected("Lookup", key, found, err, quote(v)+", which was created")
		}
	}
	// The empty key may be in use, so this does not create it.
	if found, err := c.store.Lookup(ctx, ""); err == nil && slices.Contains(slices.Collect(maps.Values(taken)), found) {
		return unexpected("Lookup", "", found, nil, "not the value of another key")
	}
	return nil
}

func (c storeCheck) endedContext(ctx context.Context) error {
	there, absent := c.prefix+"there", c.prefix+"not-there"
	if kept, err := c.store.Create(ctx, there, "v"); kept != "v" || err != nil {
		return unexpected(`Create of "v" for`, there, kept, err, "that value")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for _, key := range []string{there, absent} {
		if v, err := c.store.Lookup(ended, key); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
			return unexpected("with a context that has ended: Lookup", key, v, err, "an error that is not ErrNotFound")
		}
		if v, err := c.store.Create(ended, key, "late"); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
			return unexpected(`with a context that has ended: Create of "late" for`, key, v, err, "an error that is not ErrNotFound")
		}
	}
	// The failed Create may have stored its value; that is allowed.
	kept, err := c.store.Create(ctx, absent, "in time")
	if kept != "in time" && kept != "late" || err != nil {
		return unexpected(`Create of "in time" for`, absent, kept, err, "that value, after a Create whose context had ended")
	}
	if v, err := c.store.Lookup(ctx, absent); v != kept || err != nil {
		return unexpected("Lookup", absent, v, err, quote(kept)+", which Create returned")
	}
	return nil
}

// A manyStore is a Store with LookupMany, which a Loader uses for GetMany.
type manyStore interface {
	LookupMany(ctx context.Context, keys []string) (map[string]string, error)
}

// many checks LookupMany, if the Store has it.
func (c storeCheck) many(ctx context.Context) error {
	store, ok := c.store.(manyStore)
	if !ok {
		return nil
	}
	there := c.createSome(ctx)
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
		{"keys that are given twice", slices.Concat(keys, keys, []string{absent, absent}), there},
	} {
		if err := checkMany(ctx, store, step.what, step.keys, step.want); err != nil {
			return err
		}
	}

	// More keys than many databases allow parameters in one statement.
	most := slices.Clone(keys[:len(keys)/2])
	for i := range 3000 {
		most = append(most, fmt.Sprintf("%s-%d", absent, i))
	}
	most = append(most, keys[len(keys)/2:]...)
	if err := checkMany(ctx, store, fmt.Sprintf("%d keys", len(most)), most, there); err != nil {
		return err
	}

	ended, cancel := context.WithCancel(ctx)
	cancel()
	if got, err := store.LookupMany(ended, keys); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
		return fmt.Errorf("with a context that has ended: LookupMany = %d values, %v; want an error that is not ErrNotFound", len(got), err) //nolint:errorlint // may be nil
	}
	return nil
}

// createSome creates a few keys and returns those that the Store accepted, with their values.
func (c storeCheck) createSome(ctx context.Context) map[string]string {
	created := make(map[string]string)
	for _, name := range []string{"a", "A", "b", "c", "", "e\u0301", "it's"} {
		key, v := c.prefix+"many-"+name, "value of "+name
		if kept, err := c.store.Create(ctx, key, v); err == nil && kept == v {
			created[key] = v
		}
	}
	return created
}

// checkMany calls LookupMany for keys and checks that it returns want.
func checkMany(ctx context.Context, store manyStore, what string, keys []string, want map[string]string) error {
	given := slices.Clone(keys)
	got, err := store.LookupMany(ctx, given)
	if err != nil {
		return fmt.Errorf("LookupMany of %s: %w; want no error, also for keys without a value", what, err)
	}
	if !slices.Equal(given, keys) {
		return fmt.Errorf("LookupMany of %s changed the slice of keys", what)
	}
	for key, v := range want {
		if found, ok := got[key]; !ok || found != v {
			return fmt.Errorf("LookupMany of %s: the value of %q is %s, %t; want %s, true", what, key, quote(found), ok, quote(v))
		}
	}
	for key, v := range got {
		if _, ok := want[key]; !ok {
			return fmt.Errorf("LookupMany of %s returned %s for %q, which is not one of the keys or has no value", what, quote(v), key)
		}
	}
	return nil
}

// unexpected returns an error about the result of a call.
func unexpected(call, key, v string, err error, want string) error {
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
