package client

import (
	"errors"
	"io"
	"net"
	"os"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/batch"
	"github.com/fetchonce/fetchonce/internal/breaker"
)

// IsUnavailable reports whether an error says that Redis did not answer, that there is no
// connection to it, or that it serves no key.
func IsUnavailable(err error) bool {
	if breaker.IsOpen(err) || batch.IsUnfit(err) {
		return true
	}
	if IsAnswer(err) {
		return false
	}
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, redis.ErrClosed) || errors.Is(err, redis.ErrPoolTimeout)
}

// IsAnswer reports whether an error is an answer of Redis.
func IsAnswer(err error) bool {
	_, ok := errors.AsType[redis.Error](err)
	return ok
}
