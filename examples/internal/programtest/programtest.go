//go:build unix

// Package programtest runs an example as a user does: as a process with flags.
package programtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// beProgram is the environment variable that makes the test binary run the program.
const beProgram = "FETCHONCE_TEST_EXAMPLE"

// Main is for TestMain. It runs the tests, or main in a process of a [Program].
func Main(m *testing.M, main func()) {
	if os.Getenv(beProgram) != "" {
		main() // and its workers
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A Program is a way to start the program.
type Program struct {
	name  string
	flags []string // of each start
	dir   string   // where it makes temporary files
}

// New returns a Program with flags that each start has.
func New(t *testing.T, name string, flags ...string) Program {
	t.Helper()
	return Program{name: name, flags: flags, dir: t.TempDir()}
}

// Output is what a program printed, and its exit status.
type Output struct {
	Stdout, Stderr string
	Status         int
}

// Run runs the program to its end. The program must leave no files.
func (p Program) Run(t *testing.T, args ...string) Output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := p.command(t, args)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	status := exitStatus(t, cmd.Run())
	t.Logf("%s %q: status %d\n%s%s", p.name, args, status, &stdout, &stderr)
	p.checkFiles(t)
	return Output{stdout.String(), stderr.String(), status}
}

// CheckFlags tests that wrong flags end the program with status 2 and one line: the value
// for the flags in want.
func (p Program) CheckFlags(t *testing.T, want map[string]string) {
	t.Helper()
	for args, message := range want {
		wrong := Output{Stderr: p.name + ": " + message + "\n", Status: 2}
		if out := p.Run(t, strings.Fields(args)...); out != wrong {
			t.Errorf("%s %s: %+v, want %+v", p.name, args, out, wrong)
		}
	}
}

func (p Program) command(t *testing.T, args []string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, append(p.flags[:len(p.flags):len(p.flags)], args...)...)
	cmd.Env = append(os.Environ(), beProgram+"=1", "TMPDIR="+p.dir)
	return cmd
}

func (p Program) checkFiles(t *testing.T) {
	t.Helper()
	if files, err := os.ReadDir(p.dir); len(files) > 0 || err != nil {
		t.Errorf("afterwards there are the files %v, %v; want none", files, err)
	}
}

func exitStatus(t *testing.T, err error) int {
	t.Helper()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}

// A Process is a program that runs.
type Process struct {
	program        Program
	cmd            *exec.Cmd
	stdout, stderr *bufio.Reader
}

// Start starts the program. The test must read its output with AwaitOutput or AwaitError.
func (p Program) Start(t *testing.T, args ...string) *Process {
	t.Helper()
	cmd := p.command(t, args)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &Process{program: p, cmd: cmd, stdout: bufio.NewReader(stdout), stderr: bufio.NewReader(stderr)}
}

// AwaitOutput reads stdout until a line matches, and returns the match.
func (p *Process) AwaitOutput(t *testing.T, pattern string) string {
	t.Helper()
	return await(t, p.stdout, regexp.MustCompile(pattern))
}

// AwaitError reads stderr until a line matches, and returns the match.
func (p *Process) AwaitError(t *testing.T, pattern string) string {
	t.Helper()
	return await(t, p.stderr, regexp.MustCompile(pattern))
}

func await(t *testing.T, lines *bufio.Reader, pattern *regexp.Regexp) string {
	t.Helper()
	for {
		line, err := lines.ReadString('\n')
		if match := pattern.FindString(line); match != "" {
			return match
		}
		if err != nil {
			t.Fatalf("after %q: %v, want %s", line, err, pattern)
		}
	}
}

// Interrupt interrupts the program and waits for its end. It returns the rest of stderr.
// The program must leave no files.
func (p *Process) Interrupt(t *testing.T) (stderr string, status int) {
	t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	stderr = p.readAll(t)
	status = exitStatus(t, p.cmd.Wait())
	p.program.checkFiles(t)
	return stderr, status
}

// Kill kills the program and waits until it and its workers, which share its stderr, have
// ended.
func (p *Process) Kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.readAll(t)
	_ = p.cmd.Wait()
}

// readAll reads both outputs to their end, and returns stderr.
func (p *Process) readAll(t *testing.T) string {
	t.Helper()
	stdout := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, p.stdout)
		stdout <- err
	}()
	text, err := io.ReadAll(p.stderr)
	if err := errors.Join(err, <-stdout); err != nil {
		t.Errorf("after %q: %v", text, err)
	}
	return string(text)
}

// Get requests url and decodes the response into body if it is JSON.
func Get(t *testing.T, url string, body any) (status int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Error(err)
		return 0
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer func() { _ = response.Body.Close() }()
	if response.Header.Get("Content-Type") == "application/json" {
		if err := json.NewDecoder(response.Body).Decode(body); err != nil {
			t.Error(err)
		}
	}
	return response.StatusCode
}
