// Package oncesql keeps a Loader's values in a table of a SQL database.
//
// A [Store] is a [fetchonce.Store] over [database/sql]. It is safe by the
// unique key of the table, whatever becomes of the lease in Redis: however many
// processes create a key at once, one row is kept, and all of them get the
// value that is in it.
//
// The value is either one encoded column, for which [Store.CreateTable] makes
// the table, or several columns of a table of your own. The database's driver
// is yours to choose and import; this package needs none.
//
// What the database and its driver refuse comes back as their error, unchanged.
package oncesql

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/fetchonce/fetchonce"
)

// A Store keeps values in a table, one row for each key. It is made by [New],
// and may be used by many goroutines and processes at once.
//
// Two keys are the same key if the column takes them for equal: under a
// collation that ignores case, "A" and "a" share a row. The table that
// [Store.CreateTable] makes tells all keys apart, the empty one too. What a text
// column cannot hold is refused by the database, with its error: PostgreSQL has
// no key with a NUL byte or with invalid UTF-8. SQLite keeps both, unless the
// file's encoding is UTF-16.
type Store[V any] struct {
	db      *sql.DB
	dialect dialect

	// How a value becomes what stands in the columns, and back.
	write func(key string, v V) ([]any, error)
	read  func(key string, scan func(dest ...any) error) (V, error)

	// Statements.
	lookup string // of the key: the columns
	insert string // of the key and the columns: the columns as kept, or no row if the key has one
	create string // of the table; empty if the columns are the caller's
}

// New returns a Store in a table of db. It checks opt, and returns an error that
// names the field that cannot be used. It does not ask the database: what the
// table lacks is found by the first Lookup.
//
// The Store does not close db.
func New[V any](db *sql.DB, opt Options[V]) (*Store[V], error) {
	if db == nil {
		return nil, fmt.Errorf("oncesql: new: db is nil")
	}
	d, err := opt.check()
	if err != nil {
		return nil, fmt.Errorf("oncesql: new: %w", err)
	}
	s := &Store[V]{db: db, dialect: d}
	if len(opt.Columns) > 0 {
		s.write = func(key string, v V) ([]any, error) { return columnValues(opt.Values(v), len(opt.Columns), key) }
		s.read = func(_ string, scan func(dest ...any) error) (V, error) { return opt.Scan(scan) }
		s.lookup = d.lookup(opt.Table, opt.Key, opt.Columns)
		s.insert = d.insert(opt.Table, opt.Key, opt.Columns, "")
		return s, nil
	}
	e := encoding[V]{codec: opt.Codec, text: opt.Codec == fetchonce.JSON}
	s.write, s.read = e.write, e.read
	cast, valueType := "", d.binaryType
	if e.text {
		cast, valueType = d.jsonCast, d.textType
	}
	columns := []string{opt.Value}
	s.lookup = d.lookup(opt.Table, opt.Key, columns)
	s.insert = d.insert(opt.Table, opt.Key, columns, cast)
	s.create = d.createTable(opt.Table, opt.Key, opt.Value, valueType)
	return s, nil
}

// Lookup returns the value in the row of key, or [fetchonce.ErrNotFound] if
// there is no row. Every other trouble is another error: what the driver
// returned, unchanged; what Scan returned, unchanged; or an error of this
// package that names the key, for an encoded value that is NULL or cannot be
// decoded, and for a key that has several rows because the column is not
// unique.
func (s *Store[V]) Lookup(ctx context.Context, key string) (V, error) {
	v, found, err := s.row(ctx, s.lookup, key, key)
	if err == nil && !found {
		err = fetchonce.ErrNotFound
	}
	return v, err
}

// createAttempts bounds how often Create finds the key taken and then finds
// nothing there. Each time takes another process that deletes the row between
// two statements, so more than one is rare, and more than a few means that rows
// are hidden from us.
const createAttempts = 10

// Create inserts v for key, unless key has a row already, and returns the value
// of the row that is kept, whoever inserted it. The value is always the one
// that was read from the database, also when the row is our own: all who create
// a key get the same, with what the columns and the codec made of it, such as a
// time in whole microseconds. What a trigger changes after the insert is not
// seen.
//
// A creator that meets another's row before it is committed waits until it is.
// A row that breaks another unique constraint than the key's is an error, the
// driver's, unless key has a row by then.
//
// When Create returns an error, the row may have been kept all the same, if the
// answer was lost on its way. To create it again does no harm.
func (s *Store[V]) Create(ctx context.Context, key string, v V) (V, error) {
	var zero V
	values, err := s.write(key, v)
	if err != nil {
		return zero, err
	}
	args := append([]any{key}, values...)
	for range createAttempts {
		kept, inserted, insertErr := s.row(ctx, s.insert, key, args...)
		if inserted || insertErr != nil && !s.dialect.duplicate(insertErr) && !s.dialect.again(insertErr) {
			return kept, insertErr
		}
		// Another has the key, and has committed: the insert waited for that.
		// This statement is a transaction of its own, so it sees the row. In one
		// statement with the insert it would not: both would see what was there
		// before the wait.
		//
		// It is tempting to have one statement that always returns a row, by
		// ON CONFLICT DO UPDATE of a column to itself. But that is a write: it
		// waits for everyone who holds the row, leaves a dead row behind, and
		// fires the triggers of an update.
		kept, found, lookupErr := s.row(ctx, s.lookup, key, key)
		if found || lookupErr != nil {
			return kept, lookupErr
		}
		if insertErr != nil && s.dialect.duplicate(insertErr) {
			return zero, insertErr // not the key: another unique constraint of the table
		}
		// The row was deleted after our insert met it. The key is free again.
		err = insertErr
	}
	if err != nil {
		return zero, err
	}
	return zero, fmt.Errorf("oncesql: create %q: an insert found the key taken, and a lookup found no row, %d times", key, createAttempts)
}

// CreateTable makes the table of a Store whose value is one encoded column,
// unless a table of that name exists, which is then left as it is. It may be
// called by many processes at once. A schema must exist already. The error is
// the driver's, or says that Columns are set, whose types only you know.
//
// The key is of type text, and is compared byte by byte. The value is of type
// text with [fetchonce.JSON], so that people and the database's own JSON
// functions can read it; with another codec, it is bytea in PostgreSQL and blob
// in SQLite, which hold any bytes. PostgreSQL indexes keys of some 2,700
// bytes at most.
func (s *Store[V]) CreateTable(ctx context.Context) error {
	if s.create == "" {
		return fmt.Errorf("oncesql: create table: Columns are set, and their types are not known")
	}
	_, err := s.db.ExecContext(ctx, s.create)
	for i := 0; i < createAttempts && s.dialect.tableRaced(err); i++ {
		_, err = s.db.ExecContext(ctx, s.create)
	}
	return err
}

// row runs a statement that returns the columns of at most one row, and reports
// whether there was one. An error after that is one of reading the value.
func (s *Store[V]) row(ctx context.Context, statement, key string, args ...any) (v V, found bool, err error) {
	var zero V
	rows, err := s.db.QueryContext(ctx, statement, args...)
	if err != nil {
		return zero, false, err
	}
	// For the ways out in error, and for a Scan that panics.
	defer func() { _ = rows.Close() }()

	if !rows.Next() {
		return zero, false, rows.Err()
	}
	v, readErr := s.read(key, rows.Scan)
	if rows.Next() {
		return zero, true, fmt.Errorf("oncesql: %q has several rows: the column of keys is not unique", key)
	}
	// An insert counts only now. Its row may come before its end, and the end
	// may be a failed commit (SQLITE_BUSY, a deferred constraint).
	if err := rows.Err(); err != nil {
		return zero, false, err
	}
	if err := rows.Close(); err != nil {
		return zero, false, err
	}
	if readErr != nil {
		return zero, true, readErr
	}
	return v, true, nil
}
