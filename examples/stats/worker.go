package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// A place is the Redis and the keys that all processes share.
type place struct {
	Redis  string // URL
	Prefix string // of keys
}

// A job tells a process how to serve the view.
type job struct {
	Process  string // its name
	Place    place
	Database string // URL
	Locked   bool   // with the middleware
}

// work sends the process's URL to the parent, and serves until ctx ends.
func work(ctx context.Context, parent *harness.Parent, j job) (err error) {
	rdb, err := harness.OpenRedis(ctx, j.Place.Redis)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rdb.Close()) }()
	locker, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: j.Place.Prefix})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, locker.Close()) }()
	var handler http.Handler = view{process: j.Process, database: database{j.Database}}
	if j.Locked {
		handler = oneAtATime(handler, locker)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := parent.Send("http://" + listener.Addr().String()); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+path+"{part}", handler)
	return harness.Serve(ctx, listener, mux)
}

// A crew is the database and the processes that serve, in the parent process.
type crew struct {
	meter   *meter
	workers []*harness.Worker
	urls    []string
}

// startCrew starts the database and the processes, and returns when all serve. The
// processes outlive ctx: stop ends them.
func startCrew(ctx context.Context, set settings, at place, locked bool) (*crew, error) {
	m, err := startMeter(set.delay)
	if err != nil {
		return nil, err
	}
	c := &crew{meter: m}
	for i := range set.processes {
		j := job{Process: fmt.Sprintf("process-%d", i+1), Place: at, Database: m.url, Locked: locked}
		w, err := harness.StartWorker(context.WithoutCancel(ctx), j.Process, j)
		if err != nil {
			return nil, errors.Join(err, c.stop())
		}
		c.workers = append(c.workers, w)
	}
	for _, w := range c.workers {
		var url string
		if err := w.Receive(&url); err != nil {
			return nil, errors.Join(fmt.Errorf("%s ended before it served: %w", w.Name, err), c.stop())
		}
		c.urls = append(c.urls, url)
	}
	return c, nil
}

func (c *crew) stop() error {
	err := harness.StopAll(c.workers)
	c.meter.stop()
	return err
}
