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

// A Thing is what the remote API returns for a name.
type Thing struct {
	Name string `json:"name"`
	Call int    `json:"call"` // the number of the remote call that returned it
}

// A remote is a client of the remote API.
type remote struct {
	url string // its user name is the worker's
}

// fetch calls the API. It returns [fetchonce.ErrNotFound] if the API has no such thing.
func (r remote) fetch(ctx context.Context, name string) (Thing, error) {
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

// An api is the remote API. It is slow and counts its calls.
type api struct {
	delay  time.Duration
	server *http.Server
	addr   string

	// halfway, if set, is called after half of a call's delay. If it returns true, the call
	// gets no response, because its worker is about to be killed.
	halfway func(worker, name string) bool

	mu    sync.Mutex
	total int
	calls map[call]int
}

// A call is a worker and the name that it fetched.
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

// client returns the client of a worker.
func (a *api) client(worker string) remote {
	return remote{url: (&url.URL{Scheme: "http", User: url.User(worker), Host: a.addr}).String()}
}

func (a *api) thing(w http.ResponseWriter, r *http.Request) {
	worker, _, _ := r.BasicAuth()
	name := r.PathValue("name")
	number := a.count(call{worker, name})
	if !sleep(r.Context(), a.delay/2) {
		return
	}
	if a.halfway != nil && a.halfway(worker, name) {
		<-r.Context().Done() // the worker's connection has ended
		return
	}
	if !sleep(r.Context(), a.delay-a.delay/2) {
		return
	}
	if strings.HasPrefix(name, "missing") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(Thing{Name: name, Call: number})
}

// sleep waits for d. It reports false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// count counts a call and returns its number: 1 for the first call of all.
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

// of returns the number of calls for a name, and how many of them a worker made.
func (a *api) of(name, worker string) (calls, byWorker int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c, n := range a.calls {
		if c.name == name {
			calls += n
		}
	}
	return calls, a.calls[call{worker, name}]
}
