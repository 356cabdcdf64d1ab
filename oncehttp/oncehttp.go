// Package oncehttp puts locks around HTTP handlers: of the requests of one name,
// one is handled at a time, in all processes that share a Redis.
package oncehttp

import (
	"context"
	"log"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce"
)

// Serialize returns a middleware under which one request of each name is handled
// at a time. The others wait in a queue, as [fetchonce.Locker] says.
//
// Without a name function, the name is the method and the path of the request,
// as "GET /stats": not its query or its host. A name function may return any
// text, of any length; an empty one is a name like the others.
//
// The path is the one that the middleware is given. Inside [http.StripPrefix] it
// lacks the prefix, so handlers that are mounted under several prefixes share a
// name, also with those of other services under the same Prefix of the Locker.
// Where they must not, put Serialize around StripPrefix, or name requests by
// their RequestURI, which StripPrefix leaves alone; see the example.
//
// What is passed to the handler is the ResponseWriter as it is, so that it can
// still be flushed or hijacked, and the request with another context: one that
// also ends when the lock is lost, with the [context.Cause]
// [fetchonce.ErrLockLost]. The handler must stop then, and answer as it sees fit.
// When the handler returns or panics, the lock is given back; the panic goes on.
//
// A request that gets no lock is not handled. The answer is then 503 (Service
// Unavailable) with a Retry-After of a few seconds, because
//
//   - Redis does not answer: the cause is told to the server's ErrorLog, once a
//     second at most;
//   - the request's context ended, most often as its client left. It gives up
//     its place at once. Nobody sees the answer then, but there is one: a server
//     that ends the contexts of its requests because it shuts down has clients
//     that are still there, and no answer would be an empty 200;
//   - the Locker was closed.
//
// That a client has left, net/http sees over HTTP/1 only when the request has no
// body, or all of it was read.
//
// Serialize panics if lk is nil, and the middleware if the handler is.
func Serialize(lk *fetchonce.Locker, name func(*http.Request) string) func(http.Handler) http.Handler {
	if lk == nil {
		panic("oncehttp: the Locker is nil")
	}
	if name == nil {
		name = methodAndPath
	}
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic("oncehttp: the handler is nil")
		}
		return &serialized{locker: lk, name: name, next: next}
	}
}

// longestName is how long a method and a path may be to stand for themselves.
const longestName = 200

func methodAndPath(r *http.Request) string {
	name := r.Method + " " + r.URL.Path
	if len(name) > longestName {
		return fetchonce.Key(name) // is shorter, and begins with a quote, which no method does
	}
	return name
}

type serialized struct {
	locker *fetchonce.Locker
	name   func(*http.Request) string
	next   http.Handler

	told atomic.Int64 // when the log was told last, in Unix nanoseconds
}

func (s *serialized) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	handled := false
	err := s.locker.Do(r.Context(), s.name(r), func(ctx context.Context) error {
		handled = true
		s.next.ServeHTTP(w, r.WithContext(ctx))
		return nil
	})
	if handled {
		return // an error says that the lock was lost, which the handler knows
	}
	if r.Context().Err() == nil {
		s.tell(r, err)
	}
	// At random, so that those who were refused at once do not come back at once.
	w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(mostRetryAfter)))
	http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
}

const mostRetryAfter = 3 // seconds

// tell tells the server's log why a request was refused. The client is not told:
// the error has addresses in it.
func (s *serialized) tell(r *http.Request, err error) {
	server, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	now, told := time.Now().UnixNano(), s.told.Load()
	if !ok || now-told < int64(time.Second) || !s.told.CompareAndSwap(told, now) {
		return
	}
	logger := server.ErrorLog
	if logger == nil {
		logger = log.Default() //nolint:forbidigo // as net/http does
	}
	logger.Printf("oncehttp: %s %q was refused: %v", r.Method, r.URL.Path, err) //nolint:forbidigo // it is the server's
}
