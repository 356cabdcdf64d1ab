package wake

import (
	"sync"

	"github.com/redis/go-redis/v9"
)

// Mutex returns the mutex of a mailbox.
func Mutex(m *Mailbox) *sync.Mutex { return &m.mu }

// Receive handles a message as if it came from the connection.
func Receive(m *Mailbox, payload string) { m.handle(&redis.Message{Payload: payload}) }
