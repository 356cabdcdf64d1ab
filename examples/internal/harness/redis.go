package harness

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

// A Redis is the server of a run and a client of it.
type Redis struct {
	Name   string // for messages
	URL    string
	Client *redis.Client

	embedded *miniredis.Miniredis
}

// StartRedis connects to the server at url. If url is "", it starts miniredis.
func StartRedis(ctx context.Context, url string) (*Redis, error) {
	r := &Redis{Name: "a real server", URL: url}
	if url == "" {
		r.embedded = miniredis.NewMiniRedis()
		if err := r.embedded.StartAddr("127.0.0.1:0"); err != nil {
			return nil, fmt.Errorf("miniredis: %w", err)
		}
		r.embedded.ClockTTL(true) // keys expire by the clock
		r.Name, r.URL = "miniredis", "redis://"+r.embedded.Addr()
	}
	var err error
	if r.Client, err = OpenRedis(ctx, r.URL); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

// OpenRedis returns a client of the server at url, which has answered a PING.
func OpenRedis(ctx context.Context, url string) (*redis.Client, error) {
	opt, err := redis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	opt.ContextTimeoutEnabled = true // a command ends when its context does
	logging.Disable()                // the pool also logs the errors that it returns
	client := redis.NewClient(opt)
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	if err := client.Ping(ctx).Err(); err != nil {
		return nil, errors.Join(fmt.Errorf("redis at %s: %w", opt.Addr, err), client.Close())
	}
	return client, nil
}

// DeleteKeys deletes all keys that begin with prefix, also after ctx has ended.
func (r *Redis) DeleteKeys(ctx context.Context, prefix string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Patience)
	defer cancel()
	keys := r.Client.Scan(ctx, 0, prefix+"*", 1000).Iterator()
	for keys.Next(ctx) {
		if err := r.Client.Unlink(ctx, keys.Val()).Err(); err != nil {
			return err
		}
	}
	return keys.Err()
}

// Stop closes the client and ends miniredis.
func (r *Redis) Stop() (err error) {
	if r.Client != nil {
		err = r.Client.Close()
	}
	if r.embedded != nil {
		r.embedded.Close()
	}
	return err
}

// RunID returns a random name for the keys and tables of one run.
func RunID() string { return strings.ToLower(rand.Text()[:8]) }
