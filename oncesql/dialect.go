package oncesql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Dialect is a kind of SQL database.
type Dialect int

// The dialects. The zero Dialect is none of them.
const (
	// Postgres is PostgreSQL, 9.5 or later, at any level of isolation.
	Postgres Dialect = iota + 1

	// MySQL is MariaDB, 10.2 or later, and MySQL, 5.7 or later, with tables of
	// InnoDB, at any level of isolation but READ UNCOMMITTED, at which a lookup
	// returns rows that may be rolled back. The driver's errors should have the
	// server's number, as those of github.com/go-sql-driver/mysql have in their
	// field Number: it tells which insert may be repeated. Keys should stand in
	// a column of text or bytes: in one of numbers, MySQL takes "1 apple" for 1.
	MySQL

	// SQLite is SQLite, 3.35 or later. Its connections should have a
	// busy_timeout. Without one, a statement that meets another writer is repeated
	// for about a second, and then fails with SQLITE_BUSY.
	SQLite
)

// String returns the name of d as it stands in this package.
func (d Dialect) String() string {
	switch d {
	case Postgres:
		return "Postgres"
	case MySQL:
		return "MySQL"
	case SQLite:
		return "SQLite"
	default:
		return fmt.Sprintf("Dialect(%d)", int(d))
	}
}

func (d Dialect) dialect() (dialect, bool) {
	switch d {
	case Postgres:
		return postgres, true
	case MySQL:
		return mysql, true
	case SQLite:
		return sqlite, true
	default:
		return dialect{}, false
	}
}

// A dialect is all in which databases differ for us: how they write a
// statement, and how they say that two writers met.
type dialect struct {
	quoteMark string // stands around a name, and twice inside it
	maxName   int    // of nameLen; 0: no limit
	nameLen   func(name string) int
	nameUnit  string // of maxName, and what becomes of a longer name
	sameName  func(a, b string) bool
	parameter func(i int) string // the i-th, from 1
	many      int                // parameters of one statement at most

	// onConflict says that an insert can name the key, pass over a row that has
	// it, and return the columns of what it inserted. Where it cannot, it is a
	// plain insert, which fails if there is a row.
	onConflict bool
	// prepared says that statements are prepared once by us, on each connection
	// that comes to run them.
	prepared bool

	keyType    string // with all that makes it a unique key
	textType   string
	binaryType string
	jsonCast   string // after a parameter that is a JSON text

	// inspect describes the column of keys.
	inspect func(ctx context.Context, db *sql.DB, d dialect, table, key string) (keyColumn, error)

	// again reports whether err, of an insert, may be due to another's row that was
	// in the way, and is gone: the insert is repeated at once if it turns out that
	// the key has no row. It is besides what passes.
	again func(err error) bool
	// tableRaced reports whether err, of a create table, may be due to another
	// creator of the same table. err may be nil.
	tableRaced func(err error) bool
}

var postgres = dialect{
	quoteMark: `"`,
	maxName:   63,
	nameUnit:  "bytes, and would be cut there",
	nameLen:   func(name string) int { return len(name) },
	sameName:  func(a, b string) bool { return a == b },
	parameter: func(i int) string { return "$" + strconv.Itoa(i) },
	many:      65535, // a uint16 counts them on the wire

	onConflict: true,
	// pgx prepares by itself, once for each connection and statement, prepares
	// again when a table has changed, and leaves it to its user's settings where
	// a pooler hands each transaction another connection. A [sql.Stmt] would do
	// neither of the last two: it would break behind PgBouncer before 1.21, and
	// fail for ever on a connection that saw a column change its type.

	// Keys are not words of a language. And an index in the order of one is
	// broken by an update of the C library that changes that order.
	keyType:    `text COLLATE "C" PRIMARY KEY`,
	textType:   "text NOT NULL",
	binaryType: "bytea NOT NULL",
	// A bytea would take the text for its own notation and lose backslashes.
	// There is no cast from json to bytea, so with this it is an error. The other
	// types get the text as it is, jsonb what it makes of it.
	jsonCast: "::json",

	// Not unique_violation: ON CONFLICT passes over that of the key, so it is of
	// another column. The key may have a row all the same, if ours would equal it
	// there: see TestCreatorsOfEqualRowsMeetInAnotherColumn.
	again:   func(error) bool { return false },
	inspect: inspectPostgres,
	tableRaced: func(err error) bool {
		switch sqlState(err) {
		// IF NOT EXISTS looks first and inserts in the catalogs then, where two
		// may meet: unique_violation, duplicate_table, duplicate_object (its type).
		case "23505", "42P07", "42710":
			return true
		}
		return false
	},
}

// mysql is also MariaDB. It has statements that both know: MariaDB's RETURNING
// would save a round trip for each value that is created, which is little beside
// the fetch that it comes after.
var mysql = dialect{
	quoteMark: "`", // double quotes are for texts, unless sql_mode has ANSI_QUOTES
	maxName:   64,
	nameUnit:  "characters",
	nameLen:   utf8.RuneCountInString,
	sameName:  strings.EqualFold,
	parameter: func(int) string { return "?" },
	// The protocol has 65,535, but a list of many values is not looked up in the
	// index any more: MariaDB 10.11 reads the whole table for 32,766 of them
	// (optimizer_max_sel_arg_weight), MySQL from some 36,000 on
	// (range_optimizer_max_mem_size).
	many: 10_000,

	// The insert is a plain one, and all that can be wrong with it is an error.
	//
	// INSERT IGNORE would also ignore a value that does not fit its column. ON
	// DUPLICATE KEY UPDATE of the key to itself would also pass over a row that is
	// in the way in another unique column, and nobody would hear of it; and it is
	// an update, with its triggers, its privilege, and an exclusive lock where a
	// plain insert takes a shared one.
	onConflict: false,
	// Else the driver prepares, executes and closes for each call: two round
	// trips in the place of one (50 and 25 µs on a socket).
	prepared: true,

	// Bytes, as there is no collation for text that MySQL and MariaDB both know
	// and that tells "a" from "a ": utf8mb4_bin pads the shorter with blanks. And
	// no more bytes than an index of InnoDB takes.
	keyType:    "varbinary(3072) NOT NULL PRIMARY KEY",
	textType:   "longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL",
	binaryType: "longblob NOT NULL",

	// Duplicate entry: it does not say reliably in which index. If the key has no
	// row, either the row was deleted since, or another's is in the way in another
	// column. That row will still be there when the insert has been repeated often
	// enough.
	//
	// A deadlock, which passes, is no accident here: of three who insert a key, two
	// wait with a shared lock for the first, and if that one rolls back, each waits
	// for the other.
	again:      func(err error) bool { return errorNumber(err) == 1062 },
	inspect:    inspectMySQL,
	tableRaced: func(error) bool { return false },
}

// sqlite needs no answer to races: a statement that writes has the whole
// database to itself from its beginning.
var sqlite = dialect{
	// Not the usual double quotes: SQLite takes "nosuch" for a string if there is
	// no column of that name, and a Lookup by a misspelt Key would find nothing
	// or everything.
	quoteMark: "`",
	sameName:  strings.EqualFold,
	parameter: func(int) string { return "?" },
	many:      32766, // SQLITE_MAX_VARIABLE_NUMBER, unless it was built with another

	onConflict: true,
	prepared:   true, // else parsed for each call, which takes as long as a lookup

	keyType:    "text NOT NULL PRIMARY KEY", // a primary key may be NULL in SQLite
	textType:   "text NOT NULL",
	binaryType: "blob NOT NULL",

	again:      func(error) bool { return false },
	inspect:    inspectSQLite,
	tableRaced: func(error) bool { return false },
}

// sqlState returns the SQLSTATE in err, or "". The drivers pgx and lib/pq have
// errors with this method.
func sqlState(err error) string {
	e, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err)
	if !ok {
		return ""
	}
	return e.SQLState()
}

// errorNumber returns the number that a MySQL server gave to err, or 0. Drivers
// have no method for it. It is the field Number of an error of
// github.com/go-sql-driver/mysql, and Code of github.com/go-mysql-org's. The
// text of an error is no help: a driver or a wrapper may word it in its own way.
func errorNumber(err error) uint16 { return uint16(numberIn(err, reflect.Uint16, "Number", "Code")) } //nolint:gosec // it is one

// sqliteCode returns the primary result code that SQLite gave to err, or 0. It is
// the result of the method Code of modernc.org/sqlite's errors, and the field Code
// of github.com/mattn/go-sqlite3's.
func sqliteCode(err error) int {
	e, ok := errors.AsType[interface {
		error
		Code() int
	}](err)
	if ok {
		return e.Code() & 0xff // the other bits extend it
	}
	return int(numberIn(err, reflect.Int, "Code") & 0xff)
}

// numberIn returns what the first error in the tree of err has in an exported field
// of that kind and one of these names, or 0.
func numberIn(err error, kind reflect.Kind, names ...string) int64 {
	if err == nil {
		return 0
	}
	if v := reflect.Indirect(reflect.ValueOf(err)); v.Kind() == reflect.Struct {
		for _, name := range names {
			field, ok := v.Type().FieldByName(name)
			if !ok || len(field.Index) != 1 || !field.IsExported() || field.Type.Kind() != kind {
				continue
			}
			if n := v.FieldByIndex(field.Index); n.CanUint() {
				return int64(n.Uint()) //nolint:gosec // of 16 bits
			} else if n.CanInt() {
				return n.Int()
			}
		}
	}
	switch e := err.(type) { //nolint:errorlint // this is how errors.As goes through a tree
	case interface{ Unwrap() error }:
		return numberIn(e.Unwrap(), kind, names...)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			if n := numberIn(err, kind, names...); n != 0 {
				return n
			}
		}
	}
	return 0
}

func (d dialect) quote(name string) string {
	return d.quoteMark + strings.ReplaceAll(name, d.quoteMark, d.quoteMark+d.quoteMark) + d.quoteMark
}

func (d dialect) quoteAll(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = d.quote(name)
	}
	return strings.Join(quoted, ", ")
}

// quoteTable quotes the two sides of a dot each for itself.
func (d dialect) quoteTable(table string) string {
	schema, name, ok := strings.Cut(table, ".")
	if !ok {
		return d.quote(table)
	}
	return d.quote(schema) + "." + d.quote(name)
}

func (d dialect) lookup(table, key string, columns []string) string {
	return "SELECT " + d.quote(key) + ", " + d.quoteAll(columns) + " FROM " + d.quoteTable(table) +
		" WHERE " + d.quote(key) + " = " + d.parameter(1)
}

// lookupMany returns the statement that looks up n keys at once.
func (d dialect) lookupMany(table, key string, columns []string, n int) string {
	var in strings.Builder
	for i := range n {
		if i > 0 {
			in.WriteString(", ")
		}
		in.WriteString(d.parameter(i + 1))
	}
	return "SELECT " + d.quote(key) + ", " + d.quoteAll(columns) + " FROM " + d.quoteTable(table) +
		" WHERE " + d.quote(key) + " IN (" + in.String() + ")"
}

// insert returns the statement that inserts a row unless its key is there. Only
// a conflict of the key is passed over, and that only where the statement can
// say so. cast stands after each parameter but the key's.
func (d dialect) insert(table, key string, columns []string, cast string) string {
	var parameters strings.Builder
	parameters.WriteString(d.parameter(1))
	for i := range columns {
		parameters.WriteString(", " + d.parameter(i+2) + cast)
	}
	insert := "INSERT INTO " + d.quoteTable(table) + " (" + d.quote(key) + ", " + d.quoteAll(columns) + ")" +
		" VALUES (" + parameters.String() + ")"
	if d.onConflict {
		insert += " ON CONFLICT (" + d.quote(key) + ") DO NOTHING" +
			" RETURNING " + d.quote(key) + ", " + d.quoteAll(columns)
	}
	return insert
}

// indexes returns the statement that lists the indexes of a table in MySQL: a
// row for each column of each, beginning with table, non_unique, key_name,
// seq_in_index and column_name.
func (d dialect) indexes(table string) string {
	return "SHOW INDEX FROM " + d.quoteTable(table)
}

func (d dialect) createTable(table, key, value, valueType string) string {
	return "CREATE TABLE IF NOT EXISTS " + d.quoteTable(table) +
		" (" + d.quote(key) + " " + d.keyType + ", " + d.quote(value) + " " + valueType + ")"
}
