package wake

import (
	"slices"
	"sync"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A Slot holds the newest notification for one waiter.
//
// A waiter opens its slot before it registers in Redis: the notification may arrive before
// the answer to the registration. The slot keeps it. The answer says which fence the waiter
// waits for, and Take compares the two.
type Slot struct {
	mailbox *Mailbox
	name    string
	ready   chan struct{} // receives when there may be a notification

	mu      sync.Mutex
	newest  protocol.Message
	present bool
	retry   bool // notifications may have been lost
}

// OpenSlot returns a new slot for the notifications with this name: the name of a value, or the
// owner token of a waiter for a lock. The caller must close it.
func (m *Mailbox) OpenSlot(name string) *Slot {
	s := &Slot{mailbox: m, name: name, ready: make(chan struct{}, 1)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slots[name] = append(m.slots[name], s)
	return s
}

// Ready receives when there may be a notification to take.
func (s *Slot) Ready() <-chan struct{} { return s.ready }

// Take empties the slot. It returns the notification and true if its lease is not older than
// fence. A caller that takes any notification passes 0. Else, if notifications may have been lost, it returns one of kind retry and true.
func (s *Slot) Take(fence int64) (protocol.Message, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	message, counts := s.newest, s.present && s.newest.Fence >= fence
	if !counts && s.retry {
		message, counts = protocol.Message{Kind: protocol.KindRetry, Fence: fence, Name: s.name}, true
	}
	s.newest, s.present, s.retry = protocol.Message{}, false, false
	return message, counts
}

// put stores a notification, unless the slot has one of a newer lease.
func (s *Slot) put(message protocol.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.present && message.Fence < s.newest.Fence {
		return
	}
	s.newest, s.present = message, true
	s.signal()
}

// putRetry notes that notifications may have been lost.
func (s *Slot) putRetry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retry = true
	s.signal()
}

func (s *Slot) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Close removes the slot from its mailbox.
func (s *Slot) Close() {
	m := s.mailbox
	m.mu.Lock()
	defer m.mu.Unlock()
	slots := slices.DeleteFunc(m.slots[s.name], func(other *Slot) bool { return other == s })
	if len(slots) == 0 {
		delete(m.slots, s.name)
		return
	}
	m.slots[s.name] = slots
}
