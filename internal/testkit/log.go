package testkit

import (
	"log/slog"
	"strings"
	"sync"
)

// A Log keeps what a logger writes.
type Log struct {
	mu   sync.Mutex
	Text strings.Builder
}

// Write adds to the log.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Text.Write(b)
}

// Logger returns a logger that writes to the log.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Count returns how often the log has a text.
func (l *Log) Count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.Text.String(), what)
}
