// Package oncesql keeps a Loader's values in a table of a SQL database.
//
// A [Store] is a [fetchonce.Store] over [database/sql]. The unique key of the table makes
// it safe, even if the lease in Redis is lost: when many processes create a key at once,
// one row is kept, and all of them receive its value.
//
// A value is one encoded column, for which [Store.CreateTable] makes the table, or several
// columns of a table of your own. Import the database's driver yourself; this package
// needs none.
//
// Errors of the database and its driver are returned unchanged. A statement is repeated
// for about a second when its error passes: a lost connection, a deadlock or lock timeout,
// a serialization failure, the plan of a table that has changed, or a locked SQLite file.
// It is not repeated once ctx has ended.
package oncesql

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/keytext"
)

// A Store keeps values in a table, one row for each key. [New] makes it. It is safe for
// concurrent use, also by many processes.
//
// The key of each row is compared with the requested key. If they differ although the
// column compares them as equal, as "A" and "a" under a collation that ignores case, the
// result is an error, unless [Options.FoldKeys] is set. The table of [Store.CreateTable]
// distinguishes all keys, including the empty one.
//
// The database refuses a key that the column cannot hold, with its own error. PostgreSQL
// has no keys with a NUL byte or invalid UTF-8. MySQL and SQLite have both in the table of
// CreateTable, unless the encoding of the SQLite file is UTF-16.
//
// Make a Store once, not for each request. In MySQL and SQLite it prepares its statements
// when they are first used, and the connections of db keep them until db is closed.
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

// New returns a Store in a table of db. The error names the option that cannot be used, or the
// path of what [fetchonce.Msgpack] or [fetchonce.JSON] cannot encode of a V.
// New does not query the database: the first Lookup, LookupMany or Create checks the
// table.
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
	e, err := encodingOf[V](opt.Codec)
	if err != nil {
		return nil, fmt.Errorf("oncesql: new: %w", err)
	}
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

// Lookup returns the value in the row of key, or [fetchonce.ErrNotFound] if there is no
// row. Errors of the driver and of Scan are returned unchanged. An error of this package
// names the key: the encoded value is NULL or cannot be decoded, the row is of another
// key, or the key has several rows because the column is not unique.
func (s *Store[V]) Lookup(ctx context.Context, key string) (V, error) {
	var r row[V]
	if err := s.guard.checkKey(ctx, key); err != nil {
		return r.value, err
	}
	err := repeat(ctx, func() (err error) {
		r, err = s.row(ctx, &s.lookup, key, key)
		return err
	})
	if err == nil && !r.found {
		err = fetchonce.ErrNotFound
	}
	return r.value, cmp.Or(err, r.err)
}

// Create inserts v for key, unless key has a row, and returns the value of the row that is
// kept. That value is always read from the database, so all creators of a key receive the
// same, as the columns and the codec represent it: a time may have whole microseconds.
// Changes by a trigger after the insert are seen in MySQL only.
//
// A creator that meets an uncommitted row waits for its commit. If the insert fails for
// any reason and key has a row then, Create returns the value of that row. Otherwise the
// error is the driver's. A row that violates another unique constraint is such an error.
//
// A value that the codec does not read back is refused before the insert.
//
// After an error, the row may exist: the answer may have been lost. Creating it again is
// safe.
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
		inserted, insertErr := s.insertRow(ctx, key, args)
		if inserted.found {
			return inserted.value, inserted.err
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
		kept, lookupErr := s.row(ctx, &s.lookup, key, key)
		switch {
		case kept.found:
			return kept.value, kept.err
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

// insertRow inserts a row unless its key has one, and returns the inserted row. MySQL
// returns no row from an insert: the lookup in Create finds it.
func (s *Store[V]) insertRow(ctx context.Context, key string, args []any) (row[V], error) {
	if s.dialect.onConflict {
		return s.row(ctx, &s.insert, key, args...)
	}
	return row[V]{}, s.insert.exec(ctx, args...)
}

// CreateTable makes the table of a Store whose value is one encoded column. An existing
// table of that name is left unchanged. Many processes may call it at once. A schema must
// exist. The error is the driver's, or says that Columns are set.
//
// Keys are compared byte by byte. The column is of type text, in MySQL varbinary(3072).
// PostgreSQL indexes keys of at most about 2,700 bytes.
//
// With [fetchonce.JSON] the value is of type text, in MySQL longtext, which the JSON
// functions of the database can read. With another codec it is bytea in PostgreSQL,
// longblob in MySQL and blob in SQLite.
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

// A row is what a statement returned for one key.
type row[V any] struct {
	found bool
	value V
	err   error // of reading the value; reading it again would fail, too
}

// row runs a statement that returns at most one row. The error is that of the statement.
func (s *Store[V]) row(ctx context.Context, st *statement, key string, args ...any) (row[V], error) {
	var none row[V]
	rows, err := st.query(ctx, args...)
	if err != nil {
		return none, err
	}
	// For the ways out in error, and for a Scan that panics.
	defer func() { _ = rows.Close() }()

	if !rows.Next() {
		return none, rows.Err()
	}
	r := row[V]{found: true}
	r.value, r.err = s.readRow(key, rows)
	if rows.Next() {
		return row[V]{found: true, err: severalRows(key)}, nil
	}
	// An insert counts only now. Its row may come before its end, and the end
	// may be a failed commit (SQLITE_BUSY, a deferred constraint).
	if err := cmp.Or(rows.Err(), rows.Close()); err != nil {
		return none, err
	}
	if r.err != nil {
		return row[V]{found: true, err: r.err}, nil
	}
	return r, nil
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
