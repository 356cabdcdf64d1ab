package batch

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/breaker"
	"github.com/fetchonce/fetchonce/internal/guard"
)

// diagnoseTime is how long a caller whose command timed out waits for the cause.
const diagnoseTime = 20 * time.Millisecond

// dialerOf returns a function that connects to the client's server and closes the connection, or
// nil if the client is not of a single server. Its error says why there is no connection. go-redis
// returns that only after all its dials: with its defaults, later than most time limits.
func dialerOf(conn Conn) func(ctx context.Context) error {
	rdb, ok := conn.(*redis.Client)
	if !ok {
		return nil
	}
	opt := rdb.Options()
	return func(ctx context.Context) error {
		return guard.Call(func() error {
			c, err := opt.Dialer(ctx, opt.Network, opt.Addr)
			if err == nil {
				err = c.Close()
			}
			return err
		})
	}
}

// diagnose returns the error of a command that timed out. If the breaker has recorded a cause, or a
// dial fails, the error contains it. Callers that time out at the same time share one dial.
func (b *Batcher) diagnose(timeout error, known *breaker.Breaker) error {
	if open, ok := errors.AsType[*breaker.OpenError](known.Err()); ok {
		if errors.Is(open.Cause, ErrTimeout) || errors.Is(open.Cause, breaker.ErrNoAnswer) {
			return timeout
		}
		return causedError{timeout, open.Cause}
	}
	if b == nil || b.dial == nil {
		return timeout
	}
	cause, _, _ := b.dials.Do("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), diagnoseTime)
		defer cancel()
		if err := b.dial(ctx); ctx.Err() == nil {
			return err, nil
		}
		return nil, nil
	})
	if err, ok := cause.(error); ok {
		return causedError{timeout, err}
	}
	return timeout
}

// A causedError is the error of a command with its cause. NotSent depends on the error alone.
type causedError struct{ error, cause error }

func (e causedError) Error() string   { return e.error.Error() + ": " + e.cause.Error() }
func (e causedError) Unwrap() []error { return []error{e.error, e.cause} }
func (e causedError) NotSent() bool   { return NotSent(e.error) }

// probe returns an error if the node does not serve a key.
func (b *Batcher) probe(ctx context.Context, key string) error {
	if b.dial != nil {
		if err := b.dial(ctx); err != nil {
			return err
		}
	}
	err := b.conn.Process(ctx, redis.NewStringCmd(ctx, "getrange", key, 0, 0))
	if isAnswer(err) && !IsUnfit(err) {
		return nil
	}
	return err
}
