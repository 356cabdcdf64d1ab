package daemon

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// DiesWithProcess tests that a server ends with the process that started it, and that
// its files are removed. It must be the only call in its test. start starts a server
// and returns its directory.
//
// DiesWithProcess runs the test binary again as a child process, and kills it, so the
// child cannot clean up. The server, its children and the script inherit the write end
// of a pipe. When this process reads the end of the pipe, all of them have ended.
func DiesWithProcess(t *testing.T, start func(testing.TB) (dir string)) {
	t.Helper()
	const helper = "DAEMON_HELPER" // set in the process that is killed
	dir := start(t)                // skips if the server is not installed
	if os.Getenv(helper) != "" {
		if _, err := io.WriteString(os.NewFile(3, "life"), dir); err != nil {
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

	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), helper+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{end}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := end.Close(); err != nil {
		t.Fatal(err)
	}
	if err := life.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 1024)
	n, err := life.Read(text) // the server is up
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Clean(string(text[:n]))
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
