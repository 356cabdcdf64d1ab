// Package oncehttp puts locks around HTTP handlers: one request of each name is handled at
// a time, in all processes that share a Redis.
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

// Serialize returns a middleware that handles one request of each name at a time. The other
// requests wait in the queue of the [fetchonce.Locker].
//
// If name is nil, the name of a request is its method and path, for example "GET /stats",
// without query and host. HEAD has the name of GET. A name function may return any text of
// any length. An empty text is a name, too.
//
// Inside [http.StripPrefix] the path lacks the prefix. So handlers under several prefixes
// share a name, even in several services if their Lockers have the same Prefix. To give
// them different names, put Serialize around StripPrefix, or name requests by their
// RequestURI, which StripPrefix does not change; see the example.
//
// The handler receives the ResponseWriter unchanged, so it can flush or hijack it. The
// request has another context and body. When the lock is lost, the context ends with the
// [context.Cause] [fetchonce.ErrLockLost]; the handler must then stop, and decides what to
// answer. When the handler returns or panics, the lock is released. A panic continues.
//
// # Requests that are not handled
//
// The answer to a request that gets no lock is 503 (Service Unavailable) with a Retry-After
// of 1 to 3 seconds. There are four reasons:
//
//   - Redis does not answer. The server's ErrorLog receives the cause, at most once a
//     second.
//   - The request waited for [MaxWait], or [MaxWaiters] requests already wait.
//   - The request's context ended, usually because its client left. The request leaves
//     the queue at once.
//   - The Locker was closed.
//
// # Slow clients
//
// Serialize reads the first 64 KiB of a body before the request waits for the lock. So a
// client that sends a small body slowly does not hold the lock. The handler reads the rest
// while it holds the lock, and [BodyTimeout] limits that. Over HTTP/1, net/http notices
// that a client has left only after the body was read. So a request with a larger body
// stays in the queue.
//
// If a client does not read its answer, the handler waits in Write and holds the lock.
// Serialize does not limit that: set [http.Server.WriteTimeout]. To limit the whole hold,
// set LockOptions.MaxHold. When it passes, the handler's context ends, and other requests
// get the lock at most one Lease later.
//
// Serialize panics if lk is nil. The middleware panics if the handler is nil.
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

// longestName is the longest method and path that are a name as they are.
const longestName = 200

func methodAndPath(r *http.Request) string {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	name := method + " " + r.URL.Path
	if len(name) > longestName {
		return fetchonce.Key(name) // shorter; it begins with a quote, and no method does
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
		return // an error can only be a lost lock, which ended the handler's context
	}
	if r.Context().Err() == nil && !errors.Is(err, fetchonce.ErrLocked) {
		s.log(r, err)
	}
	// At random, so clients that were refused together do not return together.
	w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(mostRetryAfter)))
	http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
}

// lock calls handle while it holds the lock. If it cannot, it returns the reason.
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
			return fetchonce.ErrLocked // MaxWait has just passed
		}
		leave()
		handle(ctx)
		return nil
	})
}

const mostRetryAfter = 3 // seconds

// log writes to the server's log why a request was refused. The answer does not contain the
// error, because that contains addresses.
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
