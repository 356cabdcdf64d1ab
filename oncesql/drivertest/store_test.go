package drivertest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
	"github.com/fetchonce/fetchonce/oncetest"
)

func TestLookupOfAMissingKeyIsErrNotFound(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			s := f.store(t, d)
			if v, err := s.Lookup(t.Context(), "k"); v != (thing{}) || !errors.Is(err, fetchonce.ErrNotFound) {
				t.Errorf("Lookup(k) = %v, %v; want nothing, ErrNotFound", v, err)
			}
		})
	}
}

func TestCreatedValueIsFound(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			s := f.store(t, d)
			want := thing{"a \\ b \" c ' \x01 \u2028 é", 42}
			if v, err := s.Create(t.Context(), "k", want); v != want || err != nil {
				t.Errorf("Create(k) = %v, %v; want %v, nil", v, err, want)
			}
			if v, err := f.store(t, d.again(t)).Lookup(t.Context(), "k"); v != want || err != nil {
				t.Errorf("Lookup(k) = %v, %v; want %v, nil", v, err, want)
			}
			if v, err := s.Lookup(t.Context(), "K"); !errors.Is(err, fetchonce.ErrNotFound) {
				t.Errorf("Lookup(K) = %v, %v; want nothing, ErrNotFound", v, err)
			}
		})
	}
}

// The binary codec encodes it as no bytes, which is not NULL.
func TestZeroValueIsAValue(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			s := f.store(t, d)
			for range 2 {
				if v, err := s.Create(t.Context(), "k", thing{}); v != (thing{}) || err != nil {
					t.Errorf("Create(k) = %v, %v; want the zero thing, nil", v, err)
				}
			}
			if v, err := s.Lookup(t.Context(), "k"); v != (thing{}) || err != nil {
				t.Errorf("Lookup(k) = %v, %v; want the zero thing, nil", v, err)
			}
		})
	}
}

func TestSecondCreateKeepsTheFirst(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			s := f.store(t, d)
			first, second := thing{"first", 1}, thing{"second", 2}
			if _, err := s.Create(t.Context(), "k", first); err != nil {
				t.Fatal(err)
			}
			if v, err := s.Create(t.Context(), "k", second); v != first || err != nil {
				t.Errorf("second Create(k) = %v, %v; want %v, nil", v, err, first)
			}
			if v, err := s.Lookup(t.Context(), "k"); v != first || err != nil {
				t.Errorf("Lookup(k) = %v, %v; want %v, nil", v, err, first)
			}
		})
	}
}

// The columns cannot hold all digits of a time in nanoseconds and a float. The first creator
// receives the same value as every later caller.
func TestCreateReturnsTheValueOfTheRow(t *testing.T) {
	d := newPostgres(t)
	d.exec(t, "CREATE TABLE moments (key text PRIMARY KEY, at timestamptz)")
	s := newStore(t, d, oncesql.Options[time.Time]{
		Table:   "moments",
		Columns: []string{"at"},
		Values:  func(v time.Time) []any { return []any{v} },
		Scan: func(_ string, scan func(dest ...any) error) (v time.Time, err error) {
			err = scan(&v)
			return v, err
		},
	})
	sent := time.Date(2026, 1, 2, 3, 4, 5, 123_456_789, time.UTC)
	created, err := s.Create(t.Context(), "k", sent)
	if err != nil {
		t.Fatal(err)
	}
	found, err := s.Lookup(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if !created.Equal(found) || created.Equal(sent) {
		t.Errorf("Create(%v) = %v, and Lookup = %v; want them equal, and in microseconds", sent, created, found)
	}
}

// SQLite's driver converts a text to a time by the declared type of its column. It must know
// that type in the result of an insert as in that of a select.
func TestInsertAndSelectReturnTheDeclaredType(t *testing.T) {
	d := newSQLite(t)
	d.exec(t, "CREATE TABLE moments (key text PRIMARY KEY, at datetime, ok boolean, data blob)")
	type moment struct {
		At   time.Time
		OK   bool
		Data []byte
	}
	s := newStore(t, d, oncesql.Options[moment]{
		Table:   "moments",
		Columns: []string{"at", "ok", "data"},
		Values:  func(v moment) []any { return []any{v.At, v.OK, v.Data} },
		Scan: func(_ string, scan func(dest ...any) error) (v moment, err error) {
			err = scan(&v.At, &v.OK, &v.Data)
			return v, err
		},
	})
	sent := moment{time.Date(2026, 1, 2, 3, 4, 5, 6_000, time.UTC), true, []byte{0, 255}}
	created, err := s.Create(t.Context(), "k", sent)
	if err != nil || !reflect.DeepEqual(created, sent) {
		t.Errorf("Create = %v, %v; want %v", created, err, sent)
	}
	found, err := s.Lookup(t.Context(), "k")
	if err != nil || !reflect.DeepEqual(found, sent) {
		t.Errorf("Lookup = %v, %v; want %v", found, err, sent)
	}
}

// Every Store must pass this test.
func TestStorePassesTestStore(t *testing.T) {
	for name, newDatabase := range isolated {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			for range 2 { // the second time, in a table in use
				start := time.Now()
				if err := oncetest.TestStore(t.Context(), textStore(t, d, "things")); err != nil {
					t.Error(err)
				}
				t.Log(time.Since(start))
			}
			if err := oncetest.TestStore(t.Context(), slugStore(t, d)); err == nil {
				t.Error("a Store whose values must be unique passed")
			}
		})
	}
}

// A statement is prepared once on a connection that runs it many times.
func TestStatementIsPreparedOnce(t *testing.T) {
	const keys = 20
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			textStore(t, d, "things")
			prepared := make(map[string]int)
			d.DB = sql.OpenDB(connector{
				d:    d,
				hook: func(string) error { return nil },
				prepared: func(statement string) {
					if !strings.HasPrefix(statement, "/*") { // a check of the table
						prepared[statement]++
					}
				},
			})
			t.Cleanup(func() { _ = d.Close() })
			d.SetMaxOpenConns(1)
			s := newStore(t, d, oncesql.Options[string]{Table: "things"})
			for k := range keys {
				if _, err := s.Create(t.Context(), strconv.Itoa(k), "v"); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Lookup(t.Context(), strconv.Itoa(k)); err != nil {
					t.Fatal(err)
				}
			}
			if d.dialect == oncesql.Postgres { // pgx prepares by itself
				rows, err := d.Query(`SELECT statement FROM pg_prepared_statements WHERE statement LIKE '%"things" %' AND statement NOT LIKE '%pg_prepared%'`)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = rows.Close() }()
				for rows.Next() {
					var statement string
					if err := rows.Scan(&statement); err != nil {
						t.Fatal(err)
					}
					prepared[statement]++
				}
			}
			if len(prepared) != 2 {
				t.Errorf("prepared %v; want an INSERT and a SELECT", prepared)
			}
			for statement, n := range prepared {
				if n != 1 {
					t.Errorf("%s was prepared %d times, want once", statement, n)
				}
			}
		})
	}
}

func TestAnyTextIsAKey(t *testing.T) {
	keys := []string{
		"", " ", "  ", "k", "k ", "K", "é", "e\u0301", "日本", "\U0001F600", "a\nb", "a\tb", "%", "_", "?", "$1", "'", "''", `"`, "`", `\`, `\\`, `\'`,
		"'; DROP TABLE things; --", `"); DROP TABLE things; --`, "key", "NULL", "1", "01", "1.0", strings.Repeat("k", 2500),
	}
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			s := f.store(t, d)
			for i, key := range keys {
				if v, err := s.Lookup(t.Context(), key); !errors.Is(err, fetchonce.ErrNotFound) {
					t.Errorf("Lookup(%q) = %v, %v; want ErrNotFound", key, v, err)
				}
				if v, err := s.Create(t.Context(), key, thing{key, i}); v != (thing{key, i}) || err != nil {
					t.Errorf("Create(%q) = %v, %v; want it created", key, v, err)
				}
			}
			for i, key := range keys {
				if v, err := s.Lookup(t.Context(), key); v != (thing{key, i}) || err != nil {
					t.Errorf("Lookup(%q) = %v, %v; want its own value", key, v, err)
				}
			}
			if n := d.number(t, "SELECT count(*) FROM things"); n != len(keys) {
				t.Errorf("%d rows for %d keys", n, len(keys))
			}
		})
	}
}

func TestInvalidUTF8IsAKeyIfTheDatabaseAcceptsIt(t *testing.T) {
	keys := []string{"a\x00b", "a\x00c", "a", "\xff\xfe", "\xff\xfd"}
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := textStore(t, d, "things")
			for _, key := range keys {
				_, lookupErr := s.Lookup(t.Context(), key)
				v, createErr := s.Create(t.Context(), key, "value of "+fmt.Sprintf("%q", key))
				if d.dialect != oncesql.Postgres || key == "a" {
					if !errors.Is(lookupErr, fetchonce.ErrNotFound) || createErr != nil || v != fmt.Sprintf("value of %q", key) {
						t.Errorf("Lookup(%q) = %v, Create = %v, %v; want it created", key, lookupErr, v, createErr)
					}
					continue
				}
				for _, err := range []error{lookupErr, createErr} {
					if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "22021" {
						t.Errorf("with %q: %v; want character_not_in_repertoire", key, err)
					}
				}
			}
		})
	}
}

func TestNamesAreQuoted(t *testing.T) {
	names := []struct{ table, key, value string }{
		{`we"ird table`, "or der", "select"},
		{"we`ird table", "`", "``"},
		{`"`, `""`, "'"},
		{"[t]", "]", "["},
		{"Upper", "Key", "VALUE"},
		{"t; DROP TABLE safe; --", `k" = '' OR "k`, `v" FROM safe; --`},
		{"t\nt", "k\tk", `\`},
		{"テーブル", "ключ", "Wert ß"},
		{"$1", "?", "$2"},
	}
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			d.exec(t, "CREATE TABLE safe (k text)")
			for _, name := range names {
				s := newStore(t, d, oncesql.Options[string]{Table: name.table, Key: name.key, Value: name.value})
				if err := s.CreateTable(t.Context()); err != nil {
					t.Errorf("CreateTable of %q: %v", name, err)
					continue
				}
				if v, err := s.Create(t.Context(), "k", "v"); v != "v" || err != nil {
					t.Errorf("in %q: Create = %q, %v; want v", name, v, err)
				}
				if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil {
					t.Errorf("in %q: Lookup = %q, %v; want v", name, v, err)
				}
				if v, err := s.Lookup(t.Context(), ""); !errors.Is(err, fetchonce.ErrNotFound) {
					t.Errorf("in %q: Lookup of nothing = %q, %v; want ErrNotFound", name, v, err)
				}
				// The table's name is the very one that was given.
				catalog := "SELECT count(*) FROM pg_tables WHERE tablename = $1"
				switch d.dialect {
				case oncesql.MySQL:
					catalog = "SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?"
				case oncesql.SQLite:
					catalog = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?"
				}
				if d.number(t, catalog, name.table) != 1 {
					t.Errorf("there is no table named %q", name.table)
				}
			}
			d.number(t, "SELECT count(*) FROM safe")
		})
	}
}

func TestDotSeparatesASchema(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			var schema, query string
			switch d.dialect {
			case oncesql.Postgres:
				schema, query = `bil"ling`, `SELECT count(*) FROM "bil""ling".things`
				d.exec(t, `CREATE SCHEMA "bil""ling"`)
			case oncesql.MySQL:
				schema, query = "bil`ling", "SELECT count(*) FROM `bil``ling`.things"
				d.exec(t, "CREATE DATABASE `bil``ling`")
				defer d.exec(t, "DROP DATABASE `bil``ling`")
			case oncesql.SQLite:
				schema, query = "main", "SELECT count(*) FROM things"
			}
			s := textStore(t, d, schema+".things")
			if _, err := s.Create(t.Context(), "k", "v"); err != nil {
				t.Fatal(err)
			}
			if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil {
				t.Errorf("Lookup(k) = %q, %v; want v", v, err)
			}
			if n := d.number(t, query); n != 1 {
				t.Errorf("%d rows in the schema, want 1", n)
			}
			// A schema that is not there is not a table with a dot.
			nowhere := newStore(t, d, oncesql.Options[string]{Table: "nowhere.things"})
			if err := nowhere.CreateTable(t.Context()); err == nil {
				t.Error("CreateTable in a schema that does not exist succeeded")
			}
		})
	}
}

// In SQLite, a name in double quotes that no column has is a string: the first
// of these lookups would find nothing, and the second everything.
func TestMissingColumnOrTableIsNotNotFound(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			if _, err := textStore(t, d, "things").Create(t.Context(), "k", "v"); err != nil {
				t.Fatal(err)
			}
			for _, opt := range []oncesql.Options[string]{
				{Table: "things", Key: "id"},
				{Table: "things", Value: "data"},
				{Table: "nothings"},
			} {
				s := newStore(t, d, opt)
				for _, key := range []string{"k", "id"} {
					if v, err := s.Lookup(t.Context(), key); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
						t.Errorf("%+v: Lookup(%s) = %q, %v; want the database's error", opt, key, v, err)
					}
					if v, err := s.Create(t.Context(), key, "v"); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
						t.Errorf("%+v: Create(%s) = %q, %v; want the database's error", opt, key, v, err)
					}
				}
			}
		})
	}
}

func TestNoConnectionIsNotNotFound(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			closed := d.again(t)
			s := f.store(t, closed)
			if err := closed.Close(); err != nil {
				t.Fatal(err)
			}
			broken := errors.New("connection reset by peer")
			cut := f.store(t, d.before(t, func(string) error { return broken }))

			for _, s := range []*oncesql.Store[thing]{s, cut} {
				if v, err := s.Lookup(t.Context(), "k"); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
					t.Errorf("Lookup = %v, %v; want the connection's error", v, err)
				}
				if v, err := s.Create(t.Context(), "k", thing{}); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
					t.Errorf("Create = %v, %v; want the connection's error", v, err)
				}
			}
			if _, err := cut.Lookup(t.Context(), "k"); err != broken {
				t.Errorf("Lookup = %v; want the driver's error unchanged", err)
			}
		})
	}
}

func TestCanceledContextIsNotNotFound(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			s := f.store(t, d)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if v, err := s.Lookup(ctx, "k"); !errors.Is(err, context.Canceled) {
				t.Errorf("Lookup = %v, %v; want context.Canceled", v, err)
			}
			if v, err := s.Create(ctx, "k", thing{}); !errors.Is(err, context.Canceled) {
				t.Errorf("Create = %v, %v; want context.Canceled", v, err)
			}
			if n := d.number(t, "SELECT count(*) FROM things"); n != 0 {
				t.Errorf("%d rows, want 0", n)
			}
		})
	}
}

func TestNullIsNotNotFound(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			d.exec(t, "CREATE TABLE things (key text PRIMARY KEY, value text)", "INSERT INTO things VALUES ('k', NULL)")
			s := newStore(t, d, oncesql.Options[string]{Table: "things"})
			_, lookupErr := s.Lookup(t.Context(), "k")
			_, createErr := s.Create(t.Context(), "k", "v")
			for _, err := range []error{lookupErr, createErr} {
				if err == nil || errors.Is(err, fetchonce.ErrNotFound) || !strings.Contains(err.Error(), `the value of "k" is NULL`) {
					t.Errorf("with NULL: %v; want an error that says so", err)
				}
			}
		})
	}
}

func TestValueThatCannotBeDecodedIsAnError(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := textStore(t, d, "things")
			d.exec(t, `INSERT INTO things VALUES ('k', '"half')`)
			_, lookupErr := s.Lookup(t.Context(), "k")
			_, createErr := s.Create(t.Context(), "k", "v")
			for _, err := range []error{lookupErr, createErr} {
				if err == nil || errors.Is(err, fetchonce.ErrNotFound) || !strings.Contains(err.Error(), `decode the value of "k"`) {
					t.Errorf("with half a value: %v; want an error that says so", err)
				}
			}
		})
	}
}

func TestValueThatCannotBeEncodedIsNotCreated(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			textStore(t, d, "things")
			s := newStore(t, d, oncesql.Options[float64]{Table: "things"})
			if _, err := s.Create(t.Context(), "k", math.NaN()); err == nil || !strings.Contains(err.Error(), `encode the value of "k"`) {
				t.Errorf("Create of a value that JSON has no text for = %v; want an error that says so", err)
			}
			if n := d.number(t, "SELECT count(*) FROM things"); n != 0 {
				t.Errorf("%d rows, want 0", n)
			}
		})
	}
}

func TestWrongNumberOfValuesIsRefusedBeforeTheInsert(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := newStore(t, d.before(t, func(statement string) error {
				t.Errorf("sent %s", statement)
				return nil
			}), oncesql.Options[string]{
				Table:   "things",
				Columns: []string{"a", "b"},
				Values:  func(v string) []any { return []any{v} },
				Scan:    func(string, func(dest ...any) error) (string, error) { return "", nil },
			})
			const want = `oncesql: create "k": Values returned 1 values for 2 Columns`
			if _, err := s.Create(t.Context(), "k", "v"); err == nil || err.Error() != want {
				t.Errorf("Create = %v; want %s", err, want)
			}
		})
	}
}

func TestErrorOfScanIsReturnedUnchanged(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			d.exec(t, "CREATE TABLE things (key text PRIMARY KEY, name text)", "INSERT INTO things VALUES ('k', 'v')")
			for _, want := range []error{errors.New("mine"), fetchonce.ErrNotFound} {
				s := newStore(t, d, oncesql.Options[string]{
					Table:   "things",
					Columns: []string{"name"},
					Values:  func(v string) []any { return []any{v} },
					Scan: func(_ string, scan func(dest ...any) error) (v string, err error) {
						if err := scan(&v); err != nil {
							return "", err
						}
						return v, want
					},
				})
				if v, err := s.Lookup(t.Context(), "k"); v != "" || err != want {
					t.Errorf("Lookup = %q, %v; want nothing, %v", v, err, want)
				}
				if v, err := s.Create(t.Context(), "k", "w"); v != "" || err != want {
					t.Errorf("Create = %q, %v; want nothing, %v", v, err, want)
				}
			}
		})
	}
}

// With FoldKeys, two keys have one row. Scan receives the key of the call, and not the row's.
func TestScanReceivesTheRequestedKey(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			keyType := map[oncesql.Dialect]string{oncesql.Postgres: "int", oncesql.MySQL: "varchar(20)", oncesql.SQLite: "text COLLATE NOCASE"}[d.dialect]
			row, asked := "Bob", "bob"
			if d.dialect == oncesql.Postgres {
				row, asked = "7", "007"
			}
			d.exec(t, "CREATE TABLE things (id "+keyType+" NOT NULL PRIMARY KEY, name text)", "INSERT INTO things VALUES ('"+row+"', 'v')")
			s := newStore(t, d, oncesql.Options[string]{
				Table: "things", Key: "id", FoldKeys: true,
				Columns: []string{"name"},
				Values:  func(v string) []any { return []any{v} },
				Scan: func(key string, scan func(dest ...any) error) (v string, err error) {
					err = scan(&v)
					return key + " has " + v, err
				},
			})
			for _, key := range []string{row, asked} {
				want := key + " has v"
				if v, err := s.Lookup(t.Context(), key); v != want || err != nil {
					t.Errorf("Lookup(%s) = %q, %v; want %q", key, v, err, want)
				}
				if v, err := s.Create(t.Context(), key, "w"); v != want || err != nil {
					t.Errorf("Create(%s) = %q, %v; want %q", key, v, err, want)
				}
				if found, err := s.LookupMany(t.Context(), []string{key, "8"}); found[key] != want || len(found) != 1 || err != nil {
					t.Errorf("LookupMany(%s) = %v, %v; want %q", key, found, err, want)
				}
			}
		})
	}
}

func TestScanThatPanicsLeavesNoConnectionBusy(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			d.exec(t, "CREATE TABLE things (key text PRIMARY KEY, name text)", "INSERT INTO things VALUES ('k', 'v')")
			s := newStore(t, d, oncesql.Options[string]{
				Table:   "things",
				Columns: []string{"name"},
				Values:  func(v string) []any { return []any{v} },
				Scan:    func(string, func(dest ...any) error) (string, error) { panic("no") },
			})
			func() {
				defer func() { _ = recover() }()
				_, _ = s.Lookup(t.Context(), "k")
			}()
			if n := d.Stats().InUse; n != 0 {
				t.Errorf("%d connections in use, want 0", n)
			}
		})
	}
}

func TestOtherUniqueConstraintIsTheDriversError(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := slugStore(t, d)
			if _, err := s.Create(t.Context(), "k", "slug"); err != nil {
				t.Fatal(err)
			}
			v, err := s.Create(t.Context(), "other", "slug")
			if v != "" || !isDriversUniqueViolation(err) || !strings.Contains(err.Error(), "slug") {
				t.Errorf("Create(other, slug) = %q, %v; want nothing, and the driver's unique violation unchanged, which names the column", v, err)
			}
			if _, err := s.Lookup(t.Context(), "other"); !errors.Is(err, fetchonce.ErrNotFound) {
				t.Errorf("Lookup(other) = %v; want ErrNotFound", err)
			}
			// A row that is the same in both columns is the key's own.
			if v, err := s.Create(t.Context(), "k", "slug"); v != "slug" || err != nil {
				t.Errorf("Create(k, slug) again = %q, %v; want slug, nil", v, err)
			}
		})
	}
}

// isDriversUniqueViolation reports whether err is a unique violation as the
// driver returned it, not wrapped.
func isDriversUniqueViolation(err error) bool {
	switch e := err.(type) { //nolint:errorlint // unchanged
	case *pgconn.PgError:
		return e.Code == "23505"
	case *mysql.MySQLError:
		return e.Number == 1062
	case *sqlite.Error:
		return e.Code() == 2067 // SQLITE_CONSTRAINT_UNIQUE
	}
	return false
}

// slugStore returns a Store of the slug in a table where that is unique too.
func slugStore(t *testing.T, d database) *oncesql.Store[string] {
	t.Helper()
	d.exec(t, "CREATE TABLE pages (slug text NOT NULL UNIQUE, key text NOT NULL PRIMARY KEY)")
	return slugs(t, d)
}

func slugs(t *testing.T, d database) *oncesql.Store[string] {
	t.Helper()
	return newStore(t, d, oncesql.Options[string]{
		Table:   "pages",
		Columns: []string{"slug"},
		Values:  func(v string) []any { return []any{v} },
		Scan: func(_ string, scan func(dest ...any) error) (v string, err error) {
			err = scan(&v)
			return v, err
		},
	})
}

func TestKeyThatIsNotUniqueIsAnError(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			d.exec(t, "CREATE TABLE things (key text, value text)", "CREATE UNIQUE INDEX one ON things ("+d.keyColumn()+")")
			s := newStore(t, d, oncesql.Options[string]{Table: "things"})
			if _, err := s.Lookup(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) { // the table is fit
				t.Fatal(err)
			}
			d.dropIndex(t, "one", "things")
			d.exec(t, `INSERT INTO things VALUES ('k', '"1"'), ('k', '"2"')`)
			if v, err := s.Lookup(t.Context(), "k"); err == nil || !strings.Contains(err.Error(), "several rows") {
				t.Errorf("Lookup(k) = %q, %v; want an error that says there are several rows", v, err)
			}
			s = newStore(t, d, oncesql.Options[string]{Table: "things"})
			if v, err := s.Create(t.Context(), "new", "v"); err == nil {
				t.Errorf("Create(new) = %q, nil; want an error", v)
			}
			if n := d.number(t, "SELECT count(*) FROM things"); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
		})
	}
}

// The row arrives before the commit, and the commit may fail.
func TestFailedCommitIsAnError(t *testing.T) {
	t.Run("Postgres", func(t *testing.T) {
		d := newPostgres(t)
		s := textStore(t, d, "things")
		d.exec(t,
			"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$",
			"CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON things DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()")
		if v, err := s.Create(t.Context(), "k", "v"); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("Create = %q, %v; want the error of the commit", v, err)
		}
		if n := d.number(t, "SELECT count(*) FROM things"); n != 0 {
			t.Errorf("%d rows, want 0", n)
		}
	})
	t.Run("SQLite", func(t *testing.T) {
		// Without a write-ahead log, a reader lets others insert but not commit.
		d := open(t, oncesql.SQLite, "sqlite", "file:"+t.TempDir()+"/test.db?_pragma=journal_mode(delete)")
		s := textStore(t, d, "things")
		if _, err := s.Create(t.Context(), "old", "v"); err != nil {
			t.Fatal(err)
		}
		reader, err := d.again(t).Query("SELECT key FROM things UNION ALL SELECT key FROM things")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = reader.Close() }()
		if !reader.Next() {
			t.Fatal(reader.Err())
		}
		if v, err := s.Create(t.Context(), "k", "v"); err == nil {
			t.Errorf("Create = %q, nil; want the error of the commit", v)
		}
		if err := reader.Close(); err != nil {
			t.Fatal(err)
		}
		if n := d.number(t, "SELECT count(*) FROM things WHERE key = 'k'"); n != 0 {
			t.Errorf("%d rows, want 0", n)
		}
		if v, err := s.Create(t.Context(), "k", "v"); v != "v" || err != nil {
			t.Errorf("Create after the reader left = %q, %v; want v", v, err)
		}
	})
}
