package oncehttp_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
)

// Two handlers that are mounted with [http.StripPrefix] receive the same path.
// A name function that reads RequestURI tells their requests apart:
//
//	mux.Handle("/a/", http.StripPrefix("/a", oncehttp.Serialize(locker, unstripped)(stats)))
//	mux.Handle("/b/", http.StripPrefix("/b", oncehttp.Serialize(locker, unstripped)(stats)))
func ExampleSerialize_stripPrefix() {
	unstripped := func(r *http.Request) string {
		path, _, _ := strings.Cut(r.RequestURI, "?")
		return r.Method + " " + path
	}

	show := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		fmt.Printf("default name %q, unstripped name %q\n", r.Method+" "+r.URL.Path, unstripped(r))
	})
	mux := http.NewServeMux()
	mux.Handle("/a/", http.StripPrefix("/a", show))
	mux.Handle("/b/", http.StripPrefix("/b", show))
	for _, target := range []string{"/a/stats?day=1", "/b/stats?day=2"} {
		mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, target, nil))
	}
	// Output:
	// default name "GET /stats", unstripped name "GET /a/stats"
	// default name "GET /stats", unstripped name "GET /b/stats"
}
