package oncesql

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A Dialect is a kind of SQL database.
type Dialect int

// The dialects. The zero Dialect is none of them.
const (
	// Postgres is PostgreSQL, 9.5 or later, at any level of isolation.
	Postgres Dialect = iota + 1

	// SQLite is SQLite, 3.35 or later. Its connections should have a
	// busy_timeout: without one, a creator that meets another gets SQLITE_BUSY,
	// and does not wait.
	SQLite
)

// String returns the name of d as it stands in this package.
func (d Dialect) String() string {
	switch d {
	case Postgres:
		return "Postgres"
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
	maxName   int    // in bytes; a longer name is cut. 0: no limit
	sameName  func(a, b string) bool
	parameter func(i int) string // the i-th, from 1

	keyType    string // with all that makes it a unique key
	textType   string
	binaryType string
	jsonCast   string // after a parameter that is a JSON text

	// duplicate reports whether err, of an insert, is a unique violation. It may
	// be due to another creator of the same key.
	duplicate func(err error) bool
	// again reports whether err, of an insert, says that the statement was in
	// another's way, and may be repeated.
	again func(err error) bool
	// tableRaced reports whether err, of a create table, may be due to another
	// creator of the same table. err may be nil.
	tableRaced func(err error) bool
}

var postgres = dialect{
	quoteMark: `"`,
	maxName:   63,
	sameName:  func(a, b string) bool { return a == b },
	parameter: func(i int) string { return "$" + strconv.Itoa(i) },

	// Keys are not words of a language. And an index in the order of one is
	// broken by an update of the C library that changes that order.
	keyType:    `text COLLATE "C" PRIMARY KEY`,
	textType:   "text NOT NULL",
	binaryType: "bytea NOT NULL",
	// A bytea would take the text for its own notation and lose backslashes.
	// There is no cast from json to bytea, so with this it is an error. The other
	// types get the text as it is, jsonb what it makes of it.
	jsonCast: "::json",

	// unique_violation: ON CONFLICT looks for a row of the key first, and inserts
	// then. If a row that equals ours in another unique column comes between, the
	// error may be of that column: see TestCreatorsOfEqualRowsMeetInAnotherColumn.
	duplicate: func(err error) bool { return sqlState(err) == "23505" },
	// serialization_failure: the other's row came after our snapshot, at
	// REPEATABLE READ and above.
	again: func(err error) bool { return sqlState(err) == "40001" },
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

// sqlite needs no answer to races: a statement that writes has the whole
// database to itself from its beginning.
var sqlite = dialect{
	// Not the usual double quotes: SQLite takes "nosuch" for a string if there is
	// no column of that name, and a Lookup by a misspelt Key would find nothing
	// or everything.
	quoteMark: "`",
	sameName:  strings.EqualFold,
	parameter: func(int) string { return "?" },

	keyType:    "text NOT NULL PRIMARY KEY", // a primary key may be NULL in SQLite
	textType:   "text NOT NULL",
	binaryType: "blob NOT NULL",

	duplicate:  func(error) bool { return false },
	again:      func(error) bool { return false },
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
	return "SELECT " + d.quoteAll(columns) + " FROM " + d.quoteTable(table) +
		" WHERE " + d.quote(key) + " = " + d.parameter(1)
}

// insert returns the statement that inserts a row unless its key is there, and
// returns the columns of what it inserted. Only a conflict of the key is
// passed over. cast stands after each parameter but the key's.
func (d dialect) insert(table, key string, columns []string, cast string) string {
	parameters := d.parameter(1)
	for i := range columns {
		parameters += ", " + d.parameter(i+2) + cast
	}
	return "INSERT INTO " + d.quoteTable(table) + " (" + d.quote(key) + ", " + d.quoteAll(columns) + ")" +
		" VALUES (" + parameters + ")" +
		" ON CONFLICT (" + d.quote(key) + ") DO NOTHING" +
		" RETURNING " + d.quoteAll(columns)
}

func (d dialect) createTable(table, key, value, valueType string) string {
	return "CREATE TABLE IF NOT EXISTS " + d.quoteTable(table) +
		" (" + d.quote(key) + " " + d.keyType + ", " + d.quote(value) + " " + valueType + ")"
}
