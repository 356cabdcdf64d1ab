package batch

import "github.com/fetchonce/fetchonce/internal/contexttest"

// NewEager returns a Batcher that does not linger.
func NewEager(conn Conn) *Batcher {
	b := New(conn, func() {})
	b.linger = 0
	return b
}

// Queued returns how many requests are queued.
func (b *Batcher) Queued() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.queue {
		n += f.live
	}
	return n
}

// IsFree reports whether the Batcher's mutex can be locked.
func (b *Batcher) IsFree() bool { return contexttest.IsFree(&b.mu) }
