package oncesql

import (
	"context"
	"database/sql"
	"sync/atomic"
)

// A statement is sent many times.
type statement struct {
	db   *sql.DB
	text string

	// prepared says that this package prepares the statement, at its first use. A
	// [sql.Stmt] then prepares itself on each further connection. Otherwise the driver
	// decides; see dialect.prepared.
	prepared bool
	stmt     atomic.Pointer[sql.Stmt] // nil until it is prepared; closed with db
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

// prepare returns the prepared statement. If it fails, for example because the table does
// not exist yet, the next caller tries again.
func (st *statement) prepare(ctx context.Context) (*sql.Stmt, error) {
	if stmt := st.stmt.Load(); stmt != nil {
		return stmt, nil
	}
	// Not under a lock: callers would wait for another caller's context.
	stmt, err := st.db.PrepareContext(ctx, st.text)
	if err != nil {
		return nil, err
	}
	if !st.stmt.CompareAndSwap(nil, stmt) {
		_ = stmt.Close() // another caller was faster
	}
	return st.stmt.Load(), nil
}
