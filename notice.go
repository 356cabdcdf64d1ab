package fetchonce

import (
	"log/slog"
	"sync"
	"time"
)

// What the log is told.
const (
	noticeDown     = "fetchonce: Redis is down: going on without it"
	noticeUnusable = "fetchonce: a value in Redis is not usable and will be replaced"
	noticeUnstored = "fetchonce: a fetched value could not be stored"
)

// noticeEvery is how often the log is told the same thing.
const noticeEvery = 10 * time.Second

// A notices tells the log what no caller is told. A fault befalls many calls at
// once, so each kind of notice is a line every ten seconds at most, with the
// number of times it happened. No line has a key or a value.
type notices struct {
	logger *slog.Logger

	mu   sync.Mutex
	said map[string]*notice
}

type notice struct {
	total, unsaid int
	last          time.Time
}

func (n *notices) warn(what string, why error) {
	if unsaid := n.count(what); unsaid > 0 {
		n.logger.Warn(what, "error", why, "times", unsaid)
	}
}

// count counts, and returns how often the log was not told so far, if it is to
// be told now.
func (n *notices) count(what string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.said == nil {
		n.said = make(map[string]*notice)
	}
	s := n.said[what]
	if s == nil {
		s = &notice{}
		n.said[what] = s
	}
	s.total++
	s.unsaid++
	if !s.last.IsZero() && time.Since(s.last) < noticeEvery {
		return 0
	}
	unsaid := s.unsaid
	s.unsaid, s.last = 0, time.Now()
	return unsaid
}
