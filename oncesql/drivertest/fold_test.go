package drivertest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

// The column compares two keys as equal. Neither key gets the other's value. If the type or
// the collation of the column shows it, the Store looks nothing up.
func TestRowOfAnotherKeyIsAnError(t *testing.T) {
	for name, test := range map[string]struct {
		newDatabase func(t *testing.T) database
		keyType     string
		row, asked  string
		want        string
	}{
		"PostgreSQL, number": {databases["Postgres"], "int", "7", "007", "compares different keys as equal"},
		"PostgreSQL, uuid":   {databases["Postgres"], "uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "compares different keys as equal"},
		"PostgreSQL, char":   {databases["Postgres"], "char(5)", "bob", "bob ", "compares different keys as equal"},
		"PostgreSQL, name":   {databases["Postgres"], "name", "bob", "bob ", "compares different keys as equal"},
		"PostgreSQL, cut":    {databases["Postgres"], "varchar(3)", "bob", "bob ", "longer than its column"},
		"MariaDB, case":      {databases["MariaDB"], "varchar(20)", "bob", "Bob", "compares different keys as equal"},
		"MariaDB, accent":    {databases["MariaDB"], "varchar(20) COLLATE utf8mb4_general_ci", "bob", "b\u00f6b", "compares different keys as equal"},
		"MariaDB, blank":     {databases["MariaDB"], "varchar(20) COLLATE utf8mb4_bin", "bob", "bob ", "has another key"},
		"MariaDB, number":    {databases["MariaDB"], "int", "1", "1 apple", "compares different keys as equal"},
		"MariaDB, long":      {databases["MariaDB"], "varbinary(3)", "bob", "boby", "longer than its column"},
		"SQLite, case":       {databases["SQLite"], "text COLLATE NOCASE", "bob", "Bob", "compares different keys as equal"},
		"SQLite, number":     {databases["SQLite"], "numeric", "7", "007", "compares different keys as equal"},
		"SQLite, integer":    {databases["SQLite"], "integer", "7", "007", "compares different keys as equal"},
	} {
		t.Run(name, func(t *testing.T) {
			d := test.newDatabase(t)
			d.exec(t, "CREATE TABLE things (id "+test.keyType+" NOT NULL PRIMARY KEY, value text)", "INSERT INTO things VALUES ('"+test.row+`', '"secret"')`)
			s := newStore(t, d, oncesql.Options[string]{Table: "things", Key: "id"})
			if v, err := s.Lookup(t.Context(), test.asked); v != "" || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Lookup(%q) = %q, %v; want an error that says %q", test.asked, v, err, test.want)
			}
			if v, err := s.Create(t.Context(), test.asked, "mine"); v != "" || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Create(%q) = %q, %v; want an error that says %q", test.asked, v, err, test.want)
			}
			found, err := s.LookupMany(t.Context(), []string{test.row, test.asked})
			if found[test.asked] != "" || !strings.Contains(fmt.Sprint(err), test.want) {
				t.Errorf("LookupMany = %v, %v; want an error that says %q", found, err, test.want)
			}
			if n := d.number(t, "SELECT count(*) FROM things"); n != 1 {
				t.Errorf("%d rows; want 1", n)
			}
		})
	}
}

// The column begins to compare two keys as equal after the check of the table, which
// holds for ten seconds. The key of the row says so meanwhile.
func TestRowOfAnotherKeyIsAnErrorBetweenChecks(t *testing.T) {
	for name, test := range map[string]struct {
		row, asked string
		change     []string
	}{
		"Postgres": {"7", "007", []string{"ALTER TABLE things ALTER COLUMN id TYPE int USING id::int"}},
		"MariaDB":  {"bob", "Bob", []string{"ALTER TABLE things MODIFY id varchar(20) COLLATE utf8mb4_general_ci"}},
		"SQLite": {"bob", "Bob", []string{
			"CREATE TABLE folding (id text COLLATE NOCASE PRIMARY KEY, value text)", "INSERT INTO folding SELECT * FROM things",
			"DROP TABLE things", "ALTER TABLE folding RENAME TO things",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d := databases[name](t)
			if d.dialect == oncesql.Postgres { // a statement that is prepared already wants a text
				d = newPostgres(t, "default_query_exec_mode=exec")
			}
			keyType := "text"
			if d.dialect == oncesql.MySQL {
				keyType = "varbinary(20)"
			}
			d.exec(t, "CREATE TABLE things (id "+keyType+" PRIMARY KEY, value text)", "INSERT INTO things VALUES ('"+test.row+`', '"secret"')`)
			s := newStore(t, d, oncesql.Options[string]{Table: "things", Key: "id"})
			if v, err := s.Lookup(t.Context(), test.row); v != "secret" || err != nil {
				t.Fatalf("Lookup(%q) = %q, %v; want secret", test.row, v, err)
			}
			d.exec(t, test.change...)
			if v, err := s.Lookup(t.Context(), test.asked); v != "" || !strings.Contains(fmt.Sprint(err), "has another key") {
				t.Errorf("Lookup(%q) = %q, %v; want that the row has another key", test.asked, v, err)
			}
			if v, err := s.Create(t.Context(), test.asked, "mine"); v != "" || !strings.Contains(fmt.Sprint(err), "has another key") {
				t.Errorf("Create(%q) = %q, %v; want that the row has another key", test.asked, v, err)
			}
			if found, err := s.LookupMany(t.Context(), []string{test.row, test.asked}); found[test.row] != "secret" || found[test.asked] != "" {
				t.Errorf("LookupMany = %v, %v; want the value of %q only", found, err, test.row)
			}
		})
	}
}

// The first Lookup refuses an unsuitable key column, before any fetch.
func TestTableIsCheckedBeforeTheFirstLookup(t *testing.T) {
	for name, test := range map[string]struct {
		newDatabase func(t *testing.T) database
		columns     string
		index       string // made after the table
		want        string // part of the error; empty if the table is suitable
	}{
		"PostgreSQL, none":     {databases["Postgres"], "id text", "", "no unique index"},
		"PostgreSQL, not it":   {databases["Postgres"], "id text", "CREATE INDEX i ON things (id)", "no unique index"},
		"PostgreSQL, partial":  {databases["Postgres"], "id text", "CREATE UNIQUE INDEX i ON things (id) WHERE id > 'a'", "no unique index"},
		"PostgreSQL, two":      {databases["Postgres"], "id text, tenant int, PRIMARY KEY (id, tenant)", "", "no unique index"},
		"PostgreSQL, deferred": {databases["Postgres"], "id text UNIQUE DEFERRABLE", "", "no unique index"},
		"PostgreSQL, include":  {databases["Postgres"], "id text", "CREATE UNIQUE INDEX i ON things (id) INCLUDE (value)", ""},
		"PostgreSQL, varchar":  {databases["Postgres"], "id varchar(20) UNIQUE", "", ""},
		"MariaDB, none":        {databases["MariaDB"], "id varbinary(20)", "", "no unique index"},
		"MariaDB, prefix":      {databases["MariaDB"], "id varbinary(20)", "CREATE UNIQUE INDEX i ON things (id(10))", "no unique index"},
		"MariaDB, blob":        {databases["MariaDB"], "id blob UNIQUE", "", ""},
		"SQLite, none":         {databases["SQLite"], "id text", "", "no unique index"},
		"SQLite, partial":      {databases["SQLite"], "id text", "CREATE UNIQUE INDEX i ON things (id) WHERE id > 'a'", "no unique index"},
		"SQLite, two":          {databases["SQLite"], "id text, tenant int, PRIMARY KEY (id, tenant)", "", "no unique index"},
		"SQLite, index":        {databases["SQLite"], "id text", "CREATE UNIQUE INDEX i ON things (id)", ""},
		"SQLite, any type":     {databases["SQLite"], "id UNIQUE", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := test.newDatabase(t)
			columns, constraint, _ := strings.Cut(test.columns, ", PRIMARY")
			if constraint != "" {
				constraint = ", PRIMARY" + constraint
			}
			d.exec(t, "CREATE TABLE things ("+columns+", value text"+constraint+")")
			if test.index != "" {
				d.exec(t, test.index)
			}
			s := newStore(t, d, oncesql.Options[string]{Table: "things", Key: "id"})
			v, err := s.Lookup(t.Context(), "k")
			if isFit := errors.Is(err, fetchonce.ErrNotFound); isFit != (test.want == "") || !isFit && !strings.Contains(err.Error(), test.want) {
				t.Errorf("Lookup = %q, %v; want an error that says %q, or ErrNotFound", v, err, test.want)
			}
			if test.want == "" {
				if v, err := s.Create(t.Context(), "k", "v"); v != "v" || err != nil {
					t.Errorf("Create = %q, %v; want v", v, err)
				}
			}
		})
	}
}

// A session in which MariaDB cuts values, or keeps no row, is refused.
func TestSessionsThatLoseDataAreRefused(t *testing.T) {
	for setting, want := range map[string]string{"sql_mode=%27%27": "STRICT_TRANS_TABLES", "autocommit=0": "autocommit"} {
		s := textStore(t, newMariaDB(t, setting), "things")
		if v, err := s.Lookup(t.Context(), "k"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %s: Lookup = %q, %v; want an error that says %s", setting, v, err, want)
		}
		if v, err := s.Create(t.Context(), "k", "v"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %s: Create = %q, %v; want an error that says %s", setting, v, err, want)
		}
	}
}
