// Package pgtest starts a PostgreSQL for tests.
//
// [Start] creates a database for one test, on a server that all tests of the binary
// share. [Run] starts a server for programs that are not tests.
//
// A server listens on a unix socket only, and ends with the process that started it.
package pgtest

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/internal/daemon"
	"github.com/fetchonce/fetchonce/internal/programs"
)

// ErrNotInstalled reports that this machine cannot start PostgreSQL.
var ErrNotInstalled = errors.New("pgtest: no PostgreSQL")

// A Server is a running PostgreSQL. Its methods are safe for concurrent use, except
// Restart.
type Server struct {
	bin     string // the directory of PostgreSQL's programs
	dir     string // the server's files: the socket and the directory data
	daemon  *daemon.Daemon
	options daemon.Options
}

var shared = daemon.Share("pgtest", func(dir string) (*Server, error) { return start(dir, true) })

// Start returns the DSN of an empty database. The database is dropped when the test
// ends, also if clients are still connected. The first Start in a test binary starts
// the server, which takes a second or two.
//
// If PostgreSQL is not installed, Start skips the test, or fails it if
// FETCHONCE_REQUIRE_SERVERS is 1. Do not call Start in a bubble.
func Start(tb testing.TB) (dsn string) {
	tb.Helper()
	return shared.Database(tb, ErrNotInstalled)
}

// Run starts a server with its files in dir, which must be empty. It returns when the
// server accepts connections. The files stay when the server ends.
//
// PostgreSQL does not run as root. If this process is root, Run starts PostgreSQL as
// the user postgres and makes that user the owner of dir. The user must be able to
// access dir. The error is [ErrNotInstalled] if there is no PostgreSQL or no such user.
func Run(dir string) (*Server, error) {
	return start(dir, false)
}

// start implements Run. If remove is set, dir is removed when the server ends.
func start(dir string, remove bool) (*Server, error) {
	bin, err := locate()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	as, err := daemon.As("postgres", dir)
	if errors.Is(err, daemon.ErrCannot) {
		return nil, fmt.Errorf("%w: %w", ErrNotInstalled, err)
	}
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir}
	initdb := daemon.Command(filepath.Join(bin, "initdb"), "--pgdata", filepath.Join(dir, "data"),
		"--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	as(initdb)
	if err := daemon.Run(initdb); err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	s.options = daemon.Options{Dir: dir, Remove: remove, As: as, Signal: "INT", Ready: s.ready}
	if err := s.launch(); err != nil {
		return nil, err
	}
	return s, nil
}

// launch starts the server with the existing files.
func (s *Server) launch() error {
	d, err := daemon.Start(s.options,
		filepath.Join(s.bin, "postgres"), "-D", filepath.Join(s.dir, "data"),
		"-c", "listen_addresses=", "-c", "unix_socket_directories="+s.dir, "-c", "unix_socket_permissions=0777",
		// No fsync: the data need not survive a crash of the machine.
		"-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
		"-c", "max_connections=200", "-c", "logging_collector=off")
	if err != nil {
		return fmt.Errorf("pgtest: PostgreSQL: %w", err)
	}
	s.daemon = d
	return nil
}

// ready reads the server's status, as pg_ctl does.
func (s *Server) ready() bool {
	status, _ := os.ReadFile(filepath.Join(s.dir, "data", "postmaster.pid"))
	lines := strings.Split(string(status), "\n")
	return len(lines) >= 8 && strings.TrimSpace(lines[7]) == "ready"
}

// DSN returns the URL of the database postgres, for pgx, lib/pq and psql.
func (s *Server) DSN() string { return s.dsn("postgres") }

func (s *Server) dsn(database string) string {
	query := url.Values{"host": {s.dir}, "user": {"postgres"}, "sslmode": {"disable"}}
	return (&url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: query.Encode()}).String()
}

// CreateDatabase creates an empty database and returns its DSN.
func (s *Server) CreateDatabase(name string) (dsn string, err error) {
	return s.dsn(name), s.do("createdb", name)
}

// DropDatabase drops a database and ends the connections to it.
func (s *Server) DropDatabase(name string) error {
	return s.do("dropdb", "--force", name)
}

// do runs a client program of PostgreSQL.
func (s *Server) do(program string, args ...string) error {
	args = append([]string{"--host", s.dir, "--username", "postgres"}, args...)
	if err := daemon.Run(daemon.Command(filepath.Join(s.bin, program), args...)); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	return nil
}

// Stop ends the server and its clients' connections, and returns when the server has
// ended. A second Stop does nothing.
func (s *Server) Stop() error {
	if err := s.daemon.Stop(); err != nil {
		return fmt.Errorf("pgtest: PostgreSQL: %w", err)
	}
	return nil
}

// Restart stops a server that [Run] started, and starts it again with its data. It
// returns when the server accepts connections. No other method may run meanwhile.
func (s *Server) Restart() error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.launch()
}

// locate returns the directory of PostgreSQL's programs: the one on PATH, or else the
// newest version in Debian's directories.
func locate() (string, error) {
	if initdb, err := exec.LookPath("initdb"); err == nil {
		// Programs on PATH are often links into another directory.
		if initdb, err = filepath.EvalSymlinks(initdb); err == nil && isServer(filepath.Dir(initdb)) {
			return filepath.Dir(initdb), nil
		}
	}
	var newest string
	var newestVersion float64
	for _, dir := range programs.Directories("/usr/lib/postgresql/*/bin") {
		version, err := strconv.ParseFloat(filepath.Base(filepath.Dir(dir)), 64) // such as "15" or "9.6"
		if err == nil && version > newestVersion && isServer(dir) {
			newest, newestVersion = dir, version
		}
	}
	if newest == "" {
		return "", fmt.Errorf("%w: initdb and postgres are neither on PATH nor in /usr/lib/postgresql/*/bin", ErrNotInstalled)
	}
	return newest, nil
}

func isServer(dir string) bool {
	for _, program := range []string{"initdb", "postgres", "createdb", "dropdb"} {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err != nil {
			return false
		}
	}
	return true
}
