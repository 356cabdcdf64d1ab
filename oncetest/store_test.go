package oncetest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncetest"
)

// memory is a correct Store. A test replaces the method that is to be wrong.
type memory struct {
	mu     *sync.Mutex
	values map[string]string

	lookup func(m memory, ctx context.Context, key string) (string, error)
	create func(m memory, ctx context.Context, key, v string) (string, error)
}

func newMemory() memory {
	return memory{mu: new(sync.Mutex), values: make(map[string]string), lookup: memory.get, create: memory.put}
}

func (m memory) Lookup(ctx context.Context, key string) (string, error) { return m.lookup(m, ctx, key) }

func (m memory) Create(ctx context.Context, key, v string) (string, error) {
	return m.create(m, ctx, key, v)
}

func (m memory) get(ctx context.Context, key string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	v, ok := m.values[key]
	if !ok {
		return "", fmt.Errorf("memory: %w", fetchonce.ErrNotFound)
	}
	return v, nil
}

func (m memory) put(ctx context.Context, key, v string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if old, ok := m.values[key]; ok {
		return old, nil
	}
	m.values[key] = v
	return v, nil
}

// set stores v, also if the key has a value.
func (m memory) set(key, v string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values[key] = v
}

// manyMemory is a memory with LookupMany.
type manyMemory struct {
	memory
	many func(m memory, ctx context.Context, keys []string) (map[string]string, error)
}

func (m manyMemory) LookupMany(ctx context.Context, keys []string) (map[string]string, error) {
	return m.many(m.memory, ctx, keys)
}

func many(m memory, ctx context.Context, keys []string) (map[string]string, error) { //nolint:revive // a method's arguments
	found := make(map[string]string)
	for _, key := range keys {
		v, err := m.get(ctx, key)
		switch {
		case err == nil:
			found[key] = v
		case !errors.Is(err, fetchonce.ErrNotFound):
			return nil, err
		}
	}
	return found, nil
}

func TestStoreAcceptsACorrectStore(t *testing.T) {
	m := newMemory()
	m.values["already there"] = "v"
	for range 2 { // an earlier TestStore has left its keys
		if err := oncetest.TestStore(t.Context(), m); err != nil {
			t.Error(err)
		}
		if err := oncetest.TestStore(t.Context(), manyMemory{m, many}); err != nil {
			t.Error(err)
		}
	}
	for key := range m.values {
		if key != "already there" && !strings.HasPrefix(key, "oncetest-") {
			t.Errorf("TestStore left the key %q", key)
		}
	}
}

func TestStoreAcceptsRefusedUnusualKeys(t *testing.T) {
	m := newMemory()
	refused := errors.New("refused")
	odd := func(key string) bool {
		return len(key) > 256 || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' })
	}
	m.create = func(m memory, ctx context.Context, key, v string) (string, error) {
		if odd(key) {
			return "", refused
		}
		return m.put(ctx, key, v)
	}
	if err := oncetest.TestStore(t.Context(), manyMemory{m, many}); err != nil {
		t.Errorf("refused by Create: %v", err)
	}
	m.lookup = func(m memory, ctx context.Context, key string) (string, error) {
		if odd(key) {
			return "", refused
		}
		return m.get(ctx, key)
	}
	if err := oncetest.TestStore(t.Context(), manyMemory{m, many}); err != nil {
		t.Errorf("refused by both: %v", err)
	}
}

func TestStoreReturnsTheCauseOfItsEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	mine := errors.New("mine")
	m := newMemory()
	m.create = func(m memory, ctx context.Context, key, v string) (string, error) {
		cancel(mine)
		return m.put(ctx, key, v)
	}
	if err := oncetest.TestStore(ctx, m); !errors.Is(err, mine) || !strings.Contains(err.Error(), "has not finished") {
		t.Errorf("TestStore = %v; want that it has not finished, and the cause", err)
	}
}

// Each of these stores breaks one rule.
func TestStoreReportsEachDefect(t *testing.T) {
	type (
		lookup = func(m memory, ctx context.Context, key string) (string, error)
		create = func(m memory, ctx context.Context, key, v string) (string, error)
	)
	// folded stores each value under another key, which fold makes of its key.
	folded := func(fold func(key string) string) func(m *memory) {
		return func(m *memory) {
			m.lookup = func(m memory, ctx context.Context, key string) (string, error) { return m.get(ctx, fold(key)) }
			m.create = func(m memory, ctx context.Context, key, v string) (string, error) { return m.put(ctx, fold(key), v) }
		}
	}
	lookups := func(l lookup) func(m *memory) { return func(m *memory) { m.lookup = l } }
	creates := func(c create) func(m *memory) { return func(m *memory) { m.create = c } }

	for name, test := range map[string]struct {
		spoil func(m *memory)
		want  string // in the error
	}{
		"absent is a zero value": {lookups(func(m memory, ctx context.Context, key string) (string, error) {
			v, err := m.get(ctx, key)
			if errors.Is(err, fetchonce.ErrNotFound) {
				return "", nil
			}
			return v, err
		}), "ErrNotFound, as the key has no value"},
		"absent is another error": {lookups(func(m memory, ctx context.Context, key string) (string, error) {
			v, err := m.get(ctx, key)
			if errors.Is(err, fetchonce.ErrNotFound) {
				return "", errors.New("no rows")
			}
			return v, err
		}), "no rows; want an error that is ErrNotFound"},
		"lookup makes a value": {lookups(func(m memory, ctx context.Context, key string) (string, error) {
			v, err := m.get(ctx, key)
			if errors.Is(err, fetchonce.ErrNotFound) {
				m.set(key, "")
			}
			return v, err
		}), "ErrNotFound, as the key has no value"},
		"last wins": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			m.set(key, v)
			return v, ctx.Err()
		}), `"first", which was created first`},
		"last wins, but Create returns the first": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			old, err := m.put(ctx, key, v)
			m.set(key, v)
			return old, err
		}), `Lookup`},
		"own value is returned": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			_, err := m.put(ctx, key, v)
			return v, err
		}), `"first", which was created first`},
		"nothing is returned": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			_, err := m.put(ctx, key, v)
			return "", err
		}), `"first", which was created first`},
		"an existing key is an error": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			kept, err := m.put(ctx, key, v)
			if err == nil && kept != v {
				return "", errors.New("duplicate key")
			}
			return kept, err
		}), "duplicate key"},
		"nothing is kept": {creates(func(_ memory, ctx context.Context, _, v string) (string, error) {
			return v, ctx.Err()
		}), "Lookup"},
		"creators check and then create": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			if old, err := m.get(ctx, key); !errors.Is(err, fetchonce.ErrNotFound) {
				return old, err
			}
			time.Sleep(time.Millisecond)
			m.set(key, v)
			return v, nil
		}), "creators"},
		"creators of one key fail": {creates(func() create {
			var busy sync.Mutex
			return func(m memory, ctx context.Context, key, v string) (string, error) {
				if !busy.TryLock() {
					return "", errors.New("database is locked")
				}
				defer busy.Unlock()
				time.Sleep(time.Millisecond)
				return m.put(ctx, key, v)
			}
		}()), "database is locked"},
		"value changes after a Lookup": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			if !strings.Contains(key, "-race-") {
				return m.put(ctx, key, v)
			}
			m.set(key, v)
			time.Sleep(5 * time.Millisecond)
			m.set(key, key+" by none")
			return m.get(ctx, key)
		}), "creators of"},
		"value that no creator passed": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			if strings.Contains(key, "-race-") {
				v = "default"
			}
			return m.put(ctx, key, v)
		}), "which none of them created"},
		"empty value is absent": {lookups(func(m memory, ctx context.Context, key string) (string, error) {
			v, err := m.get(ctx, key)
			if err == nil && v == "" {
				err = fetchonce.ErrNotFound
			}
			return v, err
		}), "Lookup"},
		"values are unique": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			m.mu.Lock()
			for other, taken := range m.values {
				if taken == v && other != key {
					m.mu.Unlock()
					return "", errors.New("unique constraint")
				}
			}
			m.mu.Unlock()
			return m.put(ctx, key, v)
		}), "though another key has it too"},
		"values are trimmed": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			return m.put(ctx, key, strings.TrimRight(v, " "))
		}), "want that value"},
		"long values are cut": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			return m.put(ctx, key, v[:min(len(v), 65_535)])
		}), "want that value"},
		"backslashes are removed": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			return m.put(ctx, key, strings.ReplaceAll(v, `\`, ""))
		}), "want that value"},
		"case is ignored":                   {folded(strings.ToLower), "only other keys were created"},
		"spaces at the end are ignored":     {folded(func(key string) string { return strings.TrimRight(key, " ") }), "only other keys were created"},
		"spaces at the start are ignored":   {folded(func(key string) string { return strings.ReplaceAll(key, "- ", "-") }), "only other keys were created"},
		"white space at the end is ignored": {folded(func(key string) string { return strings.TrimRight(key, "\t\n") }), "only other keys were created"},
		"accents are ignored":               {folded(func(key string) string { return strings.ReplaceAll(key, "é", "e") }), "only other keys were created"},
		"accents are composed":              {folded(func(key string) string { return strings.ReplaceAll(key, "e\u0301", "é") }), "only other keys were created"},
		"sharp s is ss":                     {folded(func(key string) string { return strings.ReplaceAll(key, "ß", "ss") }), "only other keys were created"},
		"four-byte characters are replaced": {folded(func(key string) string { return strings.Map(threeBytes, key) }), "only other keys were created"},
		"invalid UTF-8 is replaced":         {folded(func(key string) string { return strings.ToValidUTF8(key, "\ufffd") }), "only other keys were created"},
		"cut at NUL":                        {folded(func(key string) string { key, _, _ = strings.Cut(key, "\x00"); return key }), "only other keys were created"},
		"cut at 255":                        {folded(func(key string) string { return key[:min(len(key), 255)] }), "only other keys were created"},
		"cut at 767":                        {folded(func(key string) string { return key[:min(len(key), 767)] }), "only other keys were created"},
		"cut at 3072":                       {folded(func(key string) string { return key[:min(len(key), 3072)] }), "only other keys were created"},
		"numbers lose leading zeros":        {folded(func(key string) string { return strings.ReplaceAll(key, "key-01", "key-1") }), "only other keys were created"},
		"quotes are removed":                {folded(func(key string) string { return strings.ReplaceAll(key, "'", "") }), "only other keys were created"},
		"percent sign is a wild card":       {lookups(wildcard("%")), "only other keys were created"},
		"key is part of the SQL statement": {lookups(func(m memory, ctx context.Context, key string) (string, error) {
			if strings.Contains(key, "OR '1'='1") {
				return "everything", nil
			}
			return m.get(ctx, key)
		}), "only other keys were created"},
		"empty key finds another": {lookups(func(m memory, ctx context.Context, key string) (string, error) {
			if key == "" {
				return "value of odd key 0", nil
			}
			return m.get(ctx, key)
		}), "not the value of another key"},
		"plain key is refused": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			if strings.HasSuffix(key, ":") {
				return "", errors.New("no colons")
			}
			return m.put(ctx, key, v)
		}), "must not refuse this key"},
		"refused key is not found": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			if strings.Contains(key, "\x00") {
				return "", fetchonce.ErrNotFound
			}
			return m.put(ctx, key, v)
		}), "an error that is not ErrNotFound"},
		"lookup refuses a key that create accepts": {lookups(func(m memory, ctx context.Context, key string) (string, error) {
			if strings.Contains(key, "\xff") {
				return "", errors.New("no text")
			}
			return m.get(ctx, key)
		}), "ErrNotFound, as Create does not refuse the key"},
		"creating a key deletes another": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			if strings.HasSuffix(key, "key-ss") {
				delete(m.values, strings.TrimSuffix(key, "ss")+"ß")
			}
			return m.put(ctx, key, v)
		}), "which was created"},
		"lookup ignores its context": {lookups(func(m memory, ctx context.Context, key string) (string, error) {
			return m.get(context.WithoutCancel(ctx), key)
		}), "with a context that has ended: Lookup"},
		"create ignores its context": {creates(func(m memory, ctx context.Context, key, v string) (string, error) {
			return m.put(context.WithoutCancel(ctx), key, v)
		}), "with a context that has ended: Create"},
		"ended context is not found": {lookups(func(m memory, ctx context.Context, key string) (string, error) {
			if ctx.Err() != nil {
				return "", errors.Join(fetchonce.ErrNotFound, ctx.Err())
			}
			return m.get(ctx, key)
		}), "with a context that has ended: Lookup"},
		"ended context breaks the key": {creates(func() create {
			broken := make(map[string]bool)
			return func(m memory, ctx context.Context, key, v string) (string, error) {
				m.mu.Lock()
				broken[key] = broken[key] || ctx.Err() != nil
				err := ctx.Err()
				if err == nil && broken[key] {
					err = errors.New("broken")
				}
				m.mu.Unlock()
				if err != nil {
					return "", err
				}
				return m.put(ctx, key, v)
			}
		}()), "after a Create whose context had ended"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			test.spoil(&m)
			wantDefect(t, m, test.want)
		})
	}
}

func TestStoreReportsEachDefectOfLookupMany(t *testing.T) {
	for name, test := range map[string]struct {
		many func(m memory, ctx context.Context, keys []string) (map[string]string, error)
		want string
	}{
		"absent is a zero value": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			found, err := many(m, ctx, keys)
			for _, key := range keys {
				if _, ok := found[key]; !ok && err == nil {
					found[key] = ""
				}
			}
			return found, err
		}, "has no value"},
		"absent is an error": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			found, err := many(m, ctx, keys)
			if err == nil && len(found) < len(keys) {
				return nil, fetchonce.ErrNotFound
			}
			return found, err
		}, "want no error, also for keys without a value"},
		"no keys is an error": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			if len(keys) == 0 {
				return nil, errors.New("syntax error near ()")
			}
			return many(m, ctx, keys)
		}, "LookupMany of no keys"},
		"a key twice is an error": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			if len(keys) > 2 && keys[0] == keys[len(keys)/2-1] {
				return nil, errors.New("twice")
			}
			sorted := slices.Sorted(slices.Values(keys))
			if len(slices.Compact(sorted)) < len(keys) {
				return nil, errors.New("twice")
			}
			return many(m, ctx, keys)
		}, "keys that are given twice"},
		"many are an error": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			if len(keys) > 999 {
				return nil, errors.New("too many SQL variables")
			}
			return many(m, ctx, keys)
		}, "too many SQL variables"},
		"only the first thousand keys are looked up": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			return many(m, ctx, keys[:min(len(keys), 1000)])
		}, "LookupMany of 300"},
		"keys are in lower case": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			found, err := many(m, ctx, keys)
			lower := make(map[string]string)
			for key, v := range found {
				lower[strings.ToLower(key)] = v
			}
			return lower, err
		}, "the value of"},
		"values are in another order": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			found, err := many(m, ctx, keys)
			if len(found) > 1 {
				found[keys[1]], found[keys[2]] = found[keys[2]], found[keys[1]]
			}
			return found, err
		}, "the value of"},
		"everything is returned": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return m.values, nil
		}, "is not one of the keys"},
		"keys are changed": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			found, err := many(m, ctx, keys)
			slices.Reverse(keys)
			return found, err
		}, "changed the slice of keys"},
		"ignores its context": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			return many(m, context.WithoutCancel(ctx), keys)
		}, "with a context that has ended: LookupMany"},
		"ended context is not found": {func(m memory, ctx context.Context, keys []string) (map[string]string, error) {
			if ctx.Err() != nil {
				return nil, fetchonce.ErrNotFound
			}
			return many(m, ctx, keys)
		}, "with a context that has ended: LookupMany"},
	} {
		t.Run(name, func(t *testing.T) {
			wantDefect(t, manyMemory{newMemory(), test.many}, test.want)
		})
	}
}

// wantDefect fails the test unless TestStore returns an error with want in it.
func wantDefect(t *testing.T, store fetchonce.Store[string], want string) {
	t.Helper()
	err := oncetest.TestStore(t.Context(), store)
	if err == nil || !strings.HasPrefix(err.Error(), "oncetest: ") || !strings.Contains(err.Error(), want) {
		t.Errorf("TestStore = %v; want an error with %q", err, want)
	}
}

// threeBytes replaces a character that UTF-8 encodes in four bytes with a question mark.
func threeBytes(r rune) rune {
	if r > 0xffff {
		return '?'
	}
	return r
}

// wildcard looks up a key that ends in mark by its prefix.
func wildcard(mark string) func(m memory, ctx context.Context, key string) (string, error) {
	return func(m memory, ctx context.Context, key string) (string, error) {
		m.mu.Lock()
		before, ok := strings.CutSuffix(key, mark)
		if ok {
			for other, v := range m.values {
				if strings.HasPrefix(other, before) {
					m.mu.Unlock()
					return v, nil
				}
			}
		}
		m.mu.Unlock()
		return m.get(ctx, key)
	}
}
