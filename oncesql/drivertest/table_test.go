package drivertest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

func TestCreateTableDoesNotChangeAnExistingTable(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := textStore(t, d, "things")
			if _, err := s.Create(t.Context(), "k", "v"); err != nil {
				t.Fatal(err)
			}
			if err := s.CreateTable(t.Context()); err != nil {
				t.Errorf("second CreateTable: %v", err)
			}
			if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil {
				t.Errorf("Lookup after it = %q, %v; want v", v, err)
			}
		})
	}
}

// In PostgreSQL, IF NOT EXISTS alone is not enough.
func TestCreateTableMayBeCalledByManyAtOnce(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			for i := range 20 {
				s := newStore(t, d, oncesql.Options[string]{Table: fmt.Sprintf("things %d", i)})
				if _, err := together(8, func(int) (struct{}, error) {
					return struct{}{}, s.CreateTable(t.Context())
				}); err != nil {
					t.Fatal(err)
				}
				if v, err := s.Create(t.Context(), "k", "v"); v != "v" || err != nil {
					t.Fatalf("Create = %q, %v; want v", v, err)
				}
			}
		})
	}
}

func TestCreateTableDoesNotKnowColumns(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			err := slugStore(t, d).CreateTable(t.Context())
			if err == nil || !strings.Contains(err.Error(), "Columns") {
				t.Errorf("CreateTable = %v; want an error about Columns", err)
			}
		})
	}
}

func TestCreatedTableRefusesNull(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			textStore(t, d, "things")
			for _, row := range []string{`(NULL, '"v"')`, `('k', NULL)`} {
				if _, err := d.Exec("INSERT INTO things VALUES " + row); err == nil {
					t.Errorf("the table took %s", row)
				}
			}
		})
	}
}

func TestJSONIsStoredAsText(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := newStore(t, d, oncesql.Options[thing]{Table: "things"})
			if err := s.CreateTable(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Create(t.Context(), "k", thing{`a "b" \ c`, 1}); err != nil {
				t.Fatal(err)
			}
			query := "SELECT value::json->>'Name' || ' ' || value FROM things"
			switch d.dialect {
			case oncesql.MySQL:
				query = "SELECT CONCAT(JSON_VALUE(value, '$.Name'), ' ', value) FROM things"
			case oncesql.SQLite:
				query = "SELECT value->>'Name' || ' ' || value FROM things"
			}
			var got string
			if err := d.QueryRow(query).Scan(&got); err != nil {
				t.Fatal(err)
			}
			if want := `a "b" \ c {"Name":"a \"b\" \\ c","Size":1}`; got != want {
				t.Errorf("the row reads %s; want %s", got, want)
			}
		})
	}
}

// How a driver sends a parameter depends on its mode, and a connection pooler may require a
// mode.
func TestValuesSurviveEachModeOfTheDriver(t *testing.T) {
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			d := newPostgres(t, "default_query_exec_mode="+mode)
			for _, f := range forms {
				s := f.store(t, f.prepare(t, d))
				want := thing{`a \ b \\ c \" d ' e \x41 \101`, 1}
				for range 2 {
					if v, err := s.Create(t.Context(), `k\'"`, want); v != want || err != nil {
						t.Errorf("%s: Create = %v, %v; want %v", f.name, v, err, want)
					}
				}
				if v, err := s.Lookup(t.Context(), `k\'"`); v != want || err != nil {
					t.Errorf("%s: Lookup = %v, %v; want %v", f.name, v, err, want)
				}
			}
		})
	}
}

func TestJSONFitsEachTypeOfText(t *testing.T) {
	d := newPostgres(t)
	want := `a \ b \\ c \" d ' e \x41 \101`
	for _, typ := range []string{"text", "varchar", "varchar(100)", "json", "jsonb"} {
		d.exec(t, `CREATE TABLE "`+typ+`" (key text PRIMARY KEY, value `+typ+")")
		s := newStore(t, d, oncesql.Options[string]{Table: typ})
		for range 2 {
			if v, err := s.Create(t.Context(), "k", want); v != want || err != nil {
				t.Errorf("in %s: Create = %v, %v; want %v", typ, v, err, want)
			}
		}
		if v, err := s.Lookup(t.Context(), "k"); v != want || err != nil {
			t.Errorf("in %s: Lookup = %v, %v; want %v", typ, v, err, want)
		}
	}
}

// Sent as text, the value would lose its backslashes.
func TestJSONInAColumnOfBytesIsRefused(t *testing.T) {
	d := newPostgres(t)
	d.exec(t, "CREATE TABLE things (key text PRIMARY KEY, value bytea)")
	s := newStore(t, d, oncesql.Options[string]{Table: "things"})
	v, err := s.Create(t.Context(), "k", `a\b`)
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "42804" {
		t.Errorf("Create = %q, %v; want datatype_mismatch", v, err)
	}
	if _, err := s.Lookup(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
		t.Errorf("Lookup = %v; want ErrNotFound", err)
	}
}

// The index is dropped after the first check. Calls fail from the next check, ten seconds
// later, until there is a new index.
func TestDroppedIndexIsFoundAfterTenSeconds(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			outside := newDatabase(t)
			synctest.Test(t, func(t *testing.T) {
				d := outside.again(t)
				d.exec(t, "CREATE TABLE things (key text NOT NULL, value text)", "CREATE UNIQUE INDEX i ON things ("+d.keyColumn()+")")
				s := newStore(t, d, oncesql.Options[string]{Table: "things"})
				if v, err := s.Create(t.Context(), "k", "v"); v != "v" || err != nil {
					t.Fatalf("Create = %q, %v; want v", v, err)
				}
				d.dropIndex(t, "i", "things")
				time.Sleep(10*time.Second - time.Millisecond)
				if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil {
					t.Errorf("Lookup before the check = %q, %v; want v", v, err)
				}
				time.Sleep(time.Millisecond)
				for range 2 {
					_, lookupErr := s.Lookup(t.Context(), "k")
					_, createErr := s.Create(t.Context(), "l", "v")
					_, manyErr := s.LookupMany(t.Context(), []string{"k", "l"})
					for _, err := range []error{lookupErr, createErr, manyErr} {
						if err == nil || !strings.Contains(err.Error(), "no unique index") {
							t.Errorf("after ten seconds: %v; want that there is no unique index", err)
						}
					}
				}
				if n := d.number(t, "SELECT count(*) FROM things"); n != 1 {
					t.Errorf("%d rows; want 1", n)
				}
				d.exec(t, "CREATE UNIQUE INDEX i ON things ("+d.keyColumn()+")")
				if v, err := s.Create(t.Context(), "l", "v"); v != "v" || err != nil {
					t.Errorf("Create with a new index = %q, %v; want v", v, err)
				}
			})
		})
	}
}
