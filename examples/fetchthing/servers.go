package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/examples/internal/harness"
	"github.com/fetchonce/fetchonce/oncesql"
)

// servers are the Redis and the database of a run.
type servers struct {
	run      string // the name of this run
	redis    *harness.Redis
	database database
	db       *sql.DB
}

// startServers connects to the servers that the flags name, and starts the others.
func startServers(ctx context.Context, set settings) (s *servers, err error) {
	s = &servers{run: harness.RunID()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if s.redis, err = harness.StartRedis(ctx, set.redis); err != nil {
		return s, err
	}
	if s.database, err = newDatabase(set.dsn); err != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeout(ctx, harness.Patience)
	defer cancel()
	s.db, err = s.database.open(ctx)
	return s, err
}

func (s *servers) stop() (err error) {
	if s.db != nil {
		err = s.db.Close()
	}
	if s.redis != nil {
		err = errors.Join(err, s.redis.Stop())
	}
	if s.database.directory != "" {
		err = errors.Join(err, os.RemoveAll(s.database.directory))
	}
	return err
}

// A place is what the processes of one round share: keys in Redis and a table.
type place struct {
	Redis    string // URL
	Prefix   string
	Database database
	Table    string
}

// newPlace makes an empty place.
func (s *servers) newPlace(ctx context.Context, purpose string) (place, error) {
	at := place{
		Redis:    s.redis.URL,
		Prefix:   "fetchthing:" + s.run + ":" + purpose,
		Database: s.database,
		Table:    "things_" + s.run + "_" + purpose,
	}
	store, err := oncesql.New(s.db, s.database.table(at.Table))
	if err != nil {
		return at, err
	}
	return at, store.CreateTable(ctx)
}

// remove deletes the keys and the table of a place, also after ctx has ended.
func (s *servers) remove(ctx context.Context, at place) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), harness.Patience)
	defer cancel()
	_, err := s.db.ExecContext(ctx, fmt.Sprintf(`DROP TABLE %q`, at.Table))
	return errors.Join(err, s.redis.DeleteKeys(ctx, at.Prefix))
}

// connections are what a process needs to work at a place.
type connections struct {
	db     *sql.DB
	things *fetchonce.Loader[Thing]
	close  func() error
}

// open connects this process to a place.
func (p place) open(ctx context.Context) (*connections, error) {
	rdb, err := harness.OpenRedis(ctx, p.Redis)
	if err != nil {
		return nil, err
	}
	db, err := p.Database.open(ctx)
	if err != nil {
		return nil, errors.Join(err, rdb.Close())
	}
	things, err := openThings(rdb, p.Prefix, db, p.Database.table(p.Table))
	if err != nil {
		return nil, errors.Join(err, db.Close(), rdb.Close())
	}
	return &connections{db: db, things: things, close: func() error {
		return errors.Join(things.Close(), db.Close(), rdb.Close())
	}}, nil
}
