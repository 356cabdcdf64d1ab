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
// A statement is repeated, after a pause and for about a second, when its error
// passes: a lost connection, a deadlock or a lock timeout, a serialization failure,
// a plan of a table that has changed, or a SQLite file that is locked. It is not
// repeated once ctx has ended.
package oncesql

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/keytext"
)

// A Store keeps values in a table, one row for each key. It is made by [New],
// and may be used by many goroutines and processes at once.
//
// The key of each row that is found is compared with the key that was asked for.
// Where the column takes both for equal and they differ, as "A" and "a" do for a
// collation that ignores case, the error says that the row is of another key;
// unless [Options.FoldKeys] makes them one key. The table that
// [Store.CreateTable] makes tells all keys apart, the empty one too. What the
// column cannot hold is refused by the database, with its error: PostgreSQL has
// no key with a NUL byte or with invalid UTF-8. SQLite keeps both, unless the
// file's encoding is UTF-16, and MySQL does in that table.
//
// Make a Store once, and not for each request: in MySQL and SQLite it prepares
// its statements when they are first used, and the connections of db keep them
// until db is closed.
type Store[V any] struct {
	db      *sql.DB
	dialect dialect

	// How a value becomes what stands in the columns, and back.
	write func(key string, v V) ([]any, error)
	read  func(key string, scan func(dest ...any) error) (V, error)

	// Statements.
	lookup     statement             // of the key: the key as it is in the row, and the columns
	lookupMany func(keys int) string // of so many keys: each key that has a row, and its columns
	insert     statement             // of the key and the columns; see insertRow
	create     string                // of the table; empty if the columns are the caller's

	columns int   // how many a value has
	fold    bool  // keys that the column takes for equal are one key
	guard   guard // against a table that is not fit
}

// New returns a Store in a table of db. It checks opt, and returns an error that
// names the field that cannot be used. It does not ask the database: what the
// table lacks is found by the first Lookup, LookupMany or Create.
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
	s := &Store[V]{db: db, dialect: d, fold: opt.FoldKeys}
	if len(opt.Columns) > 0 {
		s.write = func(key string, v V) ([]any, error) { return columnValues(opt.Values(v), len(opt.Columns), key) }
		s.read = opt.Scan
		s.prepare(opt.Table, opt.Key, opt.Columns, "")
		return s, nil
	}
	e := encodingOf[V](opt.Codec)
	s.write, s.read = e.write, e.read
	cast, valueType := "", d.binaryType
	if e.text {
		cast, valueType = d.jsonCast, d.textType
	}
	s.prepare(opt.Table, opt.Key, []string{opt.Value}, cast)
	s.create = d.createTable(opt.Table, opt.Key, opt.Value, valueType)
	return s, nil
}

// prepare words the statements. cast stands after each parameter but the key's.
func (s *Store[V]) prepare(table, key string, columns []string, cast string) {
	d := s.dialect
	s.columns = len(columns)
	s.lookup = statement{db: s.db, text: d.lookup(table, key, columns), prepared: d.prepared}
	s.lookupMany = func(keys int) string { return d.lookupMany(table, key, columns, keys) }
	s.insert = statement{db: s.db, text: d.insert(table, key, columns, cast), prepared: d.prepared}
	s.guard.db, s.guard.dialect, s.guard.table, s.guard.key, s.guard.fold = s.db, d, table, key, s.fold
}

// Lookup returns the value in the row of key, or [fetchonce.ErrNotFound] if
// there is no row. Every other trouble is another error: what the driver
// returned, unchanged; what Scan returned, unchanged; or an error of this
// package that names the key, for an encoded value that is NULL or cannot be
// decoded, and for a key that has several rows because the column is not
// unique.
func (s *Store[V]) Lookup(ctx context.Context, key string) (V, error) {
	var (
		v       V
		found   bool
		readErr error
	)
	if err := s.guard.checkKey(ctx, key); err != nil {
		return v, err
	}
	err := repeat(ctx, func() (err error) {
		v, found, err = s.row(ctx, &s.lookup, key, key)
		if found {
			readErr, err = err, nil // another reading would end in the same way
		}
		return err
	})
	switch {
	case found:
		return v, readErr
	case err == nil:
		err = fetchonce.ErrNotFound
	}
	return v, err
}

// Create inserts v for key, unless key has a row already, and returns the value
// of the row that is kept, whoever inserted it. The value is always the one
// that was read from the database, also when the row is our own: all who create
// a key get the same, with what the columns and the codec made of it, such as a
// time in whole microseconds. What a trigger changes after the insert is seen in
// MySQL only.
//
// A creator that meets another's row before it is committed waits until it is.
// When the insert fails, for whatever reason, key may have a row by then, and
// the value in it is what is returned. Else the error is the insert's, the
// driver's. So it is for a row that breaks another unique constraint than the
// key's; the error then names that one.
//
// A value that the codec does not read back is refused before the insert.
//
// When Create returns an error, the row may have been kept all the same, if the
// answer was lost on its way. To create it again does no harm.
func (s *Store[V]) Create(ctx context.Context, key string, v V) (V, error) {
	var zero V
	values, err := s.write(key, v)
	if err != nil {
		return zero, err
	}
	if err := s.guard.checkKey(ctx, key); err != nil {
		return zero, err
	}
	args := append([]any{key}, values...)
	for attempt := 1; ; attempt++ {
		kept, inserted, insertErr := s.insertRow(ctx, key, args)
		if inserted {
			return kept, insertErr
		}
		// Another has the key, and has committed: the insert waited for that. Or
		// the insert failed, and we look before we say so: there are as many ways
		// to fail for a row that is there as there are databases and drivers, down
		// to our own row whose answer was lost.
		//
		// This statement is a transaction of its own, so it sees the row, at READ
		// COMMITTED and at REPEATABLE READ, as each begins with a new snapshot. In
		// one statement with the insert, or in one transaction at REPEATABLE READ,
		// it would not: it would see what was there before the wait.
		//
		// It is tempting to have one statement that always returns a row, by
		// ON CONFLICT DO UPDATE of a column to itself. But that is a write: it
		// waits for everyone who holds the row, leaves a dead row behind, and
		// fires the triggers of an update.
		kept, found, lookupErr := s.row(ctx, &s.lookup, key, key)
		switch {
		case found:
			return kept, lookupErr
		case passes(lookupErr): // the key may have a row
		case insertErr != nil && !passes(insertErr) && !s.dialect.again(insertErr):
			return zero, insertErr
		case lookupErr != nil:
			return zero, lookupErr
		}
		// The row was deleted after our insert met it, or an error passes. More than
		// one deletion is rare, and more than a few mean that rows are hidden from us.
		wait := passes(insertErr) || passes(lookupErr)
		if attempt == attempts || wait && !pause(ctx, attempt) {
			return zero, cmp.Or(insertErr, lookupErr, fmt.Errorf("oncesql: create %s: no row was there after an insert, %d times", keytext.Quote(key), attempts))
		}
	}
}

// insertRow inserts a row unless its key has one. It reports whether it has, and
// returns the value as it is in the row. Where an insert returns no columns, it
// leaves both to the lookup that follows, as if the row were another's.
func (s *Store[V]) insertRow(ctx context.Context, key string, args []any) (kept V, inserted bool, err error) {
	if s.dialect.onConflict {
		return s.row(ctx, &s.insert, key, args...)
	}
	return kept, false, s.insert.exec(ctx, args...)
}

// CreateTable makes the table of a Store whose value is one encoded column,
// unless a table of that name exists, which is then left as it is. It may be
// called by many processes at once. A schema must exist already. The error is
// the driver's, or says that Columns are set, whose types only you know.
//
// The key is compared byte by byte. It is of type text, in MySQL varbinary(3072).
// PostgreSQL indexes keys of some 2,700 bytes at most.
//
// The value is of type text, in MySQL longtext, with [fetchonce.JSON], so that
// people and the database's own JSON functions can read it. With another codec
// it is bytea in PostgreSQL, longblob in MySQL and blob in SQLite, which hold
// any bytes.
func (s *Store[V]) CreateTable(ctx context.Context) error {
	if s.create == "" {
		return fmt.Errorf("oncesql: create table: Columns are set, and their types are not known")
	}
	_, err := s.db.ExecContext(ctx, s.create)
	for i := 0; i < attempts && s.dialect.tableRaced(err); i++ {
		_, err = s.db.ExecContext(ctx, s.create)
	}
	return err
}

// row runs a statement that returns the columns of at most one row, and reports
// whether there was one. An error after that is one of reading the value.
func (s *Store[V]) row(ctx context.Context, st *statement, key string, args ...any) (v V, found bool, err error) {
	var zero V
	rows, err := st.query(ctx, args...)
	if err != nil {
		return zero, false, err
	}
	// For the ways out in error, and for a Scan that panics.
	defer func() { _ = rows.Close() }()

	if !rows.Next() {
		return zero, false, rows.Err()
	}
	v, readErr := s.readRow(key, rows)
	if rows.Next() {
		return zero, true, severalRows(key)
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

// readRow reads the value of a row that was found for key.
func (s *Store[V]) readRow(key string, rows *sql.Rows) (v V, err error) {
	var rowKey string
	if err := rows.Scan(s.keyAlone(&rowKey)...); err != nil {
		return v, err
	}
	if rowKey != key && !s.fold {
		return v, otherKey(key)
	}
	return s.value(key, rows)
}

// value reads the value of a row whose key has been read.
func (s *Store[V]) value(key string, rows *sql.Rows) (V, error) {
	return s.read(key, func(dest ...any) error {
		return rows.Scan(append([]any{skipped{}}, dest...)...)
	})
}

// keyAlone returns destinations for a row of which only the key is read.
func (s *Store[V]) keyAlone(key *string) []any {
	dest := make([]any, 1+s.columns)
	dest[0] = key
	for i := range s.columns {
		dest[1+i] = skipped{}
	}
	return dest
}

// otherKey does not quote the key of the row, which may be another user's.
func otherKey(key string) error {
	return fmt.Errorf("oncesql: the row for %s has another key, which the column takes for equal; see Options.FoldKeys", keytext.Quote(key))
}

func severalRows(key string) error {
	return fmt.Errorf("oncesql: %s has several rows: the column of keys is not unique", keytext.Quote(key))
}

// skipped is the destination of a column that is not read.
type skipped struct{}

// Scan implements [database/sql.Scanner].
func (skipped) Scan(any) error { return nil }
