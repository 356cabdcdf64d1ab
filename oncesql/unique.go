package oncesql

import (
	"context"
	"database/sql"
	"fmt"
	"sync/atomic"
)

// A guard sees to it that nothing is inserted in a table of MySQL whose key is
// not unique. The other databases refuse such an insert by themselves, as it
// names the key.
type guard struct {
	db      *sql.DB
	indexes string // the statement that lists them; empty where there is nothing to see to
	key     string // the name of the column
	dialect dialect

	seen atomic.Bool // that it is unique
}

// check returns an error if the table has no unique index of the key alone. It
// asks until it has seen one; a Store's first insert takes a round trip more.
func (g *guard) check(ctx context.Context, key string) error {
	if g.indexes == "" || g.seen.Load() {
		return nil
	}
	unique, err := g.unique(ctx)
	if err != nil {
		return err
	}
	if !unique {
		return fmt.Errorf("oncesql: create %q: the column %q has no unique index of its own, so a key could get several rows", key, g.key)
	}
	g.seen.Store(true)
	return nil
}

// unique reports whether there is a unique index of which the key is the first
// column, and no other column is in it.
func (g *guard) unique(ctx context.Context) (bool, error) {
	rows, err := g.db.QueryContext(ctx, g.indexes)
	if err != nil {
		return false, err
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		return false, err
	}
	if len(columns) < 5 {
		return false, fmt.Errorf("oncesql: %s: %d columns", g.indexes, len(columns))
	}
	var (
		notUnique bool
		index     string
		column    sql.NullString // NULL for an expression
		dest      = make([]any, len(columns))
		candidate = make(map[string]bool) // the indexes, and whether it is one as we want it
	)
	for i := range dest {
		dest[i] = skipped{}
	}
	dest[1], dest[2], dest[4] = &notUnique, &index, &column
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return false, err
		}
		_, second := candidate[index]
		candidate[index] = !second && !notUnique && g.dialect.sameName(column.String, g.key)
	}
	for _, ok := range candidate {
		if ok {
			return true, rows.Err()
		}
	}
	return false, rows.Err()
}
