package oncesql

import (
	"context"
	"database/sql"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/bisect"
)

// manyBytes limits the keys of one statement. Servers limit the size of a statement: by
// default, MySQL 5.7 accepts 4 MiB.
const manyBytes = 2 << 20

// LookupMany returns the values of the keys that have a row. The keys of the map are those
// that the caller gave. A key without a row is not in the map, and is no error. The same
// holds for a row for which Scan returns [fetchonce.ErrNotFound].
//
// If the database refuses a key, or a row cannot be read, only that key fails. The error is
// then a [*fetchonce.ManyError] with the error of each failed key, as [Store.Lookup]
// returns it, and the map has the other values. If the connection is lost, all remaining
// keys have that error. If ctx ends, LookupMany returns ctx.Err() and no map.
//
// LookupMany sends one query for up to 65,535 keys in PostgreSQL, 32,766 in SQLite and
// 10,000 in MySQL, which would scan the whole table for longer lists. Several queries are
// not one transaction. If a query fails because of one key, LookupMany queries halves of
// the keys until it finds that key. If many keys fail, the rest fail with the last error.
//
// With [Options.FoldKeys], the column may compare several of the keys as equal. Keys that
// differ only in case or in trailing blanks all receive the value. Of other such keys,
// perhaps only one does.
func (s *Store[V]) LookupMany(ctx context.Context, keys []string) (map[string]V, error) {
	l := many[V]{Store: s, found: make(map[string]V, len(keys)), errs: make(map[string]error)}
	if len(keys) == 0 {
		return l.found, nil
	}
	table, err := s.guard.check(ctx)
	if err != nil {
		return nil, err
	}
	fitting := slices.DeleteFunc(distinct(keys), func(key string) bool {
		err := table.fits(key)
		if err != nil {
			l.errs[key] = err
		}
		return err != nil
	})
	parts := slices.Collect(chunks(fitting, s.dialect.many))
	failed := bisect.Keys(parts,
		func(keys []string) error { return l.lookup(ctx, keys) },
		func(err error) bool { return ctx.Err() != nil || isCommon(err) })
	if err := ctx.Err(); err != nil && len(failed) > 0 {
		return nil, err
	}
	maps.Copy(l.errs, failed)
	if len(l.errs) > 0 {
		return l.found, &fetchonce.ManyError{Errors: l.errs}
	}
	return l.found, nil
}

// distinct returns each of keys once.
func distinct(keys []string) []string {
	seen := make(map[string]bool, len(keys))
	each := make([]string, 0, len(keys))
	for _, key := range keys {
		if !seen[key] {
			seen[key] = true
			each = append(each, key)
		}
	}
	return each
}

// chunks yields the keys in parts of at most n keys and manyBytes. A longer key is a part
// of its own.
func chunks(keys []string, n int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		from, bytes := 0, 0
		for i, key := range keys {
			if i > from && (i-from == n || bytes+len(key) > manyBytes) {
				if !yield(keys[from:i]) {
					return
				}
				from, bytes = i, 0
			}
			bytes += len(key)
		}
		if from < len(keys) {
			yield(keys[from:])
		}
	}
}

// A many is one call of LookupMany.
type many[V any] struct {
	*Store[V]
	found map[string]V
	errs  map[string]error // of rows that cannot be read
}

// lookup looks up keys in one query, and again one by one those whose row may have another
// spelling. The error is that of the query.
func (l *many[V]) lookup(ctx context.Context, keys []string) error {
	var found rowsFound
	err := repeat(ctx, func() (err error) {
		found, err = l.query(ctx, keys)
		return err
	})
	if err != nil {
		return err
	}
	// Others have keys in a spelling that was not requested: the column ignores case,
	// formats a uuid, or pads a char. Only the database knows to which requested key such
	// a row belongs. The same holds for a key that may equal another key with a row.
	folded := make(map[string]bool)
	for _, key := range keys {
		if found.of[key] {
			folded[fold(key)] = true
		}
	}
	for _, key := range keys {
		if found.of[key] || !found.others && !folded[fold(key)] {
			continue
		}
		v, err := l.Lookup(ctx, key)
		switch {
		case err == nil:
			l.found[key] = v
		case ctx.Err() != nil || isCommon(err):
			return err
		case !errors.Is(err, fetchonce.ErrNotFound):
			l.errs[key] = err
		}
	}
	return nil
}

// fold returns a key as the usual collations compare it: without case and trailing blanks.
func fold(key string) string { return strings.ToLower(strings.TrimRight(key, " ")) }

// rowsFound says which rows one query returned.
type rowsFound struct {
	of     map[string]bool // whether a requested key has a row in the same letters
	others bool            // there were rows of other keys
}

// query reads the rows of keys.
func (l *many[V]) query(ctx context.Context, keys []string) (rowsFound, error) {
	args := l.arguments(keys)
	rows, err := l.db.QueryContext(ctx, l.lookupMany(len(args)), args...)
	if err != nil {
		return rowsFound{}, err
	}
	defer func() { _ = rows.Close() }() // see row
	found := rowsFound{of: make(map[string]bool, len(keys))}
	for _, key := range keys {
		found.of[key] = false
	}
	for rows.Next() {
		var key string
		if err := rows.Scan(l.keyAlone(&key)...); err != nil {
			return rowsFound{}, err
		}
		if hasRow, requested := found.of[key]; !requested {
			found.others = true
			continue
		} else if hasRow {
			delete(l.found, key)
			l.errs[key] = severalRows(key)
			continue
		}
		found.of[key] = true
		l.note(key, rows)
	}
	return found, errors.Join(rows.Err(), rows.Close())
}

// note records the value or the error of key.
func (l *many[V]) note(key string, rows *sql.Rows) {
	v, err := l.value(key, rows)
	switch {
	case err == nil:
		l.found[key] = v
	case !errors.Is(err, fetchonce.ErrNotFound):
		l.errs[key] = err
	}
}

// arguments returns the keys, with the last one repeated until their number is a power of
// two or the limit of the dialect. So a driver that keeps statements, such as pgx, keeps
// some twenty of them, not thousands.
func (l *many[V]) arguments(keys []string) []any {
	size := 1
	for size < len(keys) {
		size *= 2
	}
	args := make([]any, min(size, l.dialect.many))
	for i := range args {
		args[i] = keys[min(i, len(keys)-1)]
	}
	return args
}
