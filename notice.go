package fetchonce

import (
	"errors"
	"log/slog"
	"sync"
	"time"
)

// What the log is told.
const (
	noticeDown      = "fetchonce: Redis is down: going on without it"
	noticeUnusable  = "fetchonce: a value in Redis is not usable and will be replaced"
	noticeUntracked = "fetchonce: the server does not tell what changes: near copies miss the changes of others until their TTL"
	noticeNoNear    = "fetchonce: near copies are not used at present"
	noticeUnstored  = "fetchonce: a fetched value could not be stored"
	noticeRefresh   = "fetchonce: a refresh failed; the old value is used as long as it may be"
	noticeTrace     = "fetchonce: a function of the Trace panicked"
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
	told map[string]bool
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

// keyless returns what the log may be told of an error for a caller, which names
// the caller's key.
func keyless(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Err
	}
	return err
}

// once tells the log something that does not change.
func (n *notices) once(what string, why error) {
	n.mu.Lock()
	told := n.told[what]
	if n.told == nil {
		n.told = make(map[string]bool)
	}
	n.told[what] = true
	n.mu.Unlock()
	if !told {
		n.logger.Warn(what, "error", why)
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
