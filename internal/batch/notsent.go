package batch

import (
	"errors"
	"net"

	"github.com/redis/go-redis/v9"
)

// NotSent reports whether an error of [Batcher.Do] or [Batcher.Read] proves that no command was
// sent. It does if the Batcher was closed, or if the context ended or the time was over while the
// commands were queued. A failed dial proves it only if the client does not retry: after a retry,
// go-redis returns the error of its last attempt, and an earlier one may have arrived.
//
// An error that wraps such an error may answer for itself, with a method NotSent() bool.
func NotSent(err error) bool {
	var e interface{ NotSent() bool }
	return errors.As(err, &e) && e.NotSent()
}

// An unsent is the error of commands that were not sent.
type unsent struct{ error }

func (e unsent) Unwrap() error { return e.error }
func (unsent) NotSent() bool   { return true }

// failure returns the error of commands that the client has processed. If there was no connection
// to send them on, it returns the error as unsent.
func (b *Batcher) failure(err error) error {
	if err == nil || !b.once {
		return err
	}
	op, ok := errors.AsType[*net.OpError](err)
	if ok && op.Op == "dial" || errors.Is(err, redis.ErrPoolTimeout) {
		return unsent{err}
	}
	return err
}

// sendsOnce reports whether a client makes one attempt only to send a command.
func sendsOnce(conn Conn) bool {
	rdb, ok := conn.(*redis.Client)
	return ok && rdb.Options().MaxRetries == 0
}
