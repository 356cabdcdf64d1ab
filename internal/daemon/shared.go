package daemon

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fetchonce/fetchonce/internal/programs"
)

// A Server is a database server that can create databases.
type Server interface {
	CreateDatabase(name string) (dsn string, err error)
	DropDatabase(name string) error
}

// A Shared is a server that all tests of a binary share. Each test has its own database.
// The server ends, and its files are removed, when this process ends.
type Shared[S Server] struct {
	server    func() (S, error)
	databases atomic.Int64
}

// Share returns a Shared that calls start when the first test needs a database. dir is a
// new directory, whose name starts with name.
func Share[S Server](name string, start func(dir string) (S, error)) *Shared[S] {
	return &Shared[S]{server: sync.OnceValues(func() (s S, err error) {
		dir, err := os.MkdirTemp(TempDir(), name)
		if err != nil {
			return s, err
		}
		if s, err = start(dir); err != nil {
			_ = os.RemoveAll(dir)
		}
		return s, err
	})}
}

// Database returns the DSN of an empty database, which is dropped when the test ends. If
// the server did not start because of the error missing, Database skips the test, or
// fails it if FETCHONCE_REQUIRE_SERVERS is 1.
func (s *Shared[S]) Database(tb testing.TB, missing error) (dsn string) {
	tb.Helper()
	server, err := s.server()
	if errors.Is(err, missing) {
		programs.Missing(tb, err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	dsn, err = server.CreateDatabase(name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := server.DropDatabase(name); err != nil {
			tb.Error(err)
		}
	})
	return dsn
}
