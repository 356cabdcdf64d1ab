package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/fetchonce/fetchonce"
)

// serve serves things over HTTP until ctx ends.
func serve(ctx context.Context, set settings, servers *servers) (err error) {
	at, remove, err := servers.newPlace(ctx, "serve")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	api, err := startAPI(set.delay, nil)
	if err != nil {
		return err
	}
	defer api.stop()
	t, err := openThings(servers.rdb, servers.db, at, api.client("serve"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.loader.Close()) }()

	listener, err := net.Listen("tcp", set.serve)
	if err != nil {
		return err
	}
	fmt.Printf("Redis is %s, the database is %s. Things are at\n\n  http://%s/thing/apple\n\n^C ends it.\n",
		servers.redisName, servers.databaseName, listener.Addr())
	mux := http.NewServeMux()
	mux.Handle("GET /thing/{name}", t)
	return serveUntil(ctx, &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, listener)
}

func serveUntil(ctx context.Context, server *http.Server, listener net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ends with Shutdown or Close
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return errors.Join(server.Shutdown(ctx), server.Close())
}

// An answer is what a request gets.
type answer struct {
	*Thing
	Error  string  `json:"error,omitempty"`
	Source string  `json:"source,omitempty"` // redis, store, fetch or peer
	MS     float64 `json:"ms"`
}

func (t *things) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	result, err := t.loader.Load(r.Context(), r.PathValue("name"), func(ctx context.Context, f *fetchonce.Fetch[Thing]) (Thing, error) {
		return t.remote.thing(ctx, f.Key)
	})
	a := answer{MS: float64(time.Since(began).Microseconds()) / 1000}
	status := http.StatusOK
	switch {
	case err == nil:
		a.Thing, a.Source = &result.Value, result.Source.String()
	case errors.Is(err, fetchonce.ErrNotFound):
		status, a.Error = http.StatusNotFound, "there is no such thing"
	default:
		status, a.Error = http.StatusBadGateway, err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(a) // the client may have left
}
