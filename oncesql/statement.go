package oncesql

import (
	"context"
	"database/sql"
	"sync/atomic"
)

// A statement is sent over and over.
type statement struct {
	db   *sql.DB
	text string

	// prepared says that we prepare it, which is done once, by the first who runs
	// it: a [sql.Stmt] prepares itself on each further connection that it comes
	// to. Otherwise that is up to the driver. See dialect.prepared.
	prepared bool
	stmt     atomic.Pointer[sql.Stmt] // nil until then; closed with db
}

func (st *statement) query(ctx context.Context, args ...any) (*sql.Rows, error) {
	if !st.prepared {
		return st.db.QueryContext(ctx, st.text, args...)
	}
	stmt, err := st.prepare(ctx)
	if err != nil {
		return nil, err
	}
	return stmt.QueryContext(ctx, args...)
}

func (st *statement) exec(ctx context.Context, args ...any) error {
	if !st.prepared {
		_, err := st.db.ExecContext(ctx, st.text, args...)
		return err
	}
	stmt, err := st.prepare(ctx)
	if err != nil {
		return err
	}
	_, err = stmt.ExecContext(ctx, args...)
	return err
}

// prepare returns the prepared statement. One that could not be prepared, as the
// table is not there yet, is tried again by the next caller.
func (st *statement) prepare(ctx context.Context) (*sql.Stmt, error) {
	if stmt := st.stmt.Load(); stmt != nil {
		return stmt, nil
	}
	// Not under a lock, which would have callers wait on another's context.
	stmt, err := st.db.PrepareContext(ctx, st.text)
	if err != nil {
		return nil, err
	}
	if !st.stmt.CompareAndSwap(nil, stmt) {
		_ = stmt.Close() // another was quicker
	}
	return st.stmt.Load(), nil
}
