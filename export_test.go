package fetchonce

// Waiting returns how many goroutines wait for a lock in this locker.
func (lk *Locker) Waiting(name string) int {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	if n := lk.names[name]; n != nil {
		return n.waiters.Len()
	}
	return 0
}

// Names returns under how many names something is going on in this locker.
func (lk *Locker) Names() int {
	lk.mu.Lock()
	defer lk.mu.Unlock()
	return len(lk.names)
}
