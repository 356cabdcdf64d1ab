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

// manyBytes bounds the keys of one statement, as servers bound what they take
// at once: MySQL 5.7 takes 4 MiB, unless it is told otherwise.
const manyBytes = 2 << 20

// LookupMany returns the values of the keys that have a row, by the key as it was given. A
// key without a row is not in the map, and is no error. A row for which Scan returns
// [fetchonce.ErrNotFound] counts as absent.
//
// A key that the database refuses, or a row that cannot be read, fails alone. The error is
// then a [*fetchonce.ManyError] with the error of each failed key, as [Store.Lookup]
// returns it, and the map has the other values. When the connection is lost, the
// remaining keys have that error. When ctx ends, the error is its own, without a map.
//
// LookupMany makes one query for up to 65,535 keys in PostgreSQL, 32,766 in SQLite and
// 10,000 in MySQL, which scans the whole table for many more. Several queries are not one
// transaction. After a query that fails for one of its keys, halves of them are queried
// until the key is found. When many keys fail, the rest fails with the last error.
//
// If the column compares several of the keys as equal, as [Options.FoldKeys] allows, each
// receives the value if they differ only in case or in trailing blanks. Otherwise one of
// them may receive it.
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

// chunks yields keys in parts of at most n of them and manyBytes, or of one that
// is longer.
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

// many is one LookupMany.
type many[V any] struct {
	*Store[V]
	found map[string]V
	errs  map[string]error // of rows that cannot be read
}

// lookup looks up keys in one query, except for those that the database writes
// in another way. An error is one of the query.
func (l *many[V]) lookup(ctx context.Context, keys []string) error {
	var found rowsFound
	err := repeat(ctx, func() (err error) {
		found, err = l.query(ctx, keys)
		return err
	})
	if err != nil {
		return err
	}
	// With others, there are rows whose keys were not asked for in these letters:
	// the column ignores case, or is of type uuid and writes its own way, or char and
	// pads. Only the database knows which of ours it took for theirs. So it is with a
	// key that the column may take for one which has a row.
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

// fold returns what the usual collations leave of a key: not its case, and no
// blanks at its end.
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

// note notes the value, or the error, of key.
func (l *many[V]) note(key string, rows *sql.Rows) {
	v, err := l.value(key, rows)
	switch {
	case err == nil:
		l.found[key] = v
	case !errors.Is(err, fetchonce.ErrNotFound):
		l.errs[key] = err
	}
}

// arguments returns keys, and the last of them again until their number is a
// power of two, or as many as there may be. Whoever remembers statements, such
// as pgx, then has to remember some twenty of ours, and not thousands.
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
