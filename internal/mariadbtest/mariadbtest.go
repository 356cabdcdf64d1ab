// Package mariadbtest gives tests a MariaDB of their own, as pgtest does a
// PostgreSQL.
//
// [Start] is what a test wants: a fresh database, on a server that all tests of
// the binary share. [Run] starts a server for programs that are not tests. A
// server listens on a unix socket only, and does not outlive the process that
// started it.
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

// ErrNotInstalled says that there is no MariaDB to start here.
var ErrNotInstalled = errors.New("mariadbtest: no MariaDB")

// A Server is a running MariaDB. Its methods may be called by many goroutines at
// once.
type Server struct {
	server  string // the program mariadbd
	client  string // the program mariadb
	socket  string
	daemon  *daemon.Daemon
	options daemon.Options
}

var shared = daemon.Share("mariadbtest", func(dir string) (*Server, error) { return start(dir, true) })

// Start returns the DSN of an empty database, which is dropped when the test
// ends. The first Start in a test binary starts a server, in a second or two.
//
// If MariaDB is not installed, the test is skipped, or fails if
// FETCHONCE_REQUIRE_SERVERS is 1. Start does not belong in a bubble.
func Start(tb testing.TB) (dsn string) {
	tb.Helper()
	return shared.Database(tb, ErrNotInstalled)
}

// Run starts a server whose files are in dir, which must be empty, and returns
// when it can be connected to. The files stay when the server has ended.
//
// MariaDB does not run as root. To root, Run starts it as the user mysql, to
// whom it gives dir; that user must be able to reach it. The error is
// [ErrNotInstalled] if there is no MariaDB, or no such user.
func Run(dir string) (*Server, error) {
	return start(dir, false)
}

// start is Run; remove says whether dir goes when the server has ended.
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

// launch starts the server over the files that are there.
func (s *Server) launch() error {
	dir := s.options.Dir
	d, err := daemon.Start(s.options,
		s.server, "--no-defaults", "--datadir="+filepath.Join(dir, "data"), "--socket="+s.socket, "--skip-networking", "--tmpdir="+dir,
		"--pid-file="+filepath.Join(dir, "pid"), "--max-connections=200",
		// Nothing is fsynced: the data need not outlive the machine.
		"--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--innodb-doublewrite=0", "--innodb-fast-shutdown=2")
	if err != nil {
		return fmt.Errorf("mariadbtest: MariaDB: %w", err)
	}
	s.daemon = d
	return nil
}

// ready reports whether the server greets us. The socket alone is there before
// anybody answers it.
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

// DSN returns the DSN of the database mysql, as github.com/go-sql-driver/mysql
// reads it: it ends in the database's name.
func (s *Server) DSN() string { return s.dsn("mysql") }

func (s *Server) dsn(database string) string { return "root@unix(" + s.socket + ")/" + database }

// CreateDatabase makes an empty database and returns its DSN.
func (s *Server) CreateDatabase(name string) (dsn string, err error) {
	return s.dsn(name), s.do("CREATE DATABASE `" + name + "`")
}

// DropDatabase drops a database. A connection that uses it is left without.
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

// Stop ends the server and its clients' connections, and returns when it has
// ended. To stop it again does nothing.
func (s *Server) Stop() error {
	if err := s.daemon.Stop(); err != nil {
		return fmt.Errorf("mariadbtest: MariaDB: %w", err)
	}
	return nil
}

// Restart stops a server that [Run] started, starts it again with its data, and
// returns when it can be connected to. No other method may run meanwhile.
func (s *Server) Restart() error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.launch()
}

// locate returns the paths of programs: on PATH, or where servers are kept,
// which is on the PATH of root only.
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
