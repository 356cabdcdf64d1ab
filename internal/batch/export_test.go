package batch

import "github.com/fetchonce/fetchonce/internal/contexttest"

// NewEager returns a batcher whose commands go as soon as a hand is free.
func NewEager(conn Conn) *Batcher {
	b := New(conn)
	b.straggle = 0
	return b
}

// Queued returns how many callers wait for a hand.
func (b *Batcher) Queued() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.queue {
		n += f.live
	}
	return n
}

// IsFree reports whether the batcher's mutex can be locked.
func (b *Batcher) IsFree() bool { return contexttest.IsFree(&b.mu) }
