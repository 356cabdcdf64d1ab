package oncehttp

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"
)

// readAhead is how much of a body is read before the request waits for the lock.
const readAhead = 64 << 10

// A body is the body of a request. Its beginning is read before the request waits for the
// lock, so a client that sends a small body slowly does not hold the lock. After the whole
// body was read, net/http notices over HTTP/1 that the client leaves.
type body struct {
	ahead bytes.Reader
	rest  io.ReadCloser
	err   error // that ended reading ahead; nil if there is a rest

	deadline *http.ResponseController // nil without a limit
	left     time.Duration            // for Reads of the rest
}

// newBody reads the beginning of the body of r. It returns nil if r has no body.
func newBody(r *http.Request) *body {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &body{rest: r.Body}
	var ahead bytes.Buffer
	n, err := io.Copy(&ahead, io.LimitReader(r.Body, readAhead))
	b.ahead.Reset(ahead.Bytes())
	b.err = err // for example a MaxBytesError: the handler receives it
	if err == nil && n < readAhead {
		b.err = io.EOF
	}
	return b
}

// limit sets how long Reads of the rest may take in total.
func (b *body) limit(w http.ResponseWriter, r *http.Request, timeout time.Duration) {
	server, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	if timeout > 0 && (server == nil || server.ReadTimeout <= 0) {
		b.deadline, b.left = http.NewResponseController(w), timeout
	}
}

func (b *body) Read(p []byte) (int, error) {
	switch {
	case b.ahead.Len() > 0:
		return b.ahead.Read(p)
	case b.err != nil:
		return 0, b.err
	case b.deadline == nil:
		return b.rest.Read(p)
	}
	began := time.Now()
	if err := b.deadline.SetReadDeadline(began.Add(b.left)); errors.Is(err, http.ErrNotSupported) {
		b.deadline = nil
		return b.rest.Read(p)
	}
	n, err := b.rest.Read(p)
	b.left -= time.Since(began)
	// Without this, a deadline that passes between two Reads would end the body of an
	// HTTP/2 request.
	_ = b.deadline.SetReadDeadline(time.Time{})
	return n, err
}

func (b *body) Close() error { return b.rest.Close() }
