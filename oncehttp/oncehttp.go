// Package oncehttp puts locks around HTTP handlers: of the requests of one name,
// one is handled at a time, in all processes that share a Redis.
package oncehttp

import (
	"context"
	"errors"
	"log"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/keytext"
)

// Serialize returns a middleware under which one request of each name is handled
// at a time. The others wait in a queue, as [fetchonce.Locker] says.
//
// Without a name function, the name is the method and the path of the request,
// as "GET /stats": not its query or its host. HEAD has the name of GET. A name function
// may return any text, of any length; an empty one is a name like the others.
//
// The path is the one that the middleware is given. Inside [http.StripPrefix] it
// lacks the prefix, so handlers that are mounted under several prefixes share a
// name, also with those of other services under the same Prefix of the Locker.
// Where they must not, put Serialize around StripPrefix, or name requests by
// their RequestURI, which StripPrefix leaves alone; see the example.
//
// The handler receives the ResponseWriter unchanged, so that it can still be flushed or
// hijacked, and the request with another context and body. The context also ends when
// the lock is lost, with the [context.Cause] [fetchonce.ErrLockLost]. The handler must
// stop then, and answer as it sees fit. When the handler returns or panics, the lock is
// released; the panic continues.
//
// # Requests that are not handled
//
// A request that gets no lock is answered with 503 (Service Unavailable) and a
// Retry-After of a few seconds, because
//
//   - Redis does not answer: the server's ErrorLog receives the cause, once a
//     second at most;
//   - it waited for [MaxWait], or more than [MaxWaiters] requests wait;
//   - its context ended, most often as its client left. It leaves the queue at
//     once. A server that shuts down and ends the contexts of its requests
//     has clients that still read the answer;
//   - the Locker was closed.
//
// # Slow clients
//
// The first 64 KiB of a body are read before the request waits for the lock, so a
// client that sends a small body slowly does not hold the lock. The handler reads the
// rest while it holds the lock, and waits for it as long as [BodyTimeout] allows. Over
// HTTP/1, net/http does not notice that a client has left until the body was read: a
// request with a larger body stays in the queue.
//
// A client that does not read its answer holds the lock while the handler waits in
// Write. Serialize does not limit that: set [http.Server.WriteTimeout]. A handler that
// must not hold the lock longer than a known time needs LockOptions.MaxHold: when it
// has passed, the handler's context ends, and others get the lock a Lease later at most.
//
// Serialize panics if lk is nil, and the middleware if the handler is.
func Serialize(lk *fetchonce.Locker, name func(*http.Request) string, opts ...Option) func(http.Handler) http.Handler {
	if lk == nil {
		panic("oncehttp: the Locker is nil")
	}
	if name == nil {
		name = methodAndPath
	}
	opt := optionsOf(opts)
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic("oncehttp: the handler is nil")
		}
		return &serialized{locker: lk, name: name, options: opt, next: next, waiters: waiters{limit: opt.maxWaiters}}
	}
}

// longestName is how long a method and a path may be to stand for themselves.
const longestName = 200

func methodAndPath(r *http.Request) string {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	name := method + " " + r.URL.Path
	if len(name) > longestName {
		return fetchonce.Key(name) // is shorter, and begins with a quote, which no method does
	}
	return name
}

type serialized struct {
	locker *fetchonce.Locker
	name   func(*http.Request) string
	options
	next    http.Handler
	waiters waiters

	logged atomic.Int64 // when a refusal was last logged, in Unix nanoseconds
}

// errWaited ends the wait of a request after MaxWait.
var errWaited = errors.New("waited for MaxWait")

func (s *serialized) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := s.name(r)
	b := newBody(r)
	handled := false
	err := s.lock(r.Context(), name, func(ctx context.Context) {
		handled = true
		locked := r.WithContext(ctx)
		if b != nil {
			b.limit(w, r, s.bodyTimeout)
			locked.Body = b
		}
		s.next.ServeHTTP(w, locked)
	})
	if handled {
		return // an error says that the lock was lost, which the handler knows
	}
	if r.Context().Err() == nil && !errors.Is(err, fetchonce.ErrLocked) {
		s.log(r, err)
	}
	// At random, so that clients that were refused at once do not return at once.
	w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(mostRetryAfter)))
	http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
}

// lock calls handle while it holds the lock. If it does not call it, it returns why.
func (s *serialized) lock(ctx context.Context, name string, handle func(ctx context.Context)) error {
	if !s.waiters.enter(name) {
		return fetchonce.ErrLocked
	}
	leave := sync.OnceFunc(func() { s.waiters.leave(name) })
	defer leave()
	do, stop := s.locker.Do, func() bool { return true }
	switch {
	case s.maxWait == 0:
		do = s.locker.TryDo
	case s.maxWait > 0:
		waiting, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		ctx, stop = waiting, time.AfterFunc(s.maxWait, func() { cancel(errWaited) }).Stop
		defer stop()
	}
	return do(ctx, name, func(ctx context.Context) error {
		if !stop() {
			return fetchonce.ErrLocked // its context ends at this moment
		}
		leave()
		handle(ctx)
		return nil
	})
}

const mostRetryAfter = 3 // seconds

// log writes to the server's log why a request was refused. The answer does not say it:
// the error has addresses in it.
func (s *serialized) log(r *http.Request, err error) {
	server, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	now, logged := time.Now().UnixNano(), s.logged.Load()
	if !ok || now-logged < int64(time.Second) || !s.logged.CompareAndSwap(logged, now) {
		return
	}
	logger := server.ErrorLog
	if logger == nil {
		logger = log.Default() //nolint:forbidigo // as net/http does
	}
	logger.Printf("oncehttp: %.20s %s was refused: %v", r.Method, keytext.Quote(r.URL.Path), err) //nolint:forbidigo // it is the server's
}
