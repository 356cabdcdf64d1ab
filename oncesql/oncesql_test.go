package oncesql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

// Tests that need a database are in drivertest.

var _ fetchonce.Store[string] = (*oncesql.Store[string])(nil)

// untouched is a database that must not be used.
type untouched struct{ t *testing.T }

func (u untouched) Driver() driver.Driver { return nil }

func (u untouched) Connect(context.Context) (driver.Conn, error) {
	u.t.Error("the database was asked")
	return nil, driver.ErrBadConn
}

type codec struct{}

func (codec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (codec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

func values(v string) []any { return []any{v} }

func scan(_ string, scan func(dest ...any) error) (v string, err error) {
	err = scan(&v)
	return v, err
}

func TestNewNamesTheInvalidField(t *testing.T) {
	type options = oncesql.Options[string]
	long := strings.Repeat("x", 64)
	columns := func(names ...string) options {
		return options{Dialect: oncesql.Postgres, Table: "t", Columns: names, Values: values, Scan: scan}
	}
	with := func(opt options, change func(opt *options)) options {
		change(&opt)
		return opt
	}
	for _, test := range []struct {
		opt  options
		want string // after "oncesql: new: Options."
	}{
		{options{Table: "t"}, "Dialect is Dialect(0): it must be Postgres, MySQL or SQLite"},
		{options{Dialect: 99, Table: "t"}, "Dialect is Dialect(99): it must be Postgres, MySQL or SQLite"},
		{options{Dialect: oncesql.Postgres}, "Table is empty"},
		{options{Dialect: oncesql.Postgres, Table: "a.b.c"}, `Table "a.b.c" has more than one dot: it must be a table, or a schema and a table`},
		{options{Dialect: oncesql.Postgres, Table: ".t"}, `Table ".t" has nothing on one side of its dot`},
		{options{Dialect: oncesql.Postgres, Table: "s."}, `Table "s." has nothing on one side of its dot`},
		{options{Dialect: oncesql.Postgres, Table: "t\x00"}, `Table: "t\x00" has a NUL byte`},
		{options{Dialect: oncesql.SQLite, Table: "s.t\x00"}, `Table: "t\x00" has a NUL byte`},
		{options{Dialect: oncesql.SQLite, Table: "t\xff"}, `Table: "t\xff" is not valid UTF-8`},
		{options{Dialect: oncesql.Postgres, Table: "s." + long}, `Table: "` + long + `" is longer than 63 bytes, and would be cut there`},
		{options{Dialect: oncesql.Postgres, Table: "t", Key: "k\x00"}, `Key: "k\x00" has a NUL byte`},
		{options{Dialect: oncesql.Postgres, Table: "t", Key: long}, `Key: "` + long + `" is longer than 63 bytes, and would be cut there`},
		{options{Dialect: oncesql.MySQL, Table: "t", Key: strings.Repeat("é", 65)}, `Key: "` + strings.Repeat("é", 65) + `" is longer than 64 characters`},
		{options{Dialect: oncesql.MySQL, Table: "t", Value: "KEY"}, `Value: "KEY" is the Key`},
		{options{Dialect: oncesql.Postgres, Table: "t", Value: "v\x00"}, `Value: "v\x00" has a NUL byte`},
		{options{Dialect: oncesql.Postgres, Table: "t", Value: "key"}, `Value: "key" is the Key`},
		{options{Dialect: oncesql.Postgres, Table: "t", Key: "value"}, `Value: "value" is the Key`},
		{options{Dialect: oncesql.SQLite, Table: "t", Value: "KEY"}, `Value: "KEY" is the Key`},
		{options{Dialect: oncesql.Postgres, Table: "t", Values: values}, "Values is set, but Columns are not"},
		{options{Dialect: oncesql.Postgres, Table: "t", Scan: scan}, "Scan is set, but Columns are not"},
		{with(columns("a"), func(opt *options) { opt.Value = "value" }), "Value is set, and Columns are: a value is in one column or in several"},
		{with(columns("a"), func(opt *options) { opt.Codec = codec{} }), "Codec is set, and Columns are: it encodes the one column Value"},
		{with(columns("a"), func(opt *options) { opt.Values = nil }), "Values is nil: it must say how to write Columns"},
		{with(columns("a"), func(opt *options) { opt.Scan = nil }), "Scan is nil: it must say how to read Columns"},
		{columns("a", ""), "Columns: a name is empty"},
		{columns("a\x00"), `Columns: "a\x00" has a NUL byte`},
		{columns("a", "b", "a"), `Columns: "a" stands there twice`},
		{columns("a", "key"), `Columns: "key" is the Key, which is written for you`},
		{with(columns("a", "A"), func(opt *options) { opt.Dialect = oncesql.SQLite }), `Columns: "A" stands there twice`},
	} {
		s, err := oncesql.New(sql.OpenDB(untouched{t}), test.opt)
		if s != nil || err == nil || err.Error() != "oncesql: new: Options."+test.want {
			t.Errorf("New(%+v) = %v, %v; want nil, oncesql: new: Options.%s", test.opt, s, err, test.want)
		}
	}

	if s, err := oncesql.New(nil, options{Dialect: oncesql.Postgres, Table: "t"}); s != nil || err == nil || err.Error() != "oncesql: new: db is nil" {
		t.Errorf("New(nil) = %v, %v; want an error that says so", s, err)
	}
}

func TestNewAcceptsNamesThatCanBeQuoted(t *testing.T) {
	for _, opt := range []oncesql.Options[string]{
		{Dialect: oncesql.Postgres, Table: `we"ird table`, Key: "or der", Value: "'; --"},
		{Dialect: oncesql.Postgres, Table: strings.Repeat("s", 63) + "." + strings.Repeat("t", 63)},
		{Dialect: oncesql.Postgres, Table: "t", Key: "Key", Value: "key"}, // two columns, where case counts
		{Dialect: oncesql.MySQL, Table: "we`ird table", Key: strings.Repeat("é", 64)},
		{Dialect: oncesql.SQLite, Table: strings.Repeat("t", 1000), Codec: codec{}},
		{Dialect: oncesql.SQLite, Table: "main.t", Columns: []string{"value", "a.b"}, Values: values, Scan: scan},
	} {
		if s, err := oncesql.New(sql.OpenDB(untouched{t}), opt); s == nil || err != nil {
			t.Errorf("New(%+v) = %v, %v; want a Store", opt, s, err)
		}
	}
}

func TestDialectsHaveNames(t *testing.T) {
	for d, want := range map[oncesql.Dialect]string{oncesql.Postgres: "Postgres", oncesql.MySQL: "MySQL", oncesql.SQLite: "SQLite", 0: "Dialect(0)", -1: "Dialect(-1)"} {
		if got := d.String(); got != want {
			t.Errorf("Dialect %d is %q, want %q", int(d), got, want)
		}
	}
}

// Errors like those of MySQL drivers, and others.
type (
	numberError struct { // as in github.com/go-sql-driver/mysql
		Number   uint16
		SQLState [5]byte
	}
	codeError struct { // as in github.com/go-mysql-org/go-mysql
		Code  uint16
		State string
	}
	embeddingError struct{ *numberError }
	textCodeError  struct{ Code string }
	wideError      struct{ Number int }
	hiddenError    struct{ number uint16 }
	textError      string
)

func (*numberError) Error() string  { return "numberError" }
func (codeError) Error() string     { return "codeError" }
func (textCodeError) Error() string { return "text" }
func (wideError) Error() string     { return "wide" }
func (hiddenError) Error() string   { return "hiddenError" }
func (textError) Error() string     { return "Error 1062: text" }

func TestNumberOfAnErrorIsFound(t *testing.T) {
	number := &numberError{Number: 1213}
	for _, test := range []struct {
		err  error
		want uint16
	}{
		{nil, 0},
		{number, 1213},
		{codeError{Code: 1062}, 1062},
		{fmt.Errorf("traced: %w", number), 1213},
		{fmt.Errorf("traced: %w", fmt.Errorf("again: %w", codeError{Code: 1205})), 1205},
		{errors.Join(errors.New("first"), number), 1213},
		{fmt.Errorf("%w, %w", context.Canceled, number), 1213},
		{errors.Join(errors.New("first"), errors.New("second")), 0},
		{(*numberError)(nil), 0},
		{embeddingError{}, 0},
		{textCodeError{"1062"}, 0},
		{wideError{1062}, 0},
		{hiddenError{1062}, 0},
		{textError("Number"), 0},
		{context.Canceled, 0},
	} {
		if got := oncesql.ErrorNumber(test.err); got != test.want {
			t.Errorf("the number of %T is %d, want %d", test.err, got, test.want)
		}
	}
}

// Errors like those of SQLite drivers.
type (
	methodCodeError struct{ code int } // as in modernc.org/sqlite
	fieldCodeError  struct {           // as in github.com/mattn/go-sqlite3
		Code         resultCode
		ExtendedCode int
	}
	resultCode int
)

func (*methodCodeError) Error() string { return "methodCodeError" }
func (e *methodCodeError) Code() int   { return e.code }
func (fieldCodeError) Error() string   { return "fieldCodeError" }

func TestResultCodeOfAnErrorIsFound(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{&methodCodeError{5}, 5},
		{&methodCodeError{517}, 5}, // SQLITE_BUSY_SNAPSHOT
		{fieldCodeError{Code: 6}, 6},
		{fmt.Errorf("traced: %w", &methodCodeError{5}), 5},
		{fmt.Errorf("traced: %w", fieldCodeError{Code: 5}), 5},
		{codeError{Code: 5}, 0},
		{wideError{5}, 0},
		{textCodeError{"5"}, 0},
		{context.Canceled, 0},
	} {
		if got := oncesql.SQLiteCode(test.err); got != test.want {
			t.Errorf("the result code of %T is %d, want %d", test.err, got, test.want)
		}
	}
}

// A value that the codec cannot read back is not inserted, because no Create could replace
// the row.
func TestCreateRefusesAValueThatTheCodecCannotRead(t *testing.T) {
	type described struct{ By fmt.Stringer }
	s, err := oncesql.New(sql.OpenDB(untouched{t}), oncesql.Options[described]{Dialect: oncesql.Postgres, Table: "t"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Create(t.Context(), "k", described{By: oncesql.Postgres})
	if err == nil || !strings.Contains(err.Error(), `the value of "k": the codec does not read what it wrote`) {
		t.Errorf("Create = %v; want an error that says that the codec does not read it", err)
	}
}
