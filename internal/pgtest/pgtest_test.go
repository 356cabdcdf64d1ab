package pgtest_test

import (
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

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

// The process that started a server is killed, and can clean up nothing. The
// server, its children and the script hold a pipe of ours open, so when we see
// its end, all of them have ended.
func TestServerEndsWithItsProcess(t *testing.T) {
	const helper = "PGTEST_HELPER" // set in the process that is killed
	dsn := pgtest.Start(t)
	if os.Getenv(helper) != "" {
		if _, err := io.WriteString(os.NewFile(3, "life"), dsn); err != nil {
			t.Fatal(err)
		}
		select {}
	}

	life, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = life.Close() }()
	defer func() { _ = end.Close() }()

	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServerEndsWithItsProcess$")
	cmd.Env = append(os.Environ(), helper+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{end}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := end.Close(); err != nil {
		t.Fatal(err)
	}
	if err := life.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 1024)
	n, err := life.Read(text) // the server is up
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(string(text[:n]))
	if err != nil {
		t.Fatal(err)
	}
	dir := u.Query().Get("host")
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := life.Read(text); !errors.Is(err, io.EOF) {
		t.Fatalf("waiting for the server's end: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the server has ended, and %s is still there: %v", dir, err)
	}
}

// psqlCommand returns a command that sends statements one after the other.
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

// reachable returns a directory that the user postgres can get to, which
// t.TempDir's parent does not let it, and with a path short enough for a socket.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pgtest") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
