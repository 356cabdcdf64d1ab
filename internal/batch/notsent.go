package batch

import (
	"errors"
	"net"

	"github.com/redis/go-redis/v9"
)

// NotSent reports whether an error of [Batcher.Do] or [Batcher.Read] proves that
// Redis was sent none of the commands. That is so if the batcher was closed, if the
// context ended or the time was over while they were queued, and if no connection
// could be made, provided that go-redis made one attempt only: after a retry it
// returns the error of the last attempt, and an earlier one may have arrived.
//
// An error that wraps such a one decides for itself, with a method NotSent() bool.
func NotSent(err error) bool {
	var e interface{ NotSent() bool }
	return errors.As(err, &e) && e.NotSent()
}

// An unsent is the error of commands that were not sent.
type unsent struct{ error }

func (e unsent) Unwrap() error { return e.error }
func (unsent) NotSent() bool   { return true }

// failure returns the error of commands that a client has processed: it marks the
// one that says that there was no connection to send them on.
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

// sendsOnce reports whether a client makes one attempt to send a command.
func sendsOnce(conn Conn) bool {
	rdb, ok := conn.(*redis.Client)
	return ok && rdb.Options().MaxRetries == 0
}
