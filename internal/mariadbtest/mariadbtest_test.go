package mariadbtest_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/internal/daemon"
	"github.com/fetchonce/fetchonce/internal/mariadbtest"
)

func TestEachTestGetsADatabaseOfItsOwn(t *testing.T) {
	a, b := mariadbtest.Start(t), mariadbtest.Start(t)
	if a == b {
		t.Errorf("two Starts gave one database, %s", a)
	}
	for _, dsn := range []string{a, b} {
		if out, err := query(t, dsn, "SELECT DATABASE()"); err != nil || !strings.HasSuffix(dsn, "/"+out) {
			t.Errorf("the database of %s is %q, %v", dsn, out, err)
		}
	}
}

func TestDatabaseIsDroppedAfterItsTest(t *testing.T) {
	var dsn string
	t.Run("a test", func(t *testing.T) { dsn = mariadbtest.Start(t) })
	if dsn == "" {
		t.Skip("no MariaDB")
	}
	if out, err := query(t, dsn, "SELECT 1"); err == nil {
		t.Errorf("SELECT 1 after the test = %q, want an error", out)
	}
}

func TestStoppedServerIsGoneAndKeepsItsFiles(t *testing.T) {
	mariadbtest.Start(t) // skips, without a MariaDB
	dir := reachable(t)
	s, err := mariadbtest.Run(dir)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := query(t, s.DSN(), "SELECT 1"); err != nil || out != "1" {
		t.Errorf("SELECT 1 = %q, %v; want 1", out, err)
	}
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := query(t, s.DSN(), "SELECT 1"); err == nil {
		t.Errorf("SELECT 1 after Stop = %q, want an error", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "ibdata1")); err != nil {
		t.Errorf("after Stop: %v", err)
	}
}

func TestRestartedServerHasItsData(t *testing.T) {
	mariadbtest.Start(t) // skips, without a MariaDB
	s, err := mariadbtest.Run(reachable(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	if out, err := query(t, s.DSN(), "CREATE TABLE t SELECT 7 AS n"); err != nil {
		t.Fatal(out, err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if out, err := query(t, s.DSN(), "SELECT n FROM t"); err != nil || out != "7" {
		t.Errorf("after Restart, SELECT n = %q, %v; want 7", out, err)
	}
}

func TestServerThatCannotStartSaysWhy(t *testing.T) {
	mariadbtest.Start(t)
	dir := reachable(t)
	if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := mariadbtest.Run(dir)
	if err == nil {
		_ = s.Stop()
		t.Fatal("Run with a file in the place of its data succeeded")
	}
	if errors.Is(err, mariadbtest.ErrNotInstalled) || !strings.Contains(err.Error(), filepath.Join(dir, "data")) {
		t.Errorf("Run = %v; want an error that names what is in the way", err)
	}
}

func TestMissingProgramIsNotInstalled(t *testing.T) {
	if found, err := mariadbtest.Programs("no-such-program"); !errors.Is(err, mariadbtest.ErrNotInstalled) {
		t.Errorf("programs = %v, %v; want ErrNotInstalled", found, err)
	}
}

func TestServerEndsWithItsProcess(t *testing.T) {
	daemon.DiesWithProcess(t, func(tb testing.TB) string {
		tb.Helper()
		return filepath.Dir(socket(mariadbtest.Start(tb)))
	})
}

// socket returns the path in a DSN.
func socket(dsn string) string {
	_, rest, _ := strings.Cut(dsn, "(")
	path, _, _ := strings.Cut(rest, ")")
	return path
}

func query(t *testing.T, dsn, statement string) (string, error) {
	t.Helper()
	client, err := mariadbtest.Programs("mariadb")
	if err != nil {
		t.Fatal(err)
	}
	_, database, _ := strings.Cut(dsn, ")/")
	out, err := exec.CommandContext(t.Context(), client[0], "--no-defaults", "--socket="+socket(dsn), "--user=root",
		"--batch", "--skip-column-names", "--execute="+statement, database).Output()
	return strings.TrimSuffix(string(out), "\n"), err
}

// reachable returns a directory that the user mysql can access, with a path short enough
// for a socket. That user cannot access the parent of t.TempDir.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "mariadbtest") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
