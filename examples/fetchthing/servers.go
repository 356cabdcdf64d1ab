package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// servers are the Redis and the database of a run, as this process sees them.
type servers struct {
	redisName, databaseName string // for people

	at  place // without table and prefix
	rdb *redis.Client
	db  *sql.DB

	number    string // of this run
	miniredis *miniredis.Miniredis
	directory string // of the SQLite file
}

// patience is how long a server may take to answer, and to be cleaned.
const patience = 10 * time.Second

// startServers connects to the servers that were named, and starts the others.
func startServers(ctx context.Context, set settings) (*servers, error) {
	s := &servers{number: strings.ToLower(rand.Text()[:8])}
	if err := errors.Join(s.startRedis(set.redis), s.startDatabase(set.dsn)); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	if s.rdb, s.db, err = s.at.open(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *servers) startRedis(real string) error {
	if real != "" {
		s.redisName, s.at.Redis = "a real server", real
		return nil
	}
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return fmt.Errorf("miniredis: %w", err)
	}
	m.ClockTTL(true) // its keys do not expire by themselves otherwise
	s.miniredis = m
	s.redisName, s.at.Redis = "miniredis", "redis://"+m.Addr()
	return nil
}

func (s *servers) startDatabase(real string) error {
	if real != "" {
		s.databaseName, s.at.Driver, s.at.DSN = "PostgreSQL", "pgx", real
		return nil
	}
	dir, err := os.MkdirTemp("", "fetchthing")
	if err != nil {
		return err
	}
	s.directory = dir
	s.databaseName, s.at.Driver = "SQLite", "sqlite"
	s.at.DSN = sqliteDSN(filepath.Join(dir, "things.db"))
	return nil
}

// sqliteDSN names a file as processes should that share it: who finds it locked
// waits, and readers do not lock it.
func sqliteDSN(file string) string {
	path := filepath.ToSlash(file)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/…
	}
	query := url.Values{"_pragma": {"busy_timeout(30000)", "journal_mode(wal)", "synchronous(normal)"}}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String()
}

// stop removes what the run has made, but for the places.
func (s *servers) stop() (err error) {
	if s.rdb != nil {
		err = errors.Join(s.rdb.Close(), s.db.Close())
	}
	if s.miniredis != nil {
		s.miniredis.Close()
	}
	if s.directory != "" {
		err = errors.Join(err, os.RemoveAll(s.directory))
	}
	return err
}

// newPlace makes a place that nobody else uses. The function that it returns
// removes it, also after ctx has ended.
func (s *servers) newPlace(ctx context.Context, purpose string) (place, func() error, error) {
	at := s.at
	at.Table = "things_" + s.number + "_" + purpose
	at.Prefix = "fetchthing:" + s.number + ":" + purpose
	if err := at.createTable(ctx, s.db); err != nil {
		return at, nil, err
	}
	return at, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		return at.cleanUp(ctx, s.rdb, s.db)
	}, nil
}
