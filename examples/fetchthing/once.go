package main

import (
	"context"
	"database/sql"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

// A Thing is what the remote API knows by a name.
type Thing struct {
	Name string `json:"name"`
	Call int    `json:"call"` // the number of the remote call that brought it
}

// things gets things from Redis, from the database or from the remote API.
type things struct {
	loader *fetchonce.Loader[Thing]
	remote remote
}

// fetchRemoteThing returns the thing of a name. Of all callers in all processes,
// one fetches it and inserts it; the others wait for what it finds.
func (t *things) fetchRemoteThing(ctx context.Context, name string) (Thing, error) {
	return t.loader.Get(ctx, name, t.remote.thing)
}

func openThings(rdb *redis.Client, db *sql.DB, at place, remote remote) (*things, error) {
	store, err := oncesql.New(db, oncesql.Options[Thing]{Dialect: at.dialect(), Table: at.Table})
	if err != nil {
		return nil, err
	}
	loader, err := fetchonce.New(rdb, fetchonce.Options[Thing]{
		Prefix: at.Prefix,
		Store:  store,
		Lease:  2 * time.Second, // so long does a worker that was killed block a name
		// Hundreds of callers start at once here, maybe on a small machine that
		// runs the servers, too. That Redis is slow then is no reason to go on
		// without it.
		RedisTimeout: 5 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return &things{loader: loader, remote: remote}, nil
}
