package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncehttp"
)

// pattern is where the view is.
const pattern = "GET /api/stats/calculations/{part}"

// parts are the parts of the page, which it asks for at once.
var parts = []string{"visitors", "searches", "errors", "speed"}

// handler returns all that a process serves. With a Locker, one request to the
// view is handled at a time, of all parts and in all processes.
func handler(view http.Handler, lk *fetchonce.Locker) http.Handler {
	if lk != nil {
		oneAtATime := oncehttp.Serialize(lk, func(*http.Request) string { return "api_stats_calculations" })
		view = oneAtATime(view)
	}
	mux := http.NewServeMux()
	mux.Handle(pattern, view)
	return mux
}

// A stats is the view.
type stats struct {
	process  string
	database database
}

// An answer is what a request gets.
type answer struct {
	Part    string `json:"part"`
	Value   int    `json:"value"`
	Process string `json:"process"`
	AtOnce  int    `json:"at_once"` // how many calculations ran when this one began, with it
}

func (s stats) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	part := r.PathValue("part")
	if !slices.Contains(parts, part) {
		http.Error(w, fmt.Sprintf("there is no part %q", part), http.StatusNotFound)
		return
	}
	a, err := s.database.calculate(r.Context(), part)
	if err != nil { // such as that the client has left, or the lock is lost
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	a.Process = s.process
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // the client may have left
}
