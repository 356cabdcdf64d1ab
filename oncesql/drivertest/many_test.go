package drivertest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
	"github.com/fetchonce/fetchonce/oncetest"
)

func TestLookupManyReturnsTheKeysWithARow(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			want := make(map[string]thing)
			for i, key := range []string{"a", "A", "a ", "", "'", "é", "e\u0301", "zero"} {
				want[key] = thing{key, i}
				if key == "zero" {
					want[key] = thing{}
				}
				if _, err := f.store(t, d).Create(t.Context(), key, want[key]); err != nil {
					t.Fatal(err)
				}
			}
			keys := []string{"absent", "a", "A", "a ", "", "'", "é", "e\u0301", "zero", "a", "absent", "AA"}
			selects := 0
			s := f.store(t, d.before(t, func(statement string) error {
				if strings.HasPrefix(statement, "SELECT") {
					selects++
				}
				return nil
			}))
			found, err := s.LookupMany(t.Context(), keys)
			if !maps.Equal(found, want) || err != nil {
				t.Errorf("LookupMany = %v, %v; want %v", found, err, want)
			}
			if selects != 1 {
				t.Errorf("%d queries, want 1", selects)
			}
		})
	}
}

func TestLookupManyOfNoKeysSendsNothing(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := newStore(t, d.before(t, func(statement string) error {
				t.Errorf("sent %s", statement)
				return nil
			}), oncesql.Options[string]{Table: "things"})
			for _, keys := range [][]string{nil, {}} {
				if found, err := s.LookupMany(t.Context(), keys); found == nil || len(found) != 0 || err != nil {
					t.Errorf("LookupMany(%v) = %v, %v; want an empty map", keys, found, err)
				}
			}
		})
	}
}

// There are more keys than the database accepts in one statement. A few have rows: the
// first, the last, and those at the boundaries of statements.
//
//test:long
func TestLookupManyHasNoLimit(t *testing.T) {
	limits := map[string]int{"Postgres": 65_535, "MariaDB": 10_000, "SQLite": 32_766}
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := textStore(t, d, "things")
			limit := limits[name]
			want := make(map[string]string)
			for _, i := range []int{0, 1, limit - 1, limit, limit + 1} {
				key := fmt.Sprintf("key %d", i)
				want[key] = "value of " + key
				if _, err := s.Create(t.Context(), key, want[key]); err != nil {
					t.Fatal(err)
				}
			}
			keys := make([]string, limit+1)
			for i := range keys {
				keys[i] = fmt.Sprintf("key %d", i)
			}
			selects := 0
			watched := newStore(t, d.before(t, func(statement string) error {
				if strings.HasPrefix(statement, "SELECT") {
					selects++
				}
				return nil
			}), oncesql.Options[string]{Table: "things"})
			for _, test := range []struct{ keys, selects int }{
				{limit, 1}, {limit + 1, 2},
			} {
				expected := maps.Clone(want)
				maps.DeleteFunc(expected, func(key, _ string) bool {
					var i int
					_, err := fmt.Sscanf(key, "key %d", &i)
					return err != nil || i >= test.keys
				})
				selects = 0
				start := time.Now()
				found, err := watched.LookupMany(t.Context(), keys[:test.keys])
				if !maps.Equal(found, expected) || err != nil {
					t.Errorf("LookupMany of %d keys = %v, %v; want %v", test.keys, found, err, expected)
				}
				if selects != test.selects {
					t.Errorf("LookupMany of %d keys took %d queries, want %d", test.keys, selects, test.selects)
				}
				t.Logf("%d keys, %d queries: %v", test.keys, selects, time.Since(start))
			}
		})
	}
}

// A server limits the size of a statement: MariaDB to 16 MiB by default.
func TestLookupManyOfLongKeysTakesMoreQueries(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := textStore(t, d, "things")
			if _, err := s.Create(t.Context(), "k", "v"); err != nil {
				t.Fatal(err)
			}
			selects := 0
			watched := newStore(t, d.before(t, func(statement string) error {
				if strings.HasPrefix(statement, "SELECT") {
					selects++
				}
				return nil
			}), oncesql.Options[string]{Table: "things"})
			var keys []string
			for i := range 3000 {
				keys = append(keys, fmt.Sprintf("%0*d", 2500, i)) // 7 MB
			}
			keys = append(keys, strings.Repeat("k", 3<<20), "k")
			found, err := watched.LookupMany(t.Context(), keys)
			if d.dialect == oncesql.MySQL { // its column holds 3,072 bytes
				_ = failed(t, err, strings.Repeat("k", 3<<20))
			} else if err != nil {
				t.Errorf("LookupMany = %v; want nil", err)
			}
			if len(found) != 1 || found["k"] != "v" {
				t.Errorf("LookupMany = %d values; want that of k", len(found))
			}
			if selects < 4 || selects > 7 {
				t.Errorf("%d queries for 10 MB of keys, want one for each 2 MiB", selects)
			}
		})
	}
}

// If pgx keeps statements, it keeps about twenty of a Store.
func TestLookupManySendsFewKindsOfStatements(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			textStore(t, d, "things")
			kinds := make(map[string]bool)
			s := newStore(t, d.before(t, func(statement string) error {
				if strings.HasPrefix(statement, "SELECT") {
					kinds[statement] = true
				}
				return nil
			}), oncesql.Options[string]{Table: "things"})
			var keys []string
			for i := range 300 {
				keys = append(keys, fmt.Sprintf("key %d", i))
				if _, err := s.LookupMany(t.Context(), keys); err != nil {
					t.Fatal(err)
				}
			}
			if len(kinds) != 10 { // for 1, 2, 4 ... 512 keys
				t.Errorf("%d kinds of statements, want 10", len(kinds))
			}
		})
	}
}

// The database returns a key in another spelling, or compares another spelling as equal.
func TestLookupManyReturnsTheCallersKeys(t *testing.T) {
	for name, test := range map[string]struct {
		newDatabase func(t *testing.T) database
		keyType     string
		row         string   // the key in the table
		ask         []string // the keys that find it
	}{
		"uuid":           {databases["Postgres"], "uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", []string{"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"}},
		"padded":         {databases["Postgres"], "char(5)", "ab", []string{"ab", "ab "}}, // also where several are asked for
		"number":         {databases["Postgres"], "int", "7", []string{"7"}},
		"number, zeros":  {databases["Postgres"], "int", "7", []string{"007"}},
		"MariaDB, case":  {databases["MariaDB"], "varchar(20) COLLATE latin1_swedish_ci", "Ab", []string{"Ab", "aB", "AB"}},
		"MariaDB, blank": {databases["MariaDB"], "varchar(20) COLLATE latin1_bin", "ab", []string{"ab", "ab "}},
		"SQLite, case":   {databases["SQLite"], "text COLLATE NOCASE", "Ab", []string{"aB", "AB"}},
		"SQLite, number": {databases["SQLite"], "integer", "7", []string{"7"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := test.newDatabase(t)
			d.exec(t, "CREATE TABLE things (id "+test.keyType+" NOT NULL PRIMARY KEY, value text)")
			s := newStore(t, d, oncesql.Options[string]{Table: "things", Key: "id", FoldKeys: true})
			if _, err := s.Create(t.Context(), test.row, "v"); err != nil {
				t.Fatal(err)
			}
			want := make(map[string]string)
			for _, key := range test.ask {
				if v, err := s.Lookup(t.Context(), key); v != "v" || err != nil {
					t.Fatalf("Lookup(%q) = %q, %v; want v", key, v, err)
				}
				want[key] = "v"
			}
			if found, err := s.LookupMany(t.Context(), test.ask); !maps.Equal(found, want) || err != nil {
				t.Errorf("LookupMany(%q) = %v, %v; want %v", test.ask, found, err, want)
			}
		})
	}
}

// failed returns the error of a key if err says that only that key failed.
func failed(t *testing.T, err error, key string) error {
	t.Helper()
	many, ok := errors.AsType[*fetchonce.ManyError](err)
	if !ok || len(many.Errors) != 1 || many.Errors[key] == nil {
		t.Errorf("the error is %v; want a *ManyError with %q alone", err, key)
		return err
	}
	return many.Errors[key]
}

// If the database, the driver or Scan refuses a key or row, only that key fails.
func TestOneBadKeyFailsAlone(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := textStore(t, d, "things")
			want := make(map[string]string)
			keys := []string{"absent"}
			for i := range 20 {
				key := fmt.Sprintf("key %d", i)
				keys, want[key] = append(keys, key), "v"
				if _, err := s.Create(t.Context(), key, "v"); err != nil {
					t.Fatal(err)
				}
			}
			d.exec(t, `INSERT INTO things VALUES ('no JSON', '{"half')`)
			for _, bad := range []string{"no JSON", "a\x00b", "a\xffb"} {
				found, err := s.LookupMany(t.Context(), append([]string{bad}, keys...))
				_, lookupErr := s.Lookup(t.Context(), bad)
				if errors.Is(lookupErr, fetchonce.ErrNotFound) { // this database takes such a key
					if err != nil {
						t.Errorf("LookupMany with %q = %v; want nil, as Lookup finds nothing", bad, err)
					}
				} else {
					_ = failed(t, err, bad)
				}
				if !maps.Equal(found, want) {
					t.Errorf("LookupMany with %q = %v; want the other keys' values", bad, found)
				}
			}
		})
	}
}

// The same through a Loader: the callers of the other keys get their values.
func TestOneBadRowFailsOneKeyOfGetMany(t *testing.T) {
	for name, newDatabase := range databases {
		for _, ttl := range []time.Duration{time.Minute, fetchonce.Off} {
			t.Run(fmt.Sprintf("%s, TTL %v", name, ttl), func(t *testing.T) {
				d := newDatabase(t)
				s := textStore(t, d, "things")
				if _, err := s.Create(t.Context(), "a", "of the table"); err != nil {
					t.Fatal(err)
				}
				d.exec(t, `INSERT INTO things VALUES ('bad', '{"half')`)
				l, err := fetchonce.New(oncetest.Redis(t), fetchonce.Options[string]{Prefix: "test", Store: s, TTL: ttl})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				values, err := l.GetMany(t.Context(), []string{"a", "bad", "b"}, func(_ context.Context, keys []string) (map[string]string, error) {
					return map[string]string{"b": "fetched"}, nil
				})
				if want := map[string]string{"a": "of the table", "b": "fetched"}; !maps.Equal(values, want) {
					t.Errorf("GetMany = %v; want %v", values, want)
				}
				_ = failed(t, err, "bad")
			})
		}
	}
}

// A row for which Scan returns ErrNotFound is absent. Any other error is that of its key.
func TestLookupManyReturnsErrorsOfScan(t *testing.T) {
	mine := errors.New("mine")
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			d.exec(t, "CREATE TABLE things (key text PRIMARY KEY, name text)", "INSERT INTO things VALUES ('a', 'there'), ('b', 'gone'), ('c', 'bad')")
			s := newStore(t, d, oncesql.Options[string]{
				Table:   "things",
				Columns: []string{"name"},
				Values:  func(v string) []any { return []any{v} },
				Scan: func(_ string, scan func(dest ...any) error) (v string, err error) {
					if err := scan(&v); err != nil {
						return "", err
					}
					switch v {
					case "gone":
						return "", fmt.Errorf("deleted: %w", fetchonce.ErrNotFound)
					case "bad":
						return "", mine
					}
					return v, nil
				},
			})
			if found, err := s.LookupMany(t.Context(), []string{"a", "b"}); len(found) != 1 || found["a"] != "there" || err != nil {
				t.Errorf("LookupMany(a, b) = %v, %v; want a alone", found, err)
			}
			found, err := s.LookupMany(t.Context(), []string{"a", "b", "c"})
			if len(found) != 1 || found["a"] != "there" || failed(t, err, "c") != mine {
				t.Errorf("LookupMany(a, b, c) = %v, %v; want a, and the error of Scan for c", found, err)
			}
			if n := d.Stats().InUse; n != 0 {
				t.Errorf("%d connections in use, want 0", n)
			}
		})
	}
}

func TestLookupManyDistinguishesErrorsFromAbsence(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			d.exec(t, "CREATE TABLE things (key text, value text)", "CREATE UNIQUE INDEX one ON things ("+d.keyColumn()+")")
			s := newStore(t, d, oncesql.Options[string]{Table: "things"})
			if _, err := s.Lookup(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) { // the table is fit
				t.Fatal(err)
			}
			d.dropIndex(t, "one", "things")
			d.exec(t, `INSERT INTO things VALUES ('twice', '"1"'), ('twice', '"2"'), ('null', NULL), ('half', '"ha'), ('k', '"v"')`)
			for key, want := range map[string]string{
				"twice": `"twice" has several rows`,
				"null":  `the value of "null" is NULL`,
				"half":  `decode the value of "half"`,
			} {
				found, err := s.LookupMany(t.Context(), []string{"k", key})
				if len(found) != 1 || found["k"] != "v" || !strings.Contains(fmt.Sprint(failed(t, err, key)), want) {
					t.Errorf("LookupMany(k, %s) = %v, %v; want k, and an error that says %s", key, found, err, want)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if found, err := s.LookupMany(ctx, []string{"k"}); found != nil || !errors.Is(err, context.Canceled) {
				t.Errorf("LookupMany = %v, %v; want nothing, context.Canceled", found, err)
			}
			broken := errors.New("connection reset by peer")
			textStore(t, d, "others")
			cut := newStore(t, d.before(t, func(statement string) error {
				if strings.HasPrefix(statement, "SELECT") {
					return broken
				}
				return nil
			}), oncesql.Options[string]{Table: "others"})
			if found, err := cut.LookupMany(t.Context(), []string{"k"}); len(found) != 0 || failed(t, err, "k") != broken {
				t.Errorf("LookupMany = %v, %v; want nothing, and the driver's error unchanged", found, err)
			}
		})
	}
}
