package wake

import "sync"

// Mutex returns the mutex of a mailbox.
func Mutex(m *Mailbox) *sync.Mutex { return &m.mu }
