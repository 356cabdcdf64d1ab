//go:build unix

package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/chaos/origin"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// jobVariable is the environment variable that makes this binary a worker.
const jobVariable = "FETCHONCE_CHAOS_JOB"

// TestMain runs a worker if the environment has a job, and else the tests.
func TestMain(m *testing.M) {
	if description := os.Getenv(jobVariable); description != "" {
		logging.Disable() // go-redis also logs the errors that it returns
		var j job
		err := json.Unmarshal([]byte(description), &j)
		if err == nil {
			err = j.work(context.Background())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, j.Process, "failed:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// full reports whether the tests take their full length.
func full() bool { return os.Getenv("FETCHONCE_CHAOS") == "full" }

// patience limits every wait.
const patience = time.Minute

// A job tells a worker what to do.
type job struct {
	Role    string // of roles
	Process string // its name in the history
	Redis   string // URL
	Driver  string // of the database
	DSN     string
	History string // file
	Lease   time.Duration

	Keys []string // of a loader and of a writer
	Late bool     // replies and messages of Redis are delayed
	Step step     // at which a writer kills itself

	Names   int // of a creator
	Callers int
	Shared  bool // the callers share a prefix, and every lease is granted
}

// roles are the kinds of workers. A worker ends when its input does or when its work is done.
var roles = map[string]func(ctx context.Context, j job, in *bufio.Scanner) error{
	"load":   load,
	"read":   read,
	"write":  write,
	"create": create,
	"fence":  fence,
}

func (j job) work(ctx context.Context) error {
	role := roles[j.Role]
	if role == nil {
		return fmt.Errorf("there is no role %q", j.Role)
	}
	return role(ctx, j, bufio.NewScanner(os.Stdin))
}

// A worker is a process that runs a role.
type worker struct {
	t     testing.TB
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // its output
	ended bool
}

// executable returns the path of this binary.
func executable(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts a worker with this binary or another build of it.
func start(t testing.TB, binary string, j job) *worker {
	t.Helper()
	description, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{t: t, name: j.Process, cmd: exec.Command(binary), lines: make(chan string, 10_000)}
	w.cmd.Env = append(os.Environ(), jobVariable+"="+string(description))
	w.cmd.Stderr = os.Stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			w.lines <- lines.Text()
		}
		close(w.lines)
	}()
	t.Cleanup(func() {
		if !w.ended {
			_ = w.cmd.Process.Kill()
			_ = w.wait()
		}
	})
	return w
}

// wait waits until the process has ended by itself.
func (w *worker) wait() error {
	w.ended = true
	for range w.lines {
	}
	return w.cmd.Wait()
}

// stop lets the process end normally.
func (w *worker) stop() {
	w.t.Helper()
	_ = w.in.Close()
	timeout := time.AfterFunc(patience, func() { _ = w.cmd.Process.Signal(syscall.SIGABRT) }) // which prints its stacks
	defer timeout.Stop()
	if err := w.wait(); err != nil {
		w.t.Errorf("%s: %v", w.name, err)
	}
}

// killed waits until the process was killed.
func (w *worker) killed() {
	w.t.Helper()
	err := w.wait()
	status, ok := w.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		w.t.Errorf("%s was not killed: %v", w.name, err)
	}
}

func (w *worker) signal(s syscall.Signal) {
	w.t.Helper()
	if err := w.cmd.Process.Signal(s); err != nil {
		w.t.Fatal(err)
	}
}

func (w *worker) send(words ...string) {
	w.t.Helper()
	if _, err := fmt.Fprintln(w.in, strings.Join(words, " ")); err != nil {
		w.t.Fatalf("%s: %v", w.name, err)
	}
}

// await reads the next line, which must begin with word, and returns the rest.
func (w *worker) await(word string) string {
	w.t.Helper()
	select {
	case line, more := <-w.lines:
		rest, ok := strings.CutPrefix(line, word)
		if !ok || !more {
			w.t.Fatalf("%s printed %q, want %q", w.name, line, word)
		}
		return strings.TrimSpace(rest)
	case <-time.After(patience):
		w.t.Fatalf("%s did not print %q", w.name, word)
		return ""
	}
}

// A scene is the servers and the history that the workers of a test share.
type scene struct {
	t      testing.TB
	binary string // of the workers
	job    job    // the part that is the same for all workers
	source *origin.Source
	log    *history.Log // the test's own
	reader *history.Reader
	events []history.Event // read so far
	redis  *redistest.Process
}

const processes = 4

func newScene(t *testing.T, lease time.Duration) *scene {
	t.Helper()
	server := redistest.Server(t)
	src, dsn := newSource(t)
	file := filepath.Join(t.TempDir(), "history")
	log, err := history.OpenLog(file, "supervisor")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	reader, err := history.OpenReader(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close() })
	return &scene{
		t: t, binary: executable(t), source: src, log: log, reader: reader, redis: server,
		job: job{Redis: server.URL(), Driver: "pgx", DSN: dsn, History: file, Lease: lease},
	}
}

// start starts a worker of this scene.
func (s *scene) start(role, process string, change func(*job)) *worker {
	s.t.Helper()
	j := s.job
	j.Role, j.Process = role, process
	change(&j)
	return start(s.t, s.binary, j)
}

// await waits until ok holds for a new event.
func (s *scene) await(what string, ok func(history.Event) bool) {
	s.t.Helper()
	events, err := s.reader.Await(patience, ok)
	s.events = append(s.events, events...)
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
}

// read reads the new events.
func (s *scene) read() {
	s.t.Helper()
	events, err := s.reader.Next()
	if err != nil {
		s.t.Fatal(err)
	}
	s.events = append(s.events, events...)
}

// create creates keys with their first versions.
func (s *scene) create(keys ...string) {
	s.t.Helper()
	for _, key := range keys {
		if err := s.source.Create(s.t.Context(), key); err != nil {
			s.t.Fatal(err)
		}
		first := history.Event{Key: key, Version: 1, Writer: "supervisor"}
		for _, first.Op = range []history.Op{history.Committing, history.Committed} {
			s.log.Write(first)
		}
	}
}

// recordDeath records the death of a process, and its commits.
func (s *scene) recordDeath(w *worker) {
	s.t.Helper()
	s.log.Write(history.Event{Process: w.name, Op: history.Died})
	commits, err := s.source.Left(s.t.Context(), w.name)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range commits {
		s.log.Write(c)
	}
}

// judge reads the rest of the history and returns its violations and its evidence.
func (s *scene) judge() ([]history.Violation, history.Count) {
	s.t.Helper()
	s.read()
	return history.Check(s.events, s.job.Lease), history.Sum(s.events, s.job.Lease)
}

// wantNone fails the test if there are violations. It then keeps the history if FETCHONCE_CHAOS_KEEP
// names a directory.
func (s *scene) wantNone(found []history.Violation) {
	s.t.Helper()
	for i, v := range found {
		if i == 5 {
			s.t.Errorf("and %d more", len(found)-i)
			break
		}
		s.t.Error(v)
	}
	if len(found) == 0 {
		return
	}
	if dir := os.Getenv("FETCHONCE_CHAOS_KEEP"); dir != "" {
		kept, err := os.ReadFile(s.job.History)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(s.t.Name(), "/", "-")), kept, 0o600)
		}
		s.t.Log("the history is kept:", err)
	}
}
