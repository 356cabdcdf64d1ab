package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce"
)

// A remote is a client of the remote API.
type remote struct {
	url string // with the worker as its user
}

// thing calls the API.
func (r remote) thing(ctx context.Context, name string) (Thing, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/thing/"+url.PathEscape(name), nil)
	if err != nil {
		return Thing{}, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return Thing{}, err
	}
	defer func() { _ = response.Body.Close() }()
	switch response.StatusCode {
	case http.StatusOK:
		var thing Thing
		return thing, json.NewDecoder(response.Body).Decode(&thing)
	case http.StatusNotFound:
		return Thing{}, fetchonce.ErrNotFound
	default:
		return Thing{}, fmt.Errorf("the remote API answered %s", response.Status)
	}
}

// An api is the remote API: slow, and it counts.
type api struct {
	delay  time.Duration
	server *http.Server
	addr   string

	// halfway, if set, is told of each call when half of its time is over. It
	// reports whether the caller is going to be killed: then there is no answer.
	halfway func(worker, name string) bool

	mu    sync.Mutex
	total int
	calls map[call]int
}

// A call is the name that a worker asked for.
type call struct{ worker, name string }

func startAPI(delay time.Duration, halfway func(worker, name string) bool) (*api, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a := &api{delay: delay, halfway: halfway, addr: listener.Addr().String(), calls: map[call]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /thing/{name}", a.thing)
	a.server = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = a.server.Serve(listener) }() // ends with stop
	return a, nil
}

func (a *api) stop() { _ = a.server.Close() }

// client returns a client for a worker.
func (a *api) client(worker string) remote {
	return remote{url: (&url.URL{Scheme: "http", User: url.User(worker), Host: a.addr}).String()}
}

func (a *api) thing(w http.ResponseWriter, r *http.Request) {
	worker, _, _ := r.BasicAuth()
	name := r.PathValue("name")
	number := a.count(call{worker, name})
	if !pause(r.Context(), a.delay/2) {
		return
	}
	if a.halfway != nil && a.halfway(worker, name) {
		<-r.Context().Done() // its connection has ended
		return
	}
	if !pause(r.Context(), a.delay-a.delay/2) {
		return
	}
	if strings.HasPrefix(name, "missing") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(Thing{Name: name, Call: number})
}

// pause waits, and reports whether it could before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// count counts a call and returns its number, from 1, over all names.
func (a *api) count(c call) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total++
	a.calls[c]++
	return a.total
}

// all returns the number of calls.
func (a *api) all() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.total
}

// of returns the calls for a name, and those of them that a worker made.
func (a *api) of(name, worker string) (calls, workers int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c, n := range a.calls {
		if c.name == name {
			calls += n
		}
	}
	return calls, a.calls[call{worker, name}]
}
