package oncehttp

import (
	"time"

	"github.com/fetchonce/fetchonce"
)

// An Option changes what [Serialize] does.
type Option func(*options)

type options struct {
	maxWait     time.Duration // negative: as long as the request's context lasts
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

// MaxWait is the longest that a request waits for the lock. Then the answer is 503
// (Service Unavailable) with a Retry-After. With 0 a request does not wait at all. The
// body is read before that time begins. MaxWait panics if d is negative. Without it, a
// request waits until its context ends, or for LockOptions.MaxWait of the Locker.
func MaxWait(d time.Duration) Option {
	if d < 0 {
		panic("oncehttp: MaxWait is negative")
	}
	return func(o *options) { o.maxWait = d }
}

// MaxWaiters is how many requests of one name wait for the lock in this process. The
// answer to a request beyond them is 503 (Service Unavailable) with a Retry-After, at
// once. A request counts until its handler is called, also while the lock is free.
// MaxWaiters panics if n is less than 1; [MaxWait] with 0 lets no request wait.
// Without it, any number waits.
func MaxWaiters(n int) Option {
	if n < 1 {
		panic("oncehttp: MaxWaiters is less than 1")
	}
	return func(o *options) { o.maxWaiters = n }
}

// BodyTimeout is how long, in total, the handler may wait for the request's body while
// it holds the lock. Then a Read of the body fails with [os.ErrDeadlineExceeded]. The
// first 64 KiB of a body are read before the request waits for the lock, and do not
// count. Defaults to 30 seconds; [fetchonce.Off] is no limit. BodyTimeout panics if d
// is 0, or negative and not Off.
//
// The limit needs a ResponseWriter that [http.ResponseController] can set a read
// deadline on, as those of [http.Server] can. It is not set if [http.Server.ReadTimeout]
// is, which is a limit already.
func BodyTimeout(d time.Duration) Option {
	if d <= 0 && d != fetchonce.Off {
		panic("oncehttp: BodyTimeout is neither positive nor Off")
	}
	return func(o *options) { o.bodyTimeout = max(d, 0) }
}
