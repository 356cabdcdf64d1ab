//go:build unix

package main_test

import (
	"database/sql"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	fetchthing "github.com/fetchonce/fetchonce/examples/fetchthing"
	"github.com/fetchonce/fetchonce/examples/internal/programtest"
	"github.com/fetchonce/fetchonce/internal/pgtest"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestMain(m *testing.M) { programtest.Main(m, fetchthing.Main) }

// onAllServers runs a test with the program's own servers, and with real ones. Afterwards the
// real servers must be empty.
func onAllServers(t *testing.T, test func(t *testing.T, p programtest.Program)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) { test(t, programtest.New(t, "fetchthing")) })
	t.Run("real", func(t *testing.T) {
		redis, dsn := redistest.TCPServer(t), pgtest.Start(t)
		test(t, programtest.New(t, "fetchthing", "-redis", redis.URL(), "-dsn", dsn))
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

// A line is one line of the table.
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
	onAllServers(t, func(t *testing.T, p programtest.Program) {
		out := p.Run(t)
		if out.Status != 0 {
			t.Errorf("exit status %d, want 0", out.Status)
		}
		for _, l := range table(t, out.Stdout, "fetchonce") {
			if want := (line{"fetchonce", l.name, 200, 1, 1, 0}); l != want {
				t.Errorf("%+v, want %+v", l, want)
			}
		}
		checkNaive(t, out.Stdout)
	})
}

func TestNaiveShowsTheProblem(t *testing.T) {
	onAllServers(t, func(t *testing.T, p programtest.Program) {
		out := p.Run(t, "-naive")
		if out.Status != 1 {
			t.Errorf("exit status %d, want 1: names were fetched twice", out.Status)
		}
		checkNaive(t, out.Stdout)
		if strings.Contains(out.Stdout, "\nfetchonce") {
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
	onAllServers(t, func(t *testing.T, p programtest.Program) {
		out := p.Run(t, "-kill")
		if out.Status != 0 {
			t.Errorf("exit status %d, want 0", out.Status)
		}
		lines := table(t, out.Stdout, "kill")
		// The first name is the one whose worker is killed.
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

// someCalls matches a line that shows that there are remote calls.
const someCalls = `[1-9]\d* remote calls`

func TestInterruptedProgramCleansUp(t *testing.T) {
	onAllServers(t, func(t *testing.T, p programtest.Program) {
		process := p.Start(t, "-delay", "1h")
		process.AwaitError(t, someCalls)
		if stderr, status := process.Interrupt(t); status != 1 || !strings.HasSuffix(stderr, "fetchthing: naive: interrupted\n") {
			t.Errorf("exit status %d after %q, want 1 and that it was interrupted", status, stderr)
		}
	})
}

func TestWorkersEndWhenTheProgramIsKilled(t *testing.T) {
	for _, round := range []string{"-naive", "-kill"} {
		t.Run(round, func(t *testing.T) {
			process := programtest.New(t, "fetchthing").Start(t, round, "-delay", "1h")
			process.AwaitError(t, someCalls)
			process.Kill(t)
		})
	}
}

func TestServeNamesTheSourceOfAThing(t *testing.T) {
	onAllServers(t, func(t *testing.T, p programtest.Program) {
		process := p.Start(t, "-serve", ":0", "-delay", "1ms")
		url := process.AwaitOutput(t, `http://127\.0\.0\.1:\d+/thing/`)
		for _, want := range []struct {
			name   string
			status int
			source string
		}{
			{"apple", http.StatusOK, "fetch"},
			{"apple", http.StatusOK, "redis"},
			{"missing-one", http.StatusNotFound, ""},
		} {
			var body struct {
				Name, Source string
				MS           float64
			}
			status := programtest.Get(t, url+want.name, &body)
			if status != want.status || body.Source != want.source || status == http.StatusOK && body.Name != want.name || body.MS <= 0 {
				t.Errorf("GET %s = %d, %+v; want %d, source %q", want.name, status, body, want.status, want.source)
			}
		}
		if stderr, status := process.Interrupt(t); status != 0 || stderr != "" {
			t.Errorf("exit status %d after an interrupt and %q, want 0", status, stderr)
		}
	})
}

func TestWrongFlagsGetOneLine(t *testing.T) {
	programtest.New(t, "fetchthing").CheckFlags(t, map[string]string{
		"-nosuch":                             "flag provided but not defined: -nosuch (see -help)",
		"extra":                               `unexpected argument "extra" (see -help)`,
		"-naive -kill":                        "-naive and -kill do not go together",
		"-serve :0 -kill":                     "-serve goes neither with -naive nor with -kill",
		"-serve nowhere":                      "-serve: address nowhere: missing port in address",
		"-callers 0":                          "-processes, -callers and -names must be at least 1",
		"-kill -processes 1":                  "-kill needs at least 2 -processes",
		"-delay -1s":                          "-delay must not be negative",
		"-redis http://localhost":             "-redis: redis: invalid URL scheme: http",
		"-redis redis://:secret%zz@localhost": `-redis: invalid URL escape "%zz"`,
		"-dsn mysql://localhost":              "-dsn must be a URL that begins with postgres://",
	})
}
