//go:build unix

// Package origin is the source of truth of a chaos run: tables in a PostgreSQL that has no faults.
package origin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // as "pgx"

	"github.com/fetchonce/fetchonce/chaos/history"
)

// A Source is the source of truth: a table with the version of each key. Another table has every
// version that was ever committed, with its writer.
type Source struct {
	DB *sql.DB
}

// CreateTables makes the tables.
func (s *Source) CreateTables() error {
	for _, statement := range []string{
		`CREATE TABLE things (key text PRIMARY KEY, version bigint NOT NULL)`,
		`CREATE TABLE writes (key text, version bigint, process text, writer text, PRIMARY KEY (key, version))`,
		`CREATE TABLE counters (name text PRIMARY KEY, n bigint NOT NULL DEFAULT 0, fence bigint NOT NULL DEFAULT 0)`,
		`CREATE TABLE sections (name text, fence bigint, process text, PRIMARY KEY (name, fence))`,
	} {
		if _, err := s.DB.Exec(statement); err != nil {
			return err
		}
	}
	return nil
}

// Open opens the source at a DSN.
func Open(dsn string) (*Source, error) {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	return &Source{db}, nil
}

// Create makes the first version of a key.
func (s *Source) Create(ctx context.Context, key string) error {
	_, err := s.DB.ExecContext(ctx, `INSERT INTO things VALUES ($1, 1)`, key)
	return err
}

// Version returns the version of a key.
func (s *Source) Version(ctx context.Context, key string) (version int64, err error) {
	err = s.DB.QueryRowContext(ctx, `SELECT version FROM things WHERE key = $1`, key).Scan(&version)
	return version, err
}

// Next writes the next version of e.Key. It records that before and after the commit. If before is not
// nil, Next calls it instead of committing; before calls commit.
func (s *Source) Next(ctx context.Context, log *history.Log, process string, e *history.Event, before func(commit func() error) error) error {
	tx, err := s.DB.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := tx.QueryRowContext(ctx, `UPDATE things SET version = version + 1 WHERE key = $1 RETURNING version`, e.Key).Scan(&e.Version); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO writes VALUES ($1, $2, $3, $4)`, e.Key, e.Version, process, e.Writer); err != nil {
		return err
	}
	e.Op = history.Committing
	log.Write(*e)
	commit := tx.Commit
	if before != nil {
		commit = func() error { return before(tx.Commit) }
	}
	if err := commit(); err != nil {
		return err
	}
	e.Op = history.Committed
	log.Write(*e)
	return nil
}

// updateMark is the last letter of the name of a write in an Update.
const updateMark = "u"

// Left returns the last commit for each key of a process that has died. It waits for commits that are
// still running, which hold row locks.
func (s *Source) Left(ctx context.Context, process string) ([]history.Event, error) {
	if _, err := s.DB.ExecContext(ctx, `SELECT FROM things ORDER BY key FOR UPDATE`); err != nil {
		return nil, err
	}
	rows, err := s.DB.QueryContext(ctx,
		`SELECT DISTINCT ON (key) key, version, writer FROM writes WHERE process = $1 ORDER BY key, version DESC`, process)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var events []history.Event
	for rows.Next() {
		e := history.Event{Process: process, Op: history.Committed}
		if err := rows.Scan(&e.Key, &e.Version, &e.Writer); err != nil {
			return nil, err
		}
		e.Update = strings.HasSuffix(e.Writer, updateMark)
		events = append(events, e)
	}
	return events, errors.Join(rows.Err(), rows.Close())
}

// Writer returns the name of the nth write of a process.
func Writer(process string, n int64, update bool) string {
	name := fmt.Sprintf("%s/%d", process, n)
	if update {
		name += updateMark
	}
	return name
}
