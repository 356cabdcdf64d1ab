//go:build unix

package main_test

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
	"strconv"
	"strings"
	"sync"
	"testing"

	stats "github.com/fetchonce/fetchonce/examples/stats"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// beProgram is set for a test binary that is to be the program.
const beProgram = "STATS_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		stats.Main() // and its processes
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// onAllServers runs a test with the program's own Redis, and with a real one. It
// checks that there is nothing in that when the test has ended.
func onAllServers(t *testing.T, test func(t *testing.T, flags ...string)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) { test(t) })
	t.Run("real", func(t *testing.T) {
		redis := redistest.TCPServer(t)
		test(t, "-redis", redis.URL())
		if n, err := redis.Client().DBSize(t.Context()).Result(); n != 0 || err != nil {
			t.Errorf("afterwards there are %d keys in Redis, %v; want none", n, err)
		}
	})
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), beProgram+"=1")
	return cmd
}

// run runs the program to its end.
func run(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, log bytes.Buffer
	cmd := command(t, args...)
	cmd.Stdout, cmd.Stderr = &out, &log
	status = exitStatus(t, cmd.Run())
	t.Logf("stats %q: status %d\n%s%s", args, status, &out, &log)
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

var lineOfTable = regexp.MustCompile(`(?m)^ *(as it is|serialized) +(\d+) +(\d+) +(\d+) +(\d+) +[\d.]+m?s +[\d.]+m?s$`)

// table returns the numbers of each line: requests, answered, calculations, at
// once.
func table(stdout string) map[string][4]int {
	lines := map[string][4]int{}
	for _, m := range lineOfTable.FindAllStringSubmatch(stdout, -1) {
		var n [4]int
		for i := range n {
			n[i], _ = strconv.Atoi(m[2+i])
		}
		lines[m[1]] = n
	}
	return lines
}

func TestOneCalculationAtATime(t *testing.T) {
	onAllServers(t, func(t *testing.T, flags ...string) {
		stdout, stderr, status := run(t, append(flags, "-delay", "20ms")...)
		lines := table(stdout)
		if status != 0 || stderr != "" || lines["serialized"] != [4]int{16, 16, 16, 1} {
			t.Errorf("exit status %d, %v; want 0, and 16 calculations one at a time", status, lines)
		}
		checkNaive(t, lines)
	})
}

func checkNaive(t *testing.T, lines map[string][4]int) {
	t.Helper()
	if n := lines["as it is"]; n[0] != 16 || n[1] != 16 || n[2] != 16 || n[3] < 2 {
		t.Errorf("as it is: %v, want 16 calculations, several at once", n)
	}
}

func TestNaiveShowsTheProblem(t *testing.T) {
	stdout, stderr, status := run(t, "-naive", "-delay", "200ms")
	if status != 1 || !strings.HasSuffix(stderr, "calculations ran at once\n") || len(table(stdout)) != 1 {
		t.Errorf("exit status %d, %q; want 1, that several ran at once, and one line", status, stderr)
	}
	checkNaive(t, table(stdout))
}

func TestInterruptedProgramCleansUp(t *testing.T) {
	onAllServers(t, func(t *testing.T, flags ...string) {
		cmd := command(t, append(flags, "-delay", "1h")...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, stdout)
		if status := exitStatus(t, cmd.Wait()); status != 1 || !strings.HasSuffix(stderr.String(), "stats: interrupted\n") {
			t.Errorf("exit status %d after %q, want 1 and that it was interrupted", status, &stderr)
		}
	})
}

var viewURL = regexp.MustCompile(`http://127\.0\.0\.1:\d+/api/stats/calculations/`)

func TestServe(t *testing.T) {
	onAllServers(t, func(t *testing.T, flags ...string) {
		cmd := command(t, append(flags, "-serve", ":0", "-delay", "20ms")...)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var view string
		for lines := bufio.NewScanner(stdout); view == "" && lines.Scan(); {
			view = viewURL.FindString(lines.Text())
		}
		var mu sync.Mutex
		processes := map[string]bool{}
		var all sync.WaitGroup
		for _, part := range []string{"visitors", "searches", "errors", "speed"} {
			all.Go(func() {
				status, a := get(t, view+part)
				if status != http.StatusOK || a.Part != part || a.AtOnce != 1 {
					t.Errorf("GET %s = %d, %+v; want 200, at_once 1", part, status, a)
				}
				mu.Lock()
				defer mu.Unlock()
				processes[a.Process] = true
			})
		}
		all.Wait()
		if len(processes) != 3 {
			t.Errorf("served by %v, want 3 processes", processes)
		}
		if status, _ := get(t, view+"nothing"); status != http.StatusNotFound {
			t.Errorf("GET nothing = %d, want 404", status)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, stdout)
		if status := exitStatus(t, cmd.Wait()); status != 0 {
			t.Errorf("exit status %d after an interrupt, want 0", status)
		}
	})
}

type answer struct {
	Part, Process string
	AtOnce        int `json:"at_once"`
}

func get(t *testing.T, url string) (status int, a answer) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Error(err)
		return 0, a
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Error(err)
		return 0, a
	}
	defer func() { _ = response.Body.Close() }()
	_ = json.NewDecoder(response.Body).Decode(&a)
	return response.StatusCode, a
}

func TestWrongFlagsAreToldInALine(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"-nosuch", "flag provided but not defined: -nosuch (see -help)"},
		{"extra", `unexpected argument "extra" (see -help)`},
		{"-serve nowhere", "-serve: address nowhere: missing port in address"},
		{"-serve :0 -naive", "-serve does not go with -naive"},
		{"-pages 0", "-processes and -pages must be at least 1"},
		{"-delay -1s", "-delay must not be negative"},
		{"-redis http://localhost", "-redis: redis: invalid URL scheme: http"},
		{"-redis redis://:secret%zz@localhost", `-redis: invalid URL escape "%zz"`},
	} {
		stdout, stderr, status := run(t, strings.Fields(test.args)...)
		if want := "stats: " + test.want + "\n"; stdout != "" || stderr != want || status != 2 {
			t.Errorf("stats %s: %q, %q, status %d; want %q, status 2", test.args, stdout, stderr, status, want)
		}
	}
}
