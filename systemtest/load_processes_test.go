package systemtest_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// TestMain runs a worker process if the environment asks for one. Else it runs the tests with only
// the rights of docs/redis.acl in Redis.
func TestMain(m *testing.M) {
	for name, work := range map[string]func(address string) error{"FETCHONCE_TEST_WORKER": work, "FETCHONCE_SOAK_WORKER": soakWork, "FETCHONCE_DEPLOY_WORKER": deployWork} {
		if address := os.Getenv(name); address != "" {
			if err := work(address); err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
			return
		}
	}
	if err := redistest.Limit("../docs/redis.acl", "test", "test:*", "other", "crew"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const workerLease = time.Second

// inFetch is called in a worker's fetch, before the fetch reads its value.
var inFetch = func(context.Context) {}

// work Gets "k" once and prints what happens: "fetching" and the fence when its fetch begins,
// "ended" and the cause if the fetch's context has ended, and "got" and the value. The fetch
// ignores its context and reads its value from standard input.
func work(url string) error {
	opt, err := redis.ParseURL(url)
	if err != nil {
		return err
	}
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	l, err := fetchonce.New(rdb, options{Prefix: "test", Lease: workerLease})
	if err != nil {
		return err
	}
	defer l.Close()
	got, err := l.Load(context.Background(), "k", func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) {
		fmt.Println("fetching", f.Fence)
		inFetch(ctx)
		var value string
		_, err := fmt.Scanln(&value)
		if ctx.Err() != nil {
			fmt.Println("ended", context.Cause(ctx))
		}
		return value, err
	})
	fmt.Println("got", got.Value, got.Source, err)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test closes it
	return nil
}

// A worker is a process that runs work.
type worker struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

func startWorker(t *testing.T, server *redistest.Process, env ...string) *worker {
	t.Helper()
	w := &worker{t: t, cmd: exec.Command(os.Args[0]), lines: make(chan string, 100)}
	w.cmd.Env = append(append(os.Environ(), "FETCHONCE_TEST_WORKER="+server.URL()), env...)
	w.cmd.Stderr = os.Stderr
	in, err := w.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.in = in
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		for lines := bufio.NewScanner(out); lines.Scan(); {
			w.lines <- lines.Text()
		}
		close(w.lines)
	}()
	t.Cleanup(w.kill)
	return w
}

func (w *worker) kill() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
}

func (w *worker) signal(s syscall.Signal) {
	w.t.Helper()
	if err := w.cmd.Process.Signal(s); err != nil {
		w.t.Fatal(err)
	}
}

// await reads the next line, which must begin with word, and returns the rest.
func (w *worker) await(word string) string {
	w.t.Helper()
	select {
	case line := <-w.lines:
		rest, ok := strings.CutPrefix(line, word+" ")
		if !ok {
			w.t.Fatalf("the worker printed %q, want %q", line, word)
		}
		return rest
	case <-time.After(time.Minute):
		w.t.Fatalf("the worker did not print %q", word)
		return ""
	}
}

func (w *worker) returns(value string) {
	w.t.Helper()
	if _, err := fmt.Fprintln(w.in, value); err != nil {
		w.t.Fatal(err)
	}
}

// A process is killed during its fetch. One waiter fetches, and the others wait for that fetch.
func TestWaiterTakesOverFromAKilledHolder(t *testing.T) {
	server := redistest.Server(t)
	holder := startWorker(t, server)
	holder.await("fetching")
	o := testkit.NewOrigin(t)
	r := server.Backend()
	a, b := testkit.NewLoader(t, r), testkit.NewLoader(t, r)
	var all []*testkit.Getter
	for range 10 {
		all = append(all, testkit.Get(t, t.Context(), a, "k", o), testkit.Get(t, t.Context(), b, "k", o))
	}
	testkit.AwaitWaiters(t, r, "k", 2)
	holder.kill()
	o.Next().Returns("v")
	for _, g := range all {
		g.Want("v")
	}
	o.Want(1)
}

// A process is stopped beyond its lease. When it continues, the context of its fetch has
// ended, and the value that it fetched is not stored.
func TestHolderStoppedBeyondItsLeaseStoresNothing(t *testing.T) {
	server := redistest.Server(t)
	holder := startWorker(t, server)
	first := holder.await("fetching")
	holder.signal(redistest.SignalStop)

	second := startWorker(t, server)
	fence := second.await("fetching") // the lease has ended
	if fence <= first {               // fences have the same number of digits
		t.Errorf("fences %v and %v do not rise", first, fence)
	}
	holder.returns("old")
	holder.signal(redistest.SignalContinue)
	if cause := holder.await("ended"); cause != fetchonce.ErrLockLost.Error() {
		t.Errorf("its context ended because of %v", cause)
	}
	if got := holder.await("got"); got != "old fetch <nil>" { // the caller came before the fetch
		t.Errorf("the stopped process got %q", got)
	}

	third := startWorker(t, server) // waits for the second
	testkit.AwaitWaiters(t, server.Backend(), "k", 1)
	second.returns("new")
	for _, w := range []*worker{second, third} {
		if got := w.await("got"); !strings.HasPrefix(got, "new ") {
			t.Errorf("a process got %q, want new", got)
		}
	}
	testkit.WantKept(t, testkit.NewLoader(t, server.Backend()), "new")
}
