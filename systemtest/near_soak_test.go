package systemtest_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// Four processes have near entries of keys that they change all the time, and their connections are
// killed repeatedly. They record each operation with its time, and this process judges them. No Get
// returns a deleted value if the Delete had returned in the same process, or 50 ms earlier in
// another process.
//
// FETCHONCE_SOAK sets the duration. The default is 3 s for each kind of Redis.
//
//test:long
func TestNearCacheReturnsNoDeletedValueInASoak(t *testing.T) {
	length := 3 * time.Second
	if s := os.Getenv("FETCHONCE_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("server", func(t *testing.T) {
		r := redistest.Server(t)
		soak(t, r.Backend(), r.URL(), length)
	})
	t.Run("cluster", func(t *testing.T) {
		r := redistest.Cluster(t)
		soak(t, r.Backend(), strings.Join(r.Addrs(), ","), length)
	})
}

const (
	soakProcesses = 4
	soakKeys      = 8
	soakReaders   = 3 // in each process
)

func soak(t *testing.T, r backend, address string, length time.Duration) {
	t.Helper()
	var crew [soakProcesses]*soakWorker
	for i := range crew {
		crew[i] = startSoakWorker(t, i, address)
	}
	var h soakHistory
	ended := make(chan struct{})
	var measuring sync.WaitGroup
	measuring.Go(func() {
		measureStalls(ended, func(s stall) { h.stalls[soakProcesses] = append(h.stalls[soakProcesses], s) })
	})
	for _, w := range crew {
		<-w.ready
	}
	rdb := r.Client()
	for end := time.Now().Add(length); time.Now().Before(end); {
		time.Sleep(min(300*time.Millisecond+rand.N(600*time.Millisecond), time.Until(end)))
		if err := testkit.KillClients(t.Context(), rdb, "pubsub"); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range crew {
		_ = w.in.Close()
	}
	for _, w := range crew {
		<-w.done
		if w.failed != "" {
			t.Errorf("process %d: %s", w.number, w.failed)
		}
		h.add(w)
	}
	close(ended)
	measuring.Wait()
	verdict := h.judge(maxStale)
	t.Logf("%d Gets, %d of them near; %d Deletes; near entries were served for up to %v (%v without stalls) after a Delete in another process; the machine stalled for %v",
		h.gets, h.near, len(h.deletes), verdict.longest, verdict.net, verdict.stalled)
	for _, wrong := range verdict.wrong {
		t.Error(wrong)
	}
	switch {
	case verdict.stalled > length/2:
		t.Skip("this run shows nothing: the machine stalled for half the time")
	case h.near < 1000 || h.near < h.gets/10 || len(h.deletes) < 4*10 || verdict.replaced < 4*10:
		t.Errorf("this run shows nothing: %d versions that were read were replaced", verdict.replaced)
	}
}

// measureStalls calls report for each time in which this process did not run.
func measureStalls(end <-chan struct{}, report func(stall)) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for last := time.Now(); ; {
		select {
		case <-ticker.C:
		case <-end:
			return
		}
		now := time.Now()
		if now.Sub(last) > 3*time.Millisecond {
			report(stall{last.UnixNano(), now.UnixNano()})
		}
		last = now
	}
}

// A soakWorker is one of the processes.
type soakWorker struct {
	number int
	in     io.Closer
	ready  chan struct{} // closed when it has begun
	done   chan struct{} // closed when all of its records are read

	// Its records. They are complete after done.
	reads      []read
	deletes    []deletion
	stalls     []stall
	gets, near int64
	failed     string
}

// startSelf starts the test binary as a process, with environment variables that select its work. It
// is killed when the test ends. The caller closes done when it has read all of out.
func startSelf(t *testing.T, done <-chan struct{}, environment ...string) (in io.Closer, out io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	return stdin, stdout
}

func startSoakWorker(t *testing.T, number int, address string) *soakWorker {
	t.Helper()
	w := &soakWorker{number: number, ready: make(chan struct{}), done: make(chan struct{})}
	in, out := startSelf(t, w.done, "FETCHONCE_SOAK_WORKER="+address)
	w.in = in
	go w.listen(out) // ends with the process
	return w
}

func (w *soakWorker) listen(out io.Reader) {
	defer close(w.done)
	begun := sync.OnceFunc(func() { close(w.ready) })
	defer begun()
	ended := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		var n [3]int64
		for i, field := range strings.Fields(rest) {
			if i < len(n) {
				n[i], _ = strconv.ParseInt(field, 10, 64)
			}
		}
		switch word {
		case "ready":
			begun()
		case "got":
			w.reads = append(w.reads, read{key: n[0], version: n[1], began: n[2], process: w.number})
		case "deleted":
			w.deletes = append(w.deletes, deletion{key: n[0], version: n[1], at: n[2], process: w.number})
		case "stall":
			w.stalls = append(w.stalls, stall{n[0], n[1]})
		case "end":
			w.gets, w.near, ended = n[0], n[1], true
		default:
			w.failed = lines.Text()
		}
	}
	if !ended && w.failed == "" {
		w.failed = "the process ended without its last line"
	}
}

// soakWork is the work of a process of the soak, until standard input ends. The source of a key is a
// number in Redis, outside the Loader's prefix.
func soakWork(address string) error {
	rdb, err := soakClient(address)
	if err != nil {
		return err
	}
	defer rdb.Close()
	l, err := fetchonce.New(rdb, options{
		Prefix: "soak", TTL: time.Hour, Near: fetchonce.Near{Entries: 100, TTL: time.Hour}, RedisTimeout: 10 * time.Second,
		Logger: slog.New(slog.DiscardHandler), // connections are killed all the time
	})
	if err != nil {
		return err
	}
	defer l.Close()
	note := newNotes(os.Stdout)
	defer note.flush()
	end := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(end)
	}()
	w := soaker{rdb: rdb, l: l, note: note, end: end}
	note.line("ready")
	note.flush()
	w.all.Go(func() { measureStalls(end, func(s stall) { note.line("stall", s.from, s.to) }) })
	for range soakReaders {
		w.all.Go(w.read)
	}
	w.all.Go(w.change)
	w.all.Wait()
	note.line("end", w.gets.Load(), w.near.Load())
	return nil
}

func soakClient(address string) (redis.UniversalClient, error) {
	if !strings.Contains(address, "://") {
		return redis.NewClusterClient(&redis.ClusterOptions{Addrs: strings.Split(address, ",")}), nil
	}
	opt, err := redis.ParseURL(address)
	if err != nil {
		return nil, err
	}
	opt.Username, opt.Password = "", "" // a user with all rights: the source has another prefix
	return redis.NewClient(opt), nil
}

// A soaker is the state of one process of the soak.
type soaker struct {
	rdb        redis.UniversalClient
	l          loader
	note       *notes
	end        chan struct{}
	all        sync.WaitGroup
	gets, near atomic.Int64
}

func (w *soaker) over() bool {
	select {
	case <-w.end:
		return true
	default:
		return false
	}
}

// read Gets keys. It records only the last of several Gets in a row that return the same version of
// a key: the others began earlier and prove less.
func (w *soaker) read() {
	var last [soakKeys]read
	record := func(r read) {
		if r.began != 0 {
			w.note.line("got", r.key, r.version, r.began)
		}
	}
	for n := 1; !w.over(); n++ {
		k := rand.N(int64(soakKeys))
		key := strconv.FormatInt(k, 10)
		began := time.Now().UnixNano()
		got, err := w.l.Load(context.Background(), key, func(ctx context.Context, _ *fetchonce.Fetch[string]) (string, error) {
			text, err := w.rdb.Get(ctx, "source:"+key).Result()
			if err == redis.Nil {
				return "0", nil
			}
			return text, err
		})
		if err != nil {
			w.note.line("read", err)
			return
		}
		w.gets.Add(1)
		if got.Source == fetchonce.SourceNear {
			w.near.Add(1)
		}
		version, _ := strconv.ParseInt(got.Value, 10, 64)
		if last[k].version != version {
			record(last[k])
		}
		last[k] = read{key: k, version: version, began: began}
		if n%50 == 0 {
			time.Sleep(time.Millisecond) // lets other goroutines run
		}
	}
	for _, r := range last {
		record(r)
	}
}

// change changes the source of keys and deletes them.
func (w *soaker) change() {
	ctx := context.Background()
	for !w.over() {
		time.Sleep(10*time.Millisecond + rand.N(30*time.Millisecond))
		k := rand.N(int64(soakKeys))
		key := strconv.FormatInt(k, 10)
		version, err := w.rdb.Incr(ctx, "source:"+key).Result()
		if err == nil {
			err = w.l.Delete(ctx, key)
		}
		if err != nil {
			w.note.line("change", err)
			return
		}
		w.note.line("deleted", k, version, time.Now().UnixNano())
	}
}

// notes writes lines from many goroutines.
type notes struct {
	mu  sync.Mutex
	out *bufio.Writer
}

func newNotes(out io.Writer) *notes { return &notes{out: bufio.NewWriter(out)} }

func (n *notes) line(words ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, _ = fmt.Fprintln(n.out, words...)
}

func (n *notes) flush() {
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = n.out.Flush()
}

// A near hit of a plain key allocates nothing.
func TestNearHitDoesNotAllocate(t *testing.T) {
	r := redistest.Server(t).Backend()
	l := testkit.NewLoader(t, r, testkit.WithNear)
	testkit.Set(t, l, "user:42", "v")
	testkit.WarmNear(t, r, l, "user:42", "v")
	fetch := func(context.Context, string) (string, error) { return "fetched", nil }
	if n := testing.AllocsPerRun(1000, func() { _, _ = l.Get(t.Context(), "user:42", fetch) }); n != 0 {
		t.Errorf("a hit makes %v allocations", n)
	}
	if _, from := testkit.Source(t, l, "user:42"); from != fetchonce.SourceNear {
		t.Errorf("the value came from %v, want a near hit", from)
	}
}
