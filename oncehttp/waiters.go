package oncehttp

import "sync"

// waiters counts the requests of each name that wait for the lock in this process.
type waiters struct {
	limit int // 0 for none

	mu    sync.Mutex
	names map[string]int // requests that wait, by name
}

// enter counts a request and returns true, or returns false if the limit is reached. After
// true, the caller calls leave when the request no longer waits.
func (w *waiters) enter(name string) bool {
	if w.limit == 0 {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.names[name] >= w.limit {
		return false
	}
	if w.names == nil {
		w.names = make(map[string]int)
	}
	w.names[name]++
	return true
}

func (w *waiters) leave(name string) {
	if w.limit == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.names[name]--; w.names[name] == 0 {
		delete(w.names, name)
	}
}
