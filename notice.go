package fetchonce

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/internal/client"
	"github.com/fetchonce/fetchonce/internal/errtext"
)

// The messages of the log.
const (
	noticeDown      = "fetchonce: redis unavailable; loading without a lease"
	noticeRefused   = "fetchonce: redis refused a command; loading without a lease"
	noticeSilent    = "fetchonce: redis refused PUBLISH; waiters are not notified"
	noticeUnusable  = "fetchonce: unusable value in redis; replacing it"
	noticeUntracked = "fetchonce: redis refused CLIENT TRACKING; near cache misses changes by other programs until its TTL"
	noticeNoNear    = "fetchonce: tracking connection failed; near cache not used"
	noticeUnstored  = "fetchonce: fetched value not stored"
	noticeRefresh   = "fetchonce: refresh failed; serving the stale value"
	noticeTrace     = "fetchonce: trace function panicked"
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
		n.log(what, "error", ofRedis(why), "count", unsaid)
	}
}

// log calls the logger. What is logged has no caller, so a panic of the logger goes
// no further.
func (n *notices) log(what string, args ...any) {
	defer func() { _ = recover() }()
	n.logger.Warn(what, args...)
}

// unnotified logs, once, that the server refuses notifications.
func (n *notices) unnotified(why error) { n.once(noticeSilent, why) }

// loggable returns what the log receives of the error of a load: see [shareable]. Of a
// panic it has the stack, too.
func loggable(err error, inStore bool) error {
	if p, ok := errors.AsType[*PanicError](err); ok {
		return &PanicError{Value: shareablePanic(p.Value, inStore), Stack: p.Stack}
	}
	return errors.New(shareable(err, inStore))
}

// shareable returns what of an error of a load may leave the process. The text of
// a fetch's own error does, but for the errors of databases and parsers in it, which
// quote data: of these, and of every error of a Store, it is the kind.
func shareable(err error, inStore bool) string {
	if inStore {
		return "the Store failed: " + errtext.Kind(err)
	}
	return errtext.Public(err)
}

// shareablePanic is [shareable] for the value of a panic.
func shareablePanic(value any, inStore bool) string {
	err, ok := value.(error)
	switch {
	case inStore:
		return "in the Store: " + errtext.OfPanic(value)
	case ok:
		return errtext.Public(err)
	}
	return fmt.Sprint(value)
}

// ofRedis returns what the log receives of an error of Redis or its client: the panic
// of a client's hook may quote a command.
func ofRedis(err error) error {
	if p, ok := errors.AsType[*client.PanicError](err); ok {
		return &client.PanicError{Value: errtext.OfPanic(p.Value), Stack: p.Stack}
	}
	return err
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
		n.log(what, "error", ofRedis(why))
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
