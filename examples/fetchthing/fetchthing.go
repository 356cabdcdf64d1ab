// Fetchthing shows fetch_remote_thing(name) before and after fetchonce. The function reads
// a thing from the database; if there is no row, it calls a slow remote API and inserts a
// row. Many callers in several processes ask for the same names at the same moment.
//
//	go run ./examples/fetchthing         # needs nothing installed
//	go run ./examples/fetchthing -help
//
// This file is the example. The other files run it and print what it cost.
package main

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

// before is without fetchonce. All callers that find no row call the API. Every insert but
// the first breaks the table's unique key.
type before struct {
	db     *sql.DB
	table  string
	remote remote
}

func (b before) fetchRemoteThing(ctx context.Context, name string) (Thing, error) {
	thing, err := selectThing(ctx, b.db, b.table, name)
	if !errors.Is(err, sql.ErrNoRows) {
		return thing, err
	}
	if thing, err = b.remote.fetch(ctx, name); err != nil {
		return Thing{}, err
	}
	return thing, insertThing(ctx, b.db, b.table, thing)
}

// after is with fetchonce. One process calls the API and inserts the row, once for each name.
// Every other caller, in every process, waits for that result.
type after struct {
	things *fetchonce.Loader[Thing]
	remote remote
}

func (a after) fetchRemoteThing(ctx context.Context, name string) (Thing, error) {
	return a.things.Get(ctx, name, a.remote.fetch)
}

// openThings makes the Loader. Each process does so once, at its start. The Store is the table.
func openThings(rdb *redis.Client, prefix string, db *sql.DB, table oncesql.Options[Thing]) (*fetchonce.Loader[Thing], error) {
	store, err := oncesql.New(db, table)
	if err != nil {
		return nil, err
	}
	return fetchonce.New(rdb, fetchonce.Options[Thing]{
		Prefix: prefix,
		Store:  store,
		Lease:  2 * time.Second, // how long others wait for a process that was killed
		// Here, servers and hundreds of callers may share a small machine. A slow Redis
		// must not count as unavailable.
		RedisTimeout: 5 * time.Second,
	})
}
