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
	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// serve serves things over HTTP until ctx ends.
func serve(ctx context.Context, set settings, servers *servers) (err error) {
	at, err := servers.newPlace(ctx, "serve")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.remove(ctx, at)) }()
	api, err := startAPI(set.delay, nil)
	if err != nil {
		return err
	}
	defer api.stop()
	c, err := at.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()

	listener, err := net.Listen("tcp", set.serve)
	if err != nil {
		return err
	}
	fmt.Printf("Redis is %s, the database is %s. Things are at\n\n  http://%s/thing/apple\n\n^C ends it.\n",
		servers.redis.Name, servers.database.name(), listener.Addr())
	mux := http.NewServeMux()
	mux.Handle("GET /thing/{name}", handler{things: c.things, remote: api.client("serve")})
	return harness.Serve(ctx, listener, mux)
}

// A handler serves things. It calls Load, which, unlike Get, returns the source of a thing.
type handler struct {
	things *fetchonce.Loader[Thing]
	remote remote
}

// An answer is the body of a response.
type answer struct {
	*Thing

	Error  string  `json:"error,omitempty"`
	Source string  `json:"source,omitempty"` // redis, store, fetch or peer
	MS     float64 `json:"ms"`
}

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	result, err := h.things.Load(r.Context(), r.PathValue("name"), func(ctx context.Context, f *fetchonce.Fetch[Thing]) (Thing, error) {
		return h.remote.fetch(ctx, f.Key)
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
