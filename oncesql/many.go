package oncesql

import (
	"context"
	"errors"
	"iter"

	"github.com/fetchonce/fetchonce"
)

// manyBytes bounds the keys of one statement, as servers bound what they take
// at once: MySQL 5.7 takes 4 MiB, unless it is told otherwise.
const manyBytes = 2 << 20

// LookupMany returns the values of those of keys that have a row, each under
// its key as it was given. The error is as that of [Store.Lookup], or nil if
// keys are merely absent; a row for which Scan returns [fetchonce.ErrNotFound]
// is absent too.
//
// It takes one query, unless there are more keys than a statement of the
// database can have: 65,535 in PostgreSQL, 32,766 in SQLite, and 10,000 in
// MySQL, which goes through the whole table for many more. The queries are not
// in one transaction.
//
// Where the column takes several of keys for equal, the value may be under one
// of them only.
func (s *Store[V]) LookupMany(ctx context.Context, keys []string) (map[string]V, error) {
	l := many[V]{Store: s, state: make(map[string]presence, len(keys)), found: make(map[string]V, len(keys))}
	distinct := make([]string, 0, len(keys))
	for _, key := range keys {
		if _, ok := l.state[key]; !ok {
			l.state[key] = absent
			distinct = append(distinct, key)
		}
	}
	for some := range chunks(distinct, s.dialect.many) {
		if err := l.lookup(ctx, some); err != nil {
			return nil, err
		}
	}
	return l.found, nil
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

// presence says what is known of a key that was asked for.
type presence int

const (
	absent  presence = iota // has had no row so far
	present                 // has a row
)

// many is one LookupMany.
type many[V any] struct {
	*Store[V]
	state map[string]presence // of each key that was asked for
	found map[string]V
}

// lookup looks up keys in one query, except for those that the database writes
// in another way.
func (l *many[V]) lookup(ctx context.Context, keys []string) error {
	others, err := l.query(ctx, keys)
	if err != nil || !others {
		return err
	}
	// There are rows whose keys were not asked for in these letters: the column
	// ignores case, or is of type uuid and writes its own way, or char and pads.
	// Only the database knows which of ours it took for theirs.
	for _, key := range keys {
		if l.state[key] == present {
			continue
		}
		v, err := l.Lookup(ctx, key)
		switch {
		case err == nil:
			l.found[key] = v
		case !errors.Is(err, fetchonce.ErrNotFound):
			return err
		}
	}
	return nil
}

// query puts the values of keys in found, and reports whether there were other
// rows than theirs.
func (l *many[V]) query(ctx context.Context, keys []string) (others bool, err error) {
	args := l.arguments(keys)
	rows, err := l.db.QueryContext(ctx, l.lookupMany(len(args)), args...)
	if err != nil {
		return false, err
	}
	defer func() { _ = rows.Close() }() // see row
	for rows.Next() {
		var key string
		if err := rows.Scan(l.keyAlone(&key)...); err != nil {
			return false, err
		}
		state, asked := l.state[key]
		if !asked {
			others = true
			continue
		}
		if state == present {
			return false, severalRows(key)
		}
		l.state[key] = present
		v, err := l.read(key, func(dest ...any) error {
			return rows.Scan(append([]any{skipped{}}, dest...)...)
		})
		switch {
		case err == nil:
			l.found[key] = v
		case !errors.Is(err, fetchonce.ErrNotFound):
			return false, err
		}
	}
	return others, errors.Join(rows.Err(), rows.Close())
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

// keyAlone returns destinations for a row of which only the key is read.
func (l *many[V]) keyAlone(key *string) []any {
	dest := make([]any, 1+l.columns)
	dest[0] = key
	for i := range l.columns {
		dest[1+i] = skipped{}
	}
	return dest
}
