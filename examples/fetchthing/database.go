package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "modernc.org/sqlite"             // the driver "sqlite"

	"github.com/fetchonce/fetchonce/oncesql"
)

// A database is a SQLite file or a PostgreSQL server.
type database struct {
	Driver string // of database/sql
	DSN    string

	directory string // of the SQLite file, if this run made it
}

// newDatabase returns the PostgreSQL at dsn. If dsn is "", it returns a SQLite file in a
// new directory.
func newDatabase(dsn string) (database, error) {
	if dsn != "" {
		return database{Driver: "pgx", DSN: dsn}, nil
	}
	directory, err := os.MkdirTemp("", "fetchthing")
	if err != nil {
		return database{}, err
	}
	return database{Driver: "sqlite", DSN: sqliteDSN(filepath.Join(directory, "things.db")), directory: directory}, nil
}

// sqliteDSN names a file that processes share: a locked file makes them wait, and readers
// do not lock it.
func sqliteDSN(file string) string {
	path := filepath.ToSlash(file)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/…
	}
	query := url.Values{"_pragma": {"busy_timeout(30000)", "journal_mode(wal)", "synchronous(normal)"}}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String()
}

func (d database) name() string {
	if d.Driver == "pgx" {
		return "PostgreSQL"
	}
	return "SQLite"
}

// table describes a table for oncesql: "key" is its unique key, "value" is JSON.
func (d database) table(name string) oncesql.Options[Thing] {
	dialect := oncesql.SQLite
	if d.Driver == "pgx" {
		dialect = oncesql.Postgres
	}
	return oncesql.Options[Thing]{Dialect: dialect, Table: name}
}

// open connects to the database.
func (d database) open(ctx context.Context) (*sql.DB, error) {
	db, err := sql.Open(d.Driver, d.DSN)
	if err != nil {
		return nil, err
	}
	// PostgreSQL has a hundred connections for all processes together.
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	if err := db.PingContext(ctx); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	return db, nil
}

func selectThing(ctx context.Context, db *sql.DB, table, name string) (thing Thing, err error) {
	var value []byte
	row := db.QueryRowContext(ctx, fmt.Sprintf(`SELECT "value" FROM %q WHERE "key" = $1`, table), name)
	if err := row.Scan(&value); err != nil {
		return Thing{}, err
	}
	return thing, json.Unmarshal(value, &thing)
}

func insertThing(ctx context.Context, db *sql.DB, table string, thing Thing) error {
	value, err := json.Marshal(thing)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %q ("key", "value") VALUES ($1, $2)`, table), thing.Name, string(value))
	return err
}

func countRows(ctx context.Context, db *sql.DB, table, name string) (n int, err error) {
	err = db.QueryRowContext(ctx, fmt.Sprintf(`SELECT count(*) FROM %q WHERE "key" = $1`, table), name).Scan(&n)
	return n, err
}
