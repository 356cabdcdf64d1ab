package lockqueue

import "github.com/fetchonce/fetchonce/internal/contexttest"

// IsFree reports whether the queue's mutex can be locked.
func (q *Queue) IsFree() bool { return contexttest.IsFree(&q.mu) }
