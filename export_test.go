package fetchonce

import (
	"context"

	"github.com/fetchonce/fetchonce/internal/freshness"
)

// Waiting returns how many goroutines wait for a lock in this locker.
func (lk *Locker) Waiting(name string) int { return lk.queue.Waiting(name) }

// Names returns how many names this locker holds or waits for.
func (lk *Locker) Names() int { return lk.queue.Len() }

// RulesOf returns the rules of freshness that the options make, or what is wrong with the options.
func RulesOf(opt Options[string]) (freshness.Rules, error) {
	if err := opt.check(); err != nil {
		return freshness.Rules{}, err
	}
	return opt.withDefaults().rules(), nil
}

// Callers returns how many callers wait for the load of a key.
func (l *Loader[V]) Callers(key string) int { return l.flights.Callers(key) }

// Listen subscribes the Loader to its channel, as its first miss does. It reports whether the
// Loader is subscribed.
func (l *Loader[V]) Listen() bool {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	l.client.Mailbox.Subscribe(ended, l.channel)
	return l.client.Mailbox.Subscribed(l.channel)
}

// Leftovers returns how many requests wait for their cleanup in Redis.
func (lk *Locker) Leftovers() int { return lk.queue.Leftovers() }

// TakingBack returns how many leases and marks wait for their cleanup in Redis.
func (l *Loader[V]) TakingBack() int { return l.cleanup.Len() }
