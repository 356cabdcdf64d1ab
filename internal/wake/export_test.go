package wake

import (
	"sync"

	"github.com/redis/go-redis/v9"
)

// Mutex returns the mutex of a mailbox.
func Mutex(m *Mailbox) *sync.Mutex { return &m.mu }

// Receive is what a mailbox does with a message from its connection.
func Receive(m *Mailbox, payload string) { m.handle(&redis.Message{Payload: payload}) }
