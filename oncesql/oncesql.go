// Package oncesql keeps a Loader's values in a table of a SQL database.
//
// A [Store] is a [fetchonce.Store] over [database/sql]. The unique key of the table makes
// it safe, even if the lease in Redis is lost: if many processes create a key at once, the
// table keeps one row, and all processes receive its value.
//
// A value is either one encoded column in a table that [Store.CreateTable] creates, or
// several columns of a table of your own. Import the database's driver yourself: this
// package imports none.
//
// Errors of the database and its driver are returned unchanged. A statement is repeated
// for about a second if its error may pass: a lost connection, a deadlock, a lock timeout,
// a serialization failure, an outdated plan, or a locked SQLite file. It is not repeated
// after ctx has ended.
package oncesql

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/keytext"
)

// A Store keeps values in a table, one row for each key. [New] returns one. It is safe for
// concurrent use, also by many processes.
//
// A Store compares the key of each row with the requested key. A column may compare two
// keys as equal, for example "A" and "a" under a collation that ignores case. If the keys
// differ, the Store returns an error, unless [Options.FoldKeys] is set. The table of
// [Store.CreateTable] distinguishes all keys, including the empty one.
//
// The database refuses a key that the column cannot hold, with its own error. PostgreSQL
// refuses a NUL byte and invalid UTF-8. In the table of CreateTable, MySQL and SQLite
// accept both, unless the SQLite file is encoded in UTF-16.
//
// Create a Store once, not for each request. In MySQL and SQLite it prepares each
// statement at its first use, and the connections of db keep it until db is closed.
type Store[V any] struct {
	db      *sql.DB
	dialect dialect

	// They convert a value to its columns, and back.
	write func(key string, v V) ([]any, error)
	read  func(key string, scan func(dest ...any) error) (V, error)

	// Statements.
	lookup     statement             // returns the row of a key: its own key and the columns
	lookupMany func(keys int) string // returns the rows of a number of keys
	insert     statement             // takes a key and the columns; see insertRow
	create     string                // creates the table; empty for a table of the user's own

	columns int   // of one value
	fold    bool  // keys that the column compares as equal are one key
	guard   guard // refuses an unsuitable table
}

// New returns a Store in a table of db. The error names the invalid option, or the path of
// the part of V that [fetchonce.Msgpack] or [fetchonce.JSON] cannot encode. New does not
// query the database: the first Lookup, LookupMany or Create checks the table.
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

// prepare builds the statements. cast follows each parameter except that of the key.
func (s *Store[V]) prepare(table, key string, columns []string, cast string) {
	d := s.dialect
	s.columns = len(columns)
	s.lookup = statement{db: s.db, text: d.lookup(table, key, columns), prepared: d.prepared}
	s.lookupMany = func(keys int) string { return d.lookupMany(table, key, columns, keys) }
	s.insert = statement{db: s.db, text: d.insert(table, key, columns, cast), prepared: d.prepared}
	s.guard.db, s.guard.dialect, s.guard.table, s.guard.key, s.guard.fold = s.db, d, table, key, s.fold
}

// Lookup returns the value in the row of key, or [fetchonce.ErrNotFound] if there is no
// row. Errors of the driver and of Scan are returned unchanged. Lookup also fails if the
// encoded value is NULL or cannot be decoded, or if the row has another key. If the column
// is not unique and the key has several rows, that is an error, too.
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

// Create inserts v for key, unless key has a row, and returns the value of the row of key.
// That value is always read from the database, so all callers receive the same one. The
// columns and the codec may change it: a time may have whole microseconds. Only in MySQL
// does the value include changes that a trigger makes after the insert.
//
// Create waits for the commit of another transaction that has inserted key. If the insert
// fails for any reason and key has a row after that, Create returns the value of that row.
// Otherwise it returns the driver's error, for example that of another unique constraint.
//
// Create refuses a value that the codec cannot read back.
//
// After an error the row may exist, because the answer may have been lost. It is safe to
// call Create again.
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
		// Either another transaction has inserted the key and the insert waited for
		// its commit, or the insert failed. A lookup decides: databases and drivers
		// report an existing row in many ways, and the answer to our own insert may
		// be lost.
		//
		// The lookup is a transaction of its own, with a new snapshot, so it sees the
		// row at READ COMMITTED and at REPEATABLE READ. In the statement of the
		// insert, or in one transaction at REPEATABLE READ, it would see the state
		// from before the wait.
		//
		// ON CONFLICT DO UPDATE of a column to itself would return the row in one
		// statement. But it is a write: it waits for every transaction that has
		// locked the row, leaves a dead row behind, and fires update triggers.
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
		// The row was deleted after the insert met it, or an error may pass. Several
		// deletions in a row are rare; many mean that lookups cannot see the row.
		wait := passes(insertErr) || passes(lookupErr)
		if attempt == attempts || wait && !pause(ctx, attempt) {
			return zero, cmp.Or(insertErr, lookupErr, fmt.Errorf("oncesql: create %s: no row was there after an insert, %d times", keytext.Quote(key), attempts))
		}
	}
}

// insertRow inserts a row unless its key has one, and returns the inserted row. In MySQL it
// returns none: the lookup in Create finds the row.
func (s *Store[V]) insertRow(ctx context.Context, key string, args []any) (row[V], error) {
	if s.dialect.onConflict {
		return s.row(ctx, &s.insert, key, args...)
	}
	return row[V]{}, s.insert.exec(ctx, args...)
}

// CreateTable creates the table of a Store whose value is one encoded column. It does not
// change an existing table of that name. The schema must exist. Many processes may call
// CreateTable at once. The error is the driver's, or says that Columns are set.
//
// The key column compares keys byte by byte. It has the type text, in MySQL
// varbinary(3072). PostgreSQL indexes keys of at most about 2,700 bytes.
//
// With [fetchonce.JSON] the value column has the type text, in MySQL longtext, and the JSON
// functions of the database can read it. With another codec it is bytea in PostgreSQL,
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
	// For returns with an error, and for a Scan that panics.
	defer func() { _ = rows.Close() }()

	if !rows.Next() {
		return none, rows.Err()
	}
	r := row[V]{found: true}
	r.value, r.err = s.readRow(key, rows)
	if rows.Next() {
		return row[V]{found: true, err: severalRows(key)}, nil
	}
	// Only now is an insert done. Its row may arrive before its commit fails
	// (SQLITE_BUSY, a deferred constraint).
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

// keyAlone returns destinations that read only the key of a row.
func (s *Store[V]) keyAlone(key *string) []any {
	dest := make([]any, 1+s.columns)
	dest[0] = key
	for i := range s.columns {
		dest[1+i] = skipped{}
	}
	return dest
}

// otherKey does not quote the row's key, which may belong to another user.
func otherKey(key string) error {
	return fmt.Errorf("oncesql: the row for %s has another key, which the column compares as equal; see Options.FoldKeys", keytext.Quote(key))
}

func severalRows(key string) error {
	return fmt.Errorf("oncesql: %s has several rows: the column of keys is not unique", keytext.Quote(key))
}

// skipped is the destination of a column that is not read.
type skipped struct{}

// Scan implements [database/sql.Scanner].
func (skipped) Scan(any) error { return nil }
