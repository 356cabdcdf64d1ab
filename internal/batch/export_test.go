package batch

// NewEager returns a batcher whose commands go as soon as a hand is free.
func NewEager(conn Conn) *Batcher {
	b := New(conn)
	b.straggle = 0
	return b
}
