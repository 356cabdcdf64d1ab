package fetchonce

import (
	"context"
	"time"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

// Waiting returns how many goroutines wait for a lock in this locker.
func (lk *Locker) Waiting(name string) int { return lk.queue.Waiting(name) }

// Names returns how many names this locker holds or waits for.
func (lk *Locker) Names() int { return lk.queue.Len() }

// Lives returns for how long a value and an absence are fresh and kept in Redis,
// as the options say and the fetch wants; 0 is not at all.
func Lives(opt Options[string], own time.Duration) (value, absence [2]time.Duration, err error) {
	if err := opt.check(); err != nil {
		return value, absence, err
	}
	l := &Loader[string]{values: values[string]{opt: opt.withDefaults()}}
	v := l.header(keyed{}, envelope.Value, l.freshFor(l.opt.TTL, own))
	n := l.header(keyed{}, envelope.NotFound, l.freshFor(l.opt.NotFoundTTL, own))
	return [2]time.Duration{v.Fresh, v.Keep}, [2]time.Duration{n.Fresh, n.Keep}, nil
}

// Callers returns how many callers wait for the load of a key.
func (l *Loader[V]) Callers(key string) int { return l.flights.Callers(key) }

// Listen subscribes the loader to its channel, as its first miss does, and
// reports whether it does so already.
func (l *Loader[V]) Listen() bool {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	l.Mailbox.Subscribe(ended, l.channel)
	return l.Mailbox.Subscribed(l.channel)
}

// Leftovers returns how many requests the locker is still to take back.
func (lk *Locker) Leftovers() int { return lk.queue.Leftovers() }

// TakingBack returns how many things the loader has to take back in Redis.
func (l *Loader[V]) TakingBack() int { return l.cleanup.Len() }
