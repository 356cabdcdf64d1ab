package drivertest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/oncesql"
)

// Two keys that the column takes for equal: neither gets the other's value.
func TestRowOfAnotherKeyIsAnError(t *testing.T) {
	for name, test := range map[string]struct {
		newDatabase func(t *testing.T) database
		keyType     string
		row, asked  string
	}{
		"PostgreSQL, number": {databases["Postgres"], "int", "7", "007"},
		"PostgreSQL, uuid":   {databases["Postgres"], "uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"},
		"MariaDB, case":      {databases["MariaDB"], "varchar(20)", "bob", "Bob"},
		"MariaDB, accent":    {databases["MariaDB"], "varchar(20) COLLATE utf8mb4_general_ci", "bob", "b\u00f6b"},
		"MariaDB, blank":     {databases["MariaDB"], "varchar(20) COLLATE utf8mb4_bin", "bob", "bob "},
		"MariaDB, number":    {databases["MariaDB"], "int", "1", "1 apple"},
		"SQLite, case":       {databases["SQLite"], "text COLLATE NOCASE", "bob", "Bob"},
		"SQLite, number":     {databases["SQLite"], "numeric", "7", "007"},
	} {
		t.Run(name, func(t *testing.T) {
			d := test.newDatabase(t)
			d.exec(t, "CREATE TABLE things (id "+test.keyType+" NOT NULL PRIMARY KEY, value text)")
			s := newStore(t, d, oncesql.Options[string]{Table: "things", Key: "id"})
			if v, err := s.Create(t.Context(), test.row, "secret"); v != "secret" || err != nil {
				t.Fatalf("Create = %q, %v; want nil", v, err)
			}
			const want = "has another key"
			if v, err := s.Lookup(t.Context(), test.asked); v != "" || err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Lookup(%q) = %q, %v; want an error that says %q", test.asked, v, err, want)
			}
			if v, err := s.Create(t.Context(), test.asked, "mine"); v != "" || err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Create(%q) = %q, %v; want an error that says %q", test.asked, v, err, want)
			}
			found, err := s.LookupMany(t.Context(), []string{test.asked})
			if len(found) != 0 || !strings.Contains(fmt.Sprint(failed(t, err, test.asked)), want) {
				t.Errorf("LookupMany = %v, %v; want an error that says %q", found, err, want)
			}
			found, err = s.LookupMany(t.Context(), []string{test.row, test.asked})
			if len(found) != 1 || found[test.row] != "secret" {
				t.Errorf("LookupMany = %v, %v; want the value of %q alone", found, err, test.row)
			}
			if strings.EqualFold(test.row, strings.TrimRight(test.asked, " ")) {
				_ = failed(t, err, test.asked)
			}
		})
	}
}

// The column of PostgreSQL cuts blanks: the row that is kept has another key.
func TestKeyThatIsCutIsAnError(t *testing.T) {
	d := newPostgres(t)
	d.exec(t, "CREATE TABLE things (key varchar(3) PRIMARY KEY, value text)")
	s := newStore(t, d, oncesql.Options[string]{Table: "things"})
	if v, err := s.Create(t.Context(), "abc ", "v"); v != "" || err == nil {
		t.Errorf("Create = %q, %v; want an error", v, err)
	}
}
