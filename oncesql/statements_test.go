package oncesql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

// A recorder is a database that has only a unique index. It records each new statement.
type recorder struct{ statements *[]string }

func (r recorder) Driver() driver.Driver                        { return nil }
func (r recorder) Connect(context.Context) (driver.Conn, error) { return r, nil }
func (r recorder) Close() error                                 { return nil }
func (r recorder) Begin() (driver.Tx, error)                    { return nil, errors.New("no transactions") }

func (r recorder) Prepare(statement string) (driver.Stmt, error) { return recorded{r, statement}, nil }

// A recorded is a statement. It accepts any number of parameters.
type recorded struct {
	recorder
	text string
}

func (s recorded) NumInput() int { return -1 }

func (s recorded) Exec([]driver.Value) (driver.Result, error) {
	s.record()
	return driver.ResultNoRows, nil
}

func (s recorded) Query([]driver.Value) (driver.Rows, error) {
	s.record()
	switch {
	case strings.HasPrefix(s.text, "SHOW INDEX"):
		return &records{{"things", int64(0), "PRIMARY", int64(1), "key", nil, int64(0), nil}}, nil
	case strings.Contains(s.text, "pg_class"):
		return &records{{"r", "text", int64(-1), true, true}}, nil
	case strings.Contains(s.text, "information_schema"):
		return &records{{"varbinary", int64(3072), int64(3072), nil, "STRICT_TRANS_TABLES", true}}, nil
	case strings.Contains(s.text, "pragma_table_info"):
		return &records{{"text", "BINARY", false}}, nil
	}
	return &records{}, nil
}

func (s recorded) record() {
	if !slices.Contains(*s.statements, s.text) {
		*s.statements = append(*s.statements, s.text)
	}
}

// records are the rows of a statement.
type records [][]driver.Value

func (r *records) Columns() []string {
	if len(*r) > 0 {
		return make([]string, len((*r)[0]))
	}
	return make([]string, 2)
}
func (r *records) Close() error { return nil }

func (r *records) Next(dest []driver.Value) error {
	if len(*r) == 0 {
		return io.EOF
	}
	copy(dest, (*r)[0])
	*r = (*r)[1:]
	return nil
}

func TestStatementsAreAsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/database.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		dialect oncesql.Dialect
		heading string
	}{
		{oncesql.Postgres, "### PostgreSQL"},
		{oncesql.MySQL, "### MySQL and MariaDB"},
		{oncesql.SQLite, "### SQLite"},
	} {
		var sent []string
		db := sql.OpenDB(recorder{&sent})
		defer func() { _ = db.Close() }()
		store, err := oncesql.New(db, oncesql.Options[string]{Dialect: test.dialect, Table: "things"})
		if err != nil {
			t.Fatal(err)
		}
		if err := store.CreateTable(t.Context()); err != nil {
			t.Errorf("%v: CreateTable: %v", test.dialect, err)
		}
		if _, err := store.Lookup(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("%v: Lookup = %v, want ErrNotFound", test.dialect, err)
		}
		if _, err := store.LookupMany(t.Context(), []string{"a", "b", "c"}); err != nil {
			t.Errorf("%v: LookupMany: %v", test.dialect, err)
		}
		if _, err := store.Create(t.Context(), "k", "v"); err == nil {
			t.Errorf("%v: Create found what it inserted", test.dialect)
		}
		if want := documented(t, string(page), test.heading); !slices.Equal(sent, want) {
			t.Errorf("%v sent\n\t%s\nand docs/database.md has\n\t%s", test.dialect, strings.Join(sent, "\n\t"), strings.Join(want, "\n\t"))
		}
	}
}

// documented returns the statements under a heading, without semicolons.
func documented(t *testing.T, page, heading string) (statements []string) {
	t.Helper()
	_, section, ok := strings.Cut(page, "\n"+heading+"\n")
	_, section, hasBlock := strings.Cut(section, "```sql\n")
	block, _, hasEnd := strings.Cut(section, "```")
	if !ok || !hasBlock || !hasEnd {
		t.Fatalf("docs/database.md has no statements under %q", heading)
	}
	for line := range strings.Lines(block) {
		if !strings.HasPrefix(line, "--") {
			statements = append(statements, strings.TrimSuffix(strings.TrimSpace(line), ";"))
		}
	}
	return statements
}
