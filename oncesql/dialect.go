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
	// Postgres is PostgreSQL 9.5 or later, at any isolation level.
	Postgres Dialect = iota + 1

	// MySQL is MySQL 5.7 or later, or MariaDB 10.2 or later, with InnoDB tables. Do not
	// use the isolation level READ UNCOMMITTED: a lookup would return rows that may be
	// rolled back. The driver's errors must have the server's error number, like the
	// field Number of github.com/go-sql-driver/mysql: it decides which inserts are
	// repeated. The key column must hold text or bytes: in a column of numbers, MySQL
	// compares "1 apple" and 1 as equal.
	MySQL

	// SQLite is SQLite 3.35 or later. Set a busy_timeout on its connections. Without one,
	// a statement that meets another writer is repeated for about a second, and then
	// fails with SQLITE_BUSY.
	SQLite
)

// String returns the name of d in this package.
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

// A dialect has the differences between databases: the syntax of statements, and the errors
// of concurrent writers.
type dialect struct {
	quoteMark string // encloses a name, and is doubled inside it
	maxName   int    // the most that nameLen may return; 0 for no limit
	nameLen   func(name string) int
	nameUnit  string // the unit of maxName, for an error
	sameName  func(a, b string) bool
	parameter func(i int) string // the i-th, from 1
	many      int                // the most parameters of one statement

	// onConflict says that the database has ON CONFLICT DO NOTHING RETURNING. Without it,
	// an insert fails if the key has a row.
	onConflict bool
	// prepared says that this package prepares statements, once for each connection.
	prepared bool

	keyType    string // with its constraints
	textType   string
	binaryType string
	jsonCast   string // after a parameter that is a JSON text

	// inspect describes the column of keys.
	inspect func(ctx context.Context, db *sql.DB, d dialect, table, key string) (keyColumn, error)

	// again reports whether an insert that failed with err is repeated at once if the key
	// has no row: another row may have been in the way and may be deleted since. Errors
	// for which passes is true are repeated anyway.
	again func(err error) bool
	// tableRaced reports whether the err of a CREATE TABLE may be due to another process
	// that created the same table. err may be nil.
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
	// pgx prepares each statement once for each connection, and again if a table has
	// changed. Its settings turn that off behind a pooler that changes the connection for
	// each transaction. A [sql.Stmt] can do neither: it would break behind PgBouncer
	// before 1.21, and fail for ever on a connection on which a column changed its type.

	// Keys are not words of a language, and an update of the C library may change the
	// order of a language and so break its indexes.
	keyType:    `text COLLATE "C" PRIMARY KEY`,
	textType:   "text NOT NULL",
	binaryType: "bytea NOT NULL",
	// A bytea column would parse the text as its own notation and lose backslashes.
	// PostgreSQL cannot cast json to bytea, so this cast makes it an error. Text columns
	// receive the text unchanged, and jsonb columns convert it.
	jsonCast: "::json",

	// Not unique_violation: ON CONFLICT handles that of the key, so it concerns another
	// column. The key may still have a row, if another creator inserted an equal one: see
	// TestCreatorsOfEqualRowsMeetInAnotherColumn.
	again:   func(error) bool { return false },
	inspect: inspectPostgres,
	tableRaced: func(err error) bool {
		switch sqlState(err) {
		// IF NOT EXISTS checks first and then inserts into the catalogs, where two
		// may collide: unique_violation, duplicate_table, duplicate_object (its type).
		case "23505", "42P07", "42710":
			return true
		}
		return false
	},
}

// mysql is for MySQL and MariaDB, and uses only statements of both. MariaDB's RETURNING would
// save a round trip for each created value, which is little after a fetch.
var mysql = dialect{
	quoteMark: "`", // without ANSI_QUOTES in sql_mode, double quotes enclose strings
	maxName:   64,
	nameUnit:  "characters",
	nameLen:   utf8.RuneCountInString,
	sameName:  strings.EqualFold,
	parameter: func(int) string { return "?" },
	// The protocol allows 65,535. But for long lists the optimizer does not use the index:
	// MariaDB 10.11 reads the whole table for 32,766 values
	// (optimizer_max_sel_arg_weight), MySQL for some 36,000
	// (range_optimizer_max_mem_size).
	many: 10_000,

	// A plain insert reports every problem as an error.
	//
	// INSERT IGNORE would also ignore a value that does not fit its column. ON DUPLICATE
	// KEY UPDATE of the key to itself would also hide a conflict in another unique column.
	// And it is an update: it needs that privilege, fires triggers, and takes an exclusive
	// lock instead of a shared one.
	onConflict: false,
	// Otherwise the driver prepares, executes and closes a statement for each call: two
	// round trips instead of one (50 and 25 µs on a Unix socket).
	prepared: true,

	// Bytes, because no collation of both MySQL and MariaDB distinguishes "a" from "a ":
	// utf8mb4_bin pads the shorter with blanks. 3072 bytes is the limit of an InnoDB index.
	keyType:    "varbinary(3072) NOT NULL PRIMARY KEY",
	textType:   "longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL",
	binaryType: "longblob NOT NULL",

	// 1062 is a duplicate entry, and does not reliably name the index. If the key has no
	// row, either its row was deleted since, or a row conflicts in another column. Such a
	// row is still there after all repetitions.
	//
	// Deadlocks are common here: if three transactions insert a key, two wait for the
	// first, each with a shared lock. If the first rolls back, the two wait for each other.
	again:      func(err error) bool { return errorNumber(err) == 1062 },
	inspect:    inspectMySQL,
	tableRaced: func(error) bool { return false },
}

// sqlite needs no handling of races: a statement that writes locks the whole database from its
// beginning.
var sqlite = dialect{
	// Not double quotes: SQLite reads "nosuch" as a string if no column has that name, so
	// a Lookup with a misspelt Key would find no row or every row.
	quoteMark: "`",
	sameName:  strings.EqualFold,
	parameter: func(int) string { return "?" },
	many:      32766, // the default of SQLITE_MAX_VARIABLE_NUMBER

	onConflict: true,
	prepared:   true, // parsing takes as long as a lookup

	keyType:    "text NOT NULL PRIMARY KEY", // a primary key may be NULL in SQLite
	textType:   "text NOT NULL",
	binaryType: "blob NOT NULL",

	again:      func(error) bool { return false },
	inspect:    inspectSQLite,
	tableRaced: func(error) bool { return false },
}

// sqlState returns the SQLSTATE in err, or "". Errors of pgx and lib/pq have the method.
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

// errorNumber returns the number that a MySQL server gave to err, or 0. Drivers have no method
// for it: it is the field Number of an error of github.com/go-sql-driver/mysql, or Code of one
// of github.com/go-mysql-org. Texts of errors differ between drivers, so they are not used.
func errorNumber(err error) uint16 { return uint16(numberIn(err, reflect.Uint16, "Number", "Code")) } //nolint:gosec // it is one

// sqliteCode returns the primary result code that SQLite gave to err, or 0. It is the result of
// the method Code of an error of modernc.org/sqlite, or the field Code of one of
// github.com/mattn/go-sqlite3.
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

// numberIn searches the tree of err for an exported field of that kind with one of the names. It
// returns the first value, or 0.
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

// quoteTable quotes a table, or a schema and a table separated by a dot.
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

// insert returns the statement that inserts a row. With onConflict, it does nothing if the key has
// a row; a conflict in another column is an error. cast follows each parameter except that of
// the key.
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

// indexes returns the statement that lists the indexes of a table in MySQL. It returns a row for
// each column of each index, which begins with table, non_unique, key_name, seq_in_index and
// column_name.
func (d dialect) indexes(table string) string {
	return "SHOW INDEX FROM " + d.quoteTable(table)
}

func (d dialect) createTable(table, key, value, valueType string) string {
	return "CREATE TABLE IF NOT EXISTS " + d.quoteTable(table) +
		" (" + d.quote(key) + " " + d.keyType + ", " + d.quote(value) + " " + valueType + ")"
}
