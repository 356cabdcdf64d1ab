package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/fetchonce/fetchonce/oncesql"
)

// A place is where processes meet: a table of a database and a prefix in Redis.
type place struct {
	Redis  string // URL
	Driver string // of database/sql
	DSN    string
	Table  string
	Prefix string
}

func (p place) dialect() oncesql.Dialect {
	if p.Driver == "pgx" {
		return oncesql.Postgres
	}
	return oncesql.SQLite
}

// open opens both, and is sure that they are there.
func (p place) open(ctx context.Context) (*redis.Client, *sql.DB, error) {
	opt, err := redis.ParseURL(p.Redis)
	if err != nil {
		return nil, nil, err
	}
	logging.Disable() // the pool logs what comes back as an error, too
	rdb := redis.NewClient(opt)
	if err := rdb.Ping(ctx).Err(); err != nil {
		_ = rdb.Close()
		return nil, nil, fmt.Errorf("redis at %s: %w", opt.Addr, err)
	}
	db, err := sql.Open(p.Driver, p.DSN)
	if err != nil {
		_ = rdb.Close()
		return nil, nil, err
	}
	// A PostgreSQL has a hundred connections for all processes together.
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	if err := db.PingContext(ctx); err != nil {
		_ = rdb.Close()
		_ = db.Close()
		return nil, nil, fmt.Errorf("database: %w", err)
	}
	return rdb, db, nil
}

// createTable makes the table: "key" is its unique key, "value" is JSON.
func (p place) createTable(ctx context.Context, db *sql.DB) error {
	store, err := oncesql.New(db, oncesql.Options[Thing]{Dialect: p.dialect(), Table: p.Table})
	if err != nil {
		return err
	}
	return store.CreateTable(ctx)
}

// rows returns how many rows there are for a name.
func (p place) rows(ctx context.Context, db *sql.DB, name string) (n int, err error) {
	err = db.QueryRowContext(ctx, fmt.Sprintf(`SELECT count(*) FROM %q WHERE "key" = $1`, p.Table), name).Scan(&n)
	return n, err
}

// cleanUp removes the table, and all keys of the prefix.
func (p place) cleanUp(ctx context.Context, rdb *redis.Client, db *sql.DB) error {
	_, err := db.ExecContext(ctx, fmt.Sprintf(`DROP TABLE %q`, p.Table))
	return errors.Join(err, deleteKeys(ctx, rdb, p.Prefix+"*"))
}

func deleteKeys(ctx context.Context, rdb *redis.Client, pattern string) error {
	keys := rdb.Scan(ctx, 0, pattern, 1000).Iterator()
	for keys.Next(ctx) {
		if err := rdb.Unlink(ctx, keys.Val()).Err(); err != nil {
			return err
		}
	}
	return keys.Err()
}
