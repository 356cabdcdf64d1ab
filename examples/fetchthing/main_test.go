//go:build unix

package main_test

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	fetchthing "github.com/fetchonce/fetchonce/examples/fetchthing"
	"github.com/fetchonce/fetchonce/internal/pgtest"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// beProgram is set for a test binary that is to be the program.
const beProgram = "FETCHTHING_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		fetchthing.Main() // and its workers
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// onAllServers runs a test with the program's own servers, and with real ones. It
// checks that both are as they were when the test has ended.
func onAllServers(t *testing.T, test func(t *testing.T, p program)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) { test(t, newProgram(t)) })
	t.Run("real", func(t *testing.T) {
		redis, dsn := redistest.TCPServer(t), pgtest.Start(t)
		test(t, newProgram(t, "-redis", redis.URL(), "-dsn", dsn))
		if n, err := redis.Client().DBSize(t.Context()).Result(); n != 0 || err != nil {
			t.Errorf("afterwards there are %d keys in Redis, %v; want none", n, err)
		}
		if n := tables(t, dsn); n != 0 {
			t.Errorf("afterwards there are %d tables in the database, want none", n)
		}
	})
}

func tables(t *testing.T, dsn string) (n int) {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	err = db.QueryRowContext(t.Context(), `SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A program is a way to start the program.
type program struct {
	servers []string // flags
	dir     string   // where it makes temporary files
}

func newProgram(t *testing.T, servers ...string) program {
	t.Helper()
	return program{servers: servers, dir: t.TempDir()}
}

func (p program) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, append(p.servers, args...)...)
	cmd.Env = append(os.Environ(), beProgram+"=1", "TMPDIR="+p.dir)
	return cmd
}

// run runs the program to its end.
func (p program) run(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, log bytes.Buffer
	cmd := p.command(t, args...)
	cmd.Stdout, cmd.Stderr = &out, &log
	status = exitStatus(t, cmd.Run())
	t.Logf("fetchthing %q: status %d\n%s%s", args, status, &out, &log)
	p.checkFiles(t)
	return out.String(), log.String(), status
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

func (p program) checkFiles(t *testing.T) {
	t.Helper()
	if files, err := os.ReadDir(p.dir); len(files) > 0 || err != nil {
		t.Errorf("afterwards there are the files %v, %v; want none", files, err)
	}
}

// A line is one of the table.
type line struct {
	round, name                  string
	callers, calls, rows, errors int
}

var lineOfTable = regexp.MustCompile(`(?m)^(\w+) +(thing-\d+) +(\d+) +(\d+) +(\d+) +(\d+) +[\d.]+m?s +[\d.]+m?s$`)

// table returns the lines for a round.
func table(t *testing.T, stdout, round string) (lines []line) {
	t.Helper()
	for _, m := range lineOfTable.FindAllStringSubmatch(stdout, -1) {
		var n [4]int
		for i := range n {
			n[i], _ = strconv.Atoi(m[3+i])
		}
		if m[1] == round {
			lines = append(lines, line{m[1], m[2], n[0], n[1], n[2], n[3]})
		}
	}
	if len(lines) != 3 {
		t.Fatalf("the table has %d lines for the round %s, want 3", len(lines), round)
	}
	return lines
}

func TestManyCallersMakeOneCallAndOneRow(t *testing.T) {
	onAllServers(t, func(t *testing.T, p program) {
		stdout, _, status := p.run(t)
		if status != 0 {
			t.Errorf("exit status %d, want 0", status)
		}
		for _, l := range table(t, stdout, "fetchonce") {
			if want := (line{"fetchonce", l.name, 200, 1, 1, 0}); l != want {
				t.Errorf("%+v, want %+v", l, want)
			}
		}
		checkNaive(t, stdout)
	})
}

func TestNaiveShowsTheProblem(t *testing.T) {
	onAllServers(t, func(t *testing.T, p program) {
		stdout, _, status := p.run(t, "-naive")
		if status != 1 {
			t.Errorf("exit status %d, want 1: names were fetched twice", status)
		}
		checkNaive(t, stdout)
		if strings.Contains(stdout, "\nfetchonce") {
			t.Error("there is a round with fetchonce")
		}
	})
}

func checkNaive(t *testing.T, stdout string) {
	t.Helper()
	for _, l := range table(t, stdout, "naive") {
		if l.callers != 200 || l.calls < 2 || l.rows != 1 || l.errors < 1 {
			t.Errorf("%+v, want 200 callers, several calls, 1 row and errors", l)
		}
	}
	if !regexp.MustCompile(`(?m)^naive: errors are like: .*(UNIQUE constraint failed|duplicate key value)`).MatchString(stdout) {
		t.Error("there is no integrity error")
	}
}

func TestKilledWorkerIsReplaced(t *testing.T) {
	onAllServers(t, func(t *testing.T, p program) {
		stdout, _, status := p.run(t, "-kill")
		if status != 0 {
			t.Errorf("exit status %d, want 0", status)
		}
		lines := table(t, stdout, "kill")
		// The first name is the one whose fetch is cut short.
		if want := (line{"kill", "thing-1", 150, 2, 1, 0}); lines[0] != want {
			t.Errorf("%+v, want %+v", lines[0], want)
		}
		for _, l := range lines[1:] {
			if l.callers != 150 || l.calls < 1 || l.calls > 2 || l.rows != 1 || l.errors != 0 {
				t.Errorf("%+v, want 150 callers, 1 or 2 calls, 1 row and no errors", l)
			}
		}
	})
}

func TestInterruptedProgramCleansUp(t *testing.T) {
	onAllServers(t, func(t *testing.T, p program) {
		cmd := p.command(t, "-delay", "1h")
		stderr := startAndAwaitCalls(t, cmd)
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(stderr)
		if err != nil {
			t.Fatal(err)
		}
		if status := exitStatus(t, cmd.Wait()); status != 1 || !strings.HasSuffix(string(rest), "fetchthing: naive: interrupted\n") {
			t.Errorf("exit status %d after %q, want 1 and that it was interrupted", status, rest)
		}
		p.checkFiles(t)
	})
}

// The workers have the program's stderr, so its end is the end of all of them.
func TestWorkersEndWhenTheProgramIsKilled(t *testing.T) {
	for _, round := range []string{"-naive", "-kill"} {
		t.Run(round, func(t *testing.T) {
			cmd := newProgram(t).command(t, round, "-delay", "1h")
			stderr := startAndAwaitCalls(t, cmd)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(stderr); err != nil {
				t.Errorf("after %q: %v", rest, err)
			}
			_ = cmd.Wait()
		})
	}
}

// startAndAwaitCalls starts the program, and returns when it shows that there
// are remote calls.
func startAndAwaitCalls(t *testing.T, cmd *exec.Cmd) (stderr io.Reader) {
	t.Helper()
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	calls := regexp.MustCompile(`[1-9]\d* remote calls`)
	for r := bufio.NewReader(pipe); ; {
		text, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", text, err)
		}
		if calls.MatchString(text) {
			return r
		}
	}
}

func TestServeSaysWhereAThingCameFrom(t *testing.T) {
	onAllServers(t, func(t *testing.T, p program) {
		cmd := p.command(t, "-serve", ":0", "-delay", "1ms")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		url := readURL(t, stdout)
		for _, want := range []struct {
			name   string
			status int
			source string
		}{
			{"apple", http.StatusOK, "fetch"},
			{"apple", http.StatusOK, "redis"},
			{"missing-one", http.StatusNotFound, ""},
		} {
			status, body := get(t, url+"/thing/"+want.name)
			if status != want.status || body.Source != want.source || status == http.StatusOK && body.Name != want.name || body.MS <= 0 {
				t.Errorf("GET %s = %d, %+v; want %d, source %q", want.name, status, body, want.status, want.source)
			}
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, stdout)
		if status := exitStatus(t, cmd.Wait()); status != 0 {
			t.Errorf("exit status %d after an interrupt, want 0", status)
		}
		p.checkFiles(t)
	})
}

var thingURL = regexp.MustCompile(`(http://127\.0\.0\.1:\d+)/thing/`)

// readURL returns the URL that the program prints.
func readURL(t *testing.T, stdout io.Reader) string {
	t.Helper()
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if m := thingURL.FindStringSubmatch(lines.Text()); m != nil {
			return m[1]
		}
	}
	t.Fatal("the program printed no URL")
	return ""
}

type body struct {
	Name, Source string
	MS           float64
}

func get(t *testing.T, url string) (status int, b body) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(&b); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, b
}

func TestWrongFlagsAreToldInALine(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"-nosuch", "flag provided but not defined: -nosuch (see -help)"},
		{"extra", `unexpected argument "extra" (see -help)`},
		{"-naive -kill", "-naive and -kill do not go together"},
		{"-serve :0 -kill", "-serve goes neither with -naive nor with -kill"},
		{"-serve nowhere", "-serve: address nowhere: missing port in address"},
		{"-callers 0", "-processes, -callers and -names must be at least 1"},
		{"-kill -processes 1", "-kill needs at least 2 -processes"},
		{"-delay -1s", "-delay must not be negative"},
		{"-redis http://localhost", "-redis: redis: invalid URL scheme: http"},
		{"-redis redis://:secret%zz@localhost", `-redis: invalid URL escape "%zz"`},
		{"-dsn mysql://localhost", "-dsn must be a URL that begins with postgres://"},
	} {
		stdout, stderr, status := newProgram(t).run(t, strings.Fields(test.args)...)
		if want := "fetchthing: " + test.want + "\n"; stdout != "" || stderr != want || status != 2 {
			t.Errorf("fetchthing %s: %q, %q, status %d; want %q, status 2", test.args, stdout, stderr, status, want)
		}
	}
}
