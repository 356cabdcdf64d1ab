package pgtest_test

import (
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/fetchonce/fetchonce/internal/daemon"
	"github.com/fetchonce/fetchonce/internal/pgtest"
)

func TestEachTestGetsADatabaseOfItsOwn(t *testing.T) {
	a, b := pgtest.Start(t), pgtest.Start(t)
	if a == b {
		t.Errorf("two Starts gave one database, %s", a)
	}
	for _, dsn := range []string{a, b} {
		if out, err := psql(t, dsn, "SELECT 1"); err != nil || out != "1\n" {
			t.Errorf("SELECT 1 in %s = %q, %v; want 1", dsn, out, err)
		}
	}
}

func TestDatabaseIsDroppedUnderItsClients(t *testing.T) {
	var dsn string
	var client *exec.Cmd
	t.Run("a test that leaves a connection", func(t *testing.T) {
		dsn = pgtest.Start(t)
		client = psqlCommand(t, dsn, "SELECT 'here'", "SELECT pg_sleep(600)")
		out, err := client.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("here"))); err != nil {
			t.Fatal(err)
		}
	})
	if client == nil {
		t.Skip("no PostgreSQL")
	}
	if err := client.Wait(); err == nil {
		t.Error("the connection outlived its test")
	}
	if out, err := psql(t, dsn, "SELECT 1"); err == nil {
		t.Errorf("SELECT 1 after the test = %q, want an error", out)
	}
}

func TestStoppedServerIsGoneAndKeepsItsFiles(t *testing.T) {
	pgtest.Start(t) // skips, without a PostgreSQL
	dir := reachable(t)
	s, err := pgtest.Run(dir)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := psql(t, s.DSN(), "SELECT 1"); err != nil || out != "1\n" {
		t.Errorf("SELECT 1 = %q, %v; want 1", out, err)
	}
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := psql(t, s.DSN(), "SELECT 1"); err == nil {
		t.Errorf("SELECT 1 after Stop = %q, want an error", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "PG_VERSION")); err != nil {
		t.Errorf("after Stop: %v", err)
	}
}

func TestRestartedServerHasItsData(t *testing.T) {
	pgtest.Start(t) // skips, without a PostgreSQL
	s, err := pgtest.Run(reachable(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	if out, err := psql(t, s.DSN(), "CREATE TABLE t AS SELECT 7 AS n"); err != nil {
		t.Fatal(out, err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if out, err := psql(t, s.DSN(), "SELECT n FROM t"); err != nil || out != "7\n" {
		t.Errorf("after Restart, SELECT n = %q, %v; want 7", out, err)
	}
}

func TestServerThatCannotStartSaysWhy(t *testing.T) {
	pgtest.Start(t)
	dir := reachable(t)
	if err := os.MkdirAll(filepath.Join(dir, "data", "somebody's"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := pgtest.Run(dir)
	if err == nil {
		_ = s.Stop()
		t.Fatal("Run in a directory that is not empty succeeded")
	}
	if errors.Is(err, pgtest.ErrNotInstalled) {
		t.Errorf("Run = %v, which is ErrNotInstalled", err)
	}
}

func TestServerEndsWithItsProcess(t *testing.T) {
	daemon.DiesWithProcess(t, func(tb testing.TB) string {
		tb.Helper()
		u, err := url.Parse(pgtest.Start(tb))
		if err != nil {
			tb.Fatal(err)
		}
		return u.Query().Get("host")
	})
}

// psqlCommand returns a command that executes the statements in order.
func psqlCommand(t *testing.T, dsn string, statements ...string) *exec.Cmd {
	t.Helper()
	bin, err := pgtest.Programs()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-XAtq", "-d", dsn}
	for _, s := range statements {
		args = append(args, "-c", s)
	}
	return exec.CommandContext(t.Context(), filepath.Join(bin, "psql"), args...)
}

func psql(t *testing.T, dsn string, statements ...string) (string, error) {
	t.Helper()
	out, err := psqlCommand(t, dsn, statements...).Output()
	return string(out), err
}

// reachable returns a directory that the user postgres can access, with a path short enough
// for a socket. That user cannot access the parent of t.TempDir.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pgtest") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
