// Package mariadbtest starts a MariaDB for tests, as pgtest starts a PostgreSQL.
//
// [Start] creates a database for one test, on a server that all tests of the binary
// share. [Run] starts a server for programs that are not tests.
//
// A server listens on a unix socket only, and ends with the process that started it.
package mariadbtest

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/daemon"
	"github.com/fetchonce/fetchonce/internal/programs"
)

// ErrNotInstalled reports that this machine cannot start MariaDB.
var ErrNotInstalled = errors.New("mariadbtest: no MariaDB")

// A Server is a running MariaDB. Its methods are safe for concurrent use, except
// Restart.
type Server struct {
	server  string // the program mariadbd
	client  string // the program mariadb
	socket  string
	daemon  *daemon.Daemon
	options daemon.Options
}

var shared = daemon.Share("mariadbtest", func(dir string) (*Server, error) { return start(dir, true) })

// Start returns the DSN of an empty database. The database is dropped when the test
// ends. The first Start in a test binary starts the server, which takes a second or
// two.
//
// If MariaDB is not installed, Start skips the test, or fails it if
// FETCHONCE_REQUIRE_SERVERS is 1. Do not call Start in a bubble.
func Start(tb testing.TB) (dsn string) {
	tb.Helper()
	return shared.Database(tb, ErrNotInstalled)
}

// Run starts a server with its files in dir, which must be empty. It returns when the
// server accepts connections. The files stay when the server ends.
//
// MariaDB does not run as root. If this process is root, Run starts MariaDB as the user
// mysql and makes that user the owner of dir. The user must be able to access dir. The
// error is [ErrNotInstalled] if there is no MariaDB or no such user.
func Run(dir string) (*Server, error) {
	return start(dir, false)
}

// start implements Run. If remove is set, dir is removed when the server ends.
func start(dir string, remove bool) (*Server, error) {
	found, err := locate("mariadbd", "mariadb-install-db", "mariadb")
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	as, err := daemon.As("mysql", dir)
	if errors.Is(err, daemon.ErrCannot) {
		return nil, fmt.Errorf("%w: %w", ErrNotInstalled, err)
	}
	if err != nil {
		return nil, err
	}
	data := "--datadir=" + filepath.Join(dir, "data")
	install := daemon.Command(found[1], "--no-defaults", data, "--auth-root-authentication-method=normal", "--skip-test-db")
	as(install)
	if err := daemon.Run(install); err != nil {
		return nil, fmt.Errorf("mariadbtest: %w", err)
	}
	s := &Server{server: found[0], client: found[2], socket: filepath.Join(dir, "socket")}
	s.options = daemon.Options{Dir: dir, Remove: remove, As: as, Signal: "TERM", Ready: s.ready}
	if err := s.launch(); err != nil {
		return nil, err
	}
	return s, nil
}

// launch starts the server with the existing files.
func (s *Server) launch() error {
	dir := s.options.Dir
	d, err := daemon.Start(s.options,
		s.server, "--no-defaults", "--datadir="+filepath.Join(dir, "data"), "--socket="+s.socket, "--skip-networking", "--tmpdir="+dir,
		"--pid-file="+filepath.Join(dir, "pid"), "--max-connections=200",
		// No fsync: the data need not survive a crash of the machine.
		"--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--innodb-doublewrite=0", "--innodb-fast-shutdown=2")
	if err != nil {
		return fmt.Errorf("mariadbtest: MariaDB: %w", err)
	}
	s.daemon = d
	return nil
}

// ready reports whether the server sends its greeting. The socket exists before the
// server accepts connections on it.
func (s *Server) ready() bool {
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	n, _ := conn.Read(make([]byte, 1))
	return n == 1
}

// DSN returns the DSN of the database mysql, for github.com/go-sql-driver/mysql. It
// ends in the name of the database.
func (s *Server) DSN() string { return s.dsn("mysql") }

func (s *Server) dsn(database string) string { return "root@unix(" + s.socket + ")/" + database }

// CreateDatabase creates an empty database and returns its DSN.
func (s *Server) CreateDatabase(name string) (dsn string, err error) {
	return s.dsn(name), s.do("CREATE DATABASE `" + name + "`")
}

// DropDatabase drops a database. Connections to it stay open, without a database.
func (s *Server) DropDatabase(name string) error {
	return s.do("DROP DATABASE `" + name + "`")
}

func (s *Server) do(statement string) error {
	client := daemon.Command(s.client, "--no-defaults", "--socket="+s.socket, "--user=root", "--execute="+statement)
	if err := daemon.Run(client); err != nil {
		return fmt.Errorf("mariadbtest: %s: %w", statement, err)
	}
	return nil
}

// Stop ends the server and its clients' connections, and returns when the server has
// ended. A second Stop does nothing.
func (s *Server) Stop() error {
	if err := s.daemon.Stop(); err != nil {
		return fmt.Errorf("mariadbtest: MariaDB: %w", err)
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

// locate returns the paths of programs: on PATH, or in the directories of servers, which
// may be on the PATH of root only.
func locate(names ...string) ([]string, error) {
	found := make([]string, len(names))
	for i, name := range names {
		for _, dir := range append([]string{""}, programs.Directories("/usr/sbin", "/usr/local/sbin")...) {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				found[i] = path
				break
			}
		}
		if found[i] == "" {
			return nil, fmt.Errorf("%w: %s is neither on PATH nor in /usr/sbin", ErrNotInstalled, name)
		}
	}
	return found, nil
}
