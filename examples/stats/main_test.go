//go:build unix

package main_test

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/fetchonce/fetchonce/examples/internal/programtest"
	stats "github.com/fetchonce/fetchonce/examples/stats"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

func TestMain(m *testing.M) { programtest.Main(m, stats.Main) }

// onAllServers runs a test with the program's own Redis, and with a real one. Afterwards the
// real one must be empty.
func onAllServers(t *testing.T, test func(t *testing.T, p programtest.Program)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) { test(t, programtest.New(t, "stats")) })
	t.Run("real", func(t *testing.T) {
		redis := redistest.TCPServer(t)
		test(t, programtest.New(t, "stats", "-redis", redis.URL()))
		if n, err := redis.Client().DBSize(t.Context()).Result(); n != 0 || err != nil {
			t.Errorf("afterwards there are %d keys in Redis, %v; want none", n, err)
		}
	})
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
	onAllServers(t, func(t *testing.T, p programtest.Program) {
		out := p.Run(t, "-delay", "20ms")
		lines := table(out.Stdout)
		if out.Status != 0 || out.Stderr != "" || lines["serialized"] != [4]int{16, 16, 16, 1} {
			t.Errorf("exit status %d, %v; want 0, and 16 calculations one at a time", out.Status, lines)
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
	out := programtest.New(t, "stats").Run(t, "-naive", "-delay", "200ms")
	if out.Status != 1 || !strings.HasSuffix(out.Stderr, "calculations ran at once\n") || len(table(out.Stdout)) != 1 {
		t.Errorf("exit status %d, %q; want 1, that several ran at once, and one line", out.Status, out.Stderr)
	}
	checkNaive(t, table(out.Stdout))
}

func TestInterruptedProgramCleansUp(t *testing.T) {
	onAllServers(t, func(t *testing.T, p programtest.Program) {
		process := p.Start(t, "-delay", "1h")
		process.AwaitOutput(t, "visitors open the page at once")
		if stderr, status := process.Interrupt(t); status != 1 || !strings.HasSuffix(stderr, "stats: interrupted\n") {
			t.Errorf("exit status %d after %q, want 1 and that it was interrupted", status, stderr)
		}
	})
}

type answer struct {
	Part, Process string
	AtOnce        int `json:"at_once"`
}

func TestServe(t *testing.T) {
	onAllServers(t, func(t *testing.T, p programtest.Program) {
		process := p.Start(t, "-serve", ":0", "-delay", "20ms")
		view := process.AwaitOutput(t, `http://127\.0\.0\.1:\d+/api/stats/calculations/`)
		var mu sync.Mutex
		processes := map[string]bool{}
		var all sync.WaitGroup
		for _, part := range []string{"visitors", "searches", "errors", "speed"} {
			all.Go(func() {
				var a answer
				status := programtest.Get(t, view+part, &a)
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
		if status := programtest.Get(t, view+"nothing", nil); status != http.StatusNotFound {
			t.Errorf("GET nothing = %d, want 404", status)
		}
		if stderr, status := process.Interrupt(t); status != 0 || stderr != "" {
			t.Errorf("exit status %d after an interrupt and %q, want 0", status, stderr)
		}
	})
}

func TestWrongFlagsGetOneLine(t *testing.T) {
	programtest.New(t, "stats").CheckFlags(t, map[string]string{
		"-nosuch":                             "flag provided but not defined: -nosuch (see -help)",
		"extra":                               `unexpected argument "extra" (see -help)`,
		"-serve nowhere":                      "-serve: address nowhere: missing port in address",
		"-serve :0 -naive":                    "-serve does not go with -naive",
		"-pages 0":                            "-processes and -pages must be at least 1",
		"-delay -1s":                          "-delay must not be negative",
		"-redis http://localhost":             "-redis: redis: invalid URL scheme: http",
		"-redis redis://:secret%zz@localhost": `-redis: invalid URL escape "%zz"`,
	})
}
