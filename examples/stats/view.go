// Stats shows a heavy view, api_stats_calculations, that several processes serve over HTTP. A
// page of statistics requests its four parts at once. Each part is a calculation, and the
// database should run only one at a time.
//
//	go run ./examples/stats         # needs nothing installed
//	go run ./examples/stats -help
//
// The example is oneAtATime in this file. The other files run it and print the result.
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncehttp"
)

// oneAtATime is the middleware. All processes together handle one request at a time, for any
// part of the page.
func oneAtATime(view http.Handler, locker *fetchonce.Locker) http.Handler {
	key := func(*http.Request) string { return "api_stats_calculations" }
	return oncehttp.Serialize(locker, key)(view)
}

// A view handles requests for a part of the page.
type view struct {
	process  string
	database database
}

func (v view) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	part := r.PathValue("part")
	if !slices.Contains(parts, part) {
		http.Error(w, fmt.Sprintf("there is no part %q", part), http.StatusNotFound)
		return
	}
	a, err := v.database.calculate(r.Context(), part)
	if err != nil { // for example, the client has left or the lock is lost
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	a.Process = v.process
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // the client may have left
}

// path is where the view is.
const path = "/api/stats/calculations/"

// parts are the parts of the page.
var parts = []string{"visitors", "searches", "errors", "speed"}

// An answer is the body of a response.
type answer struct {
	Part    string `json:"part"`
	Value   int    `json:"value"`
	Process string `json:"process"`
	AtOnce  int    `json:"at_once"` // how many calculations ran when this one began, including it
}
