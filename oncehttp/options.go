package oncehttp

import (
	"time"

	"github.com/fetchonce/fetchonce"
)

// An Option changes what [Serialize] does.
type Option func(*options)

type options struct {
	maxWait     time.Duration // negative: until the request's context ends
	maxWaiters  int           // 0: any number
	bodyTimeout time.Duration // 0: no limit
}

const defaultBodyTimeout = 30 * time.Second

func optionsOf(opts []Option) options {
	o := options{maxWait: fetchonce.Off, bodyTimeout: defaultBodyTimeout}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// MaxWait limits how long a request waits for the lock. When it passes, the answer is 503
// (Service Unavailable) with a Retry-After. With 0, a request does not wait. Reading the
// body does not count. Without MaxWait, a request waits until its context ends, or for
// LockOptions.MaxWait of the Locker. MaxWait panics if d is negative.
func MaxWait(d time.Duration) Option {
	if d < 0 {
		panic("oncehttp: MaxWait is negative")
	}
	return func(o *options) { o.maxWait = d }
}

// MaxWaiters limits how many requests of one name wait for the lock in this process. A
// further request is answered at once with 503 (Service Unavailable) and a Retry-After. A
// request counts until its handler is called, even if the lock is free. Without MaxWaiters
// there is no limit. MaxWaiters panics if n is less than 1; to let no request wait, use
// [MaxWait] with 0.
func MaxWaiters(n int) Option {
	if n < 1 {
		panic("oncehttp: MaxWaiters is less than 1")
	}
	return func(o *options) { o.maxWaiters = n }
}

// BodyTimeout limits how long the handler waits in total for the request's body while it
// holds the lock. After that, a Read of the body fails with [os.ErrDeadlineExceeded]. The
// first 64 KiB of a body are read before the request waits for the lock, and do not count.
// Defaults to 30 seconds; with [fetchonce.Off] there is no limit. BodyTimeout panics if d
// is 0, or negative and not Off.
//
// BodyTimeout sets read deadlines through [http.ResponseController]. It has no effect if
// the ResponseWriter does not support them; that of [http.Server] does. It also has no
// effect if [http.Server.ReadTimeout] is set, which is a limit already.
func BodyTimeout(d time.Duration) Option {
	if d <= 0 && d != fetchonce.Off {
		panic("oncehttp: BodyTimeout is neither positive nor Off")
	}
	return func(o *options) { o.bodyTimeout = max(d, 0) }
}
