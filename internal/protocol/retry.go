package protocol

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"github.com/fetchonce/fetchonce/internal/breaker"
	"github.com/fetchonce/fetchonce/internal/sleep"
)

const (
	firstPause   = 5 * time.Millisecond
	longestPause = 100 * time.Millisecond
)

// persist sends an operation that failed with err again, after pauses, until it succeeds, fails
// with an error that stays, or the timeout has passed since the first failure. Every operation
// may be sent twice. The time before the first failure does not count: the operation may have
// spent it in a queue.
func (c *Client) persist(ctx context.Context, err error, send func(within time.Duration) error) (last error) {
	started, wasCut := time.Now(), false
	defer func() {
		if wasCut && NotSent(last) {
			last = afterCutError{last}
		}
	}()
	for pause := firstPause; err != nil; pause = min(2*pause, longestPause) {
		switch {
		case breaker.IsOpen(err), isReadOnly(err) && c.replica.isKnown():
			return err
		case passing(err):
		case cut(err) && !wasCut:
			wasCut = true // once: go-redis has already made the retries of its options
		default:
			return err
		}
		if left := c.timeout - time.Since(started); left < 2*pause {
			if isReadOnly(err) {
				c.replica.note()
			}
			return err
		}
		if !sleep.For(ctx, pause/2+rand.N(pause)) {
			return ctx.Err()
		}
		err = send(c.timeout - time.Since(started))
	}
	return nil
}

// An afterCutError is the error of an operation of which an earlier attempt may have arrived in
// Redis: the connection ended before the answer came. [NotSent] reads it.
type afterCutError struct{ error }

func (e afterCutError) Unwrap() error { return e.error }
func (afterCutError) NotSent() bool   { return false }

// passing reports whether an error is a state of the server that ends soon: a slot that moves to
// another node, a failover, a restart.
func passing(err error) bool {
	return hasCode(err, "TRYAGAIN", "MOVED", "ASK", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN")
}

// cut reports whether a connection ended before the answer came. A dial that failed does not
// count: the next dial is likely to fail, too.
func cut(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return false
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe)
}
