package systemtest_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

const (
	deployProcesses = 4
	deployKeys      = 6
	deployTTL       = 2 * time.Second
)

// The types of the two builds. Neither can be decoded as the other.
type (
	oldRow struct {
		Version int64
		Name    string
	}
	newRow struct {
		Name    int64
		Version string
	}
)

// Four processes of an old build are replaced by a new build, one after the other, while all of them
// read and change the same keys. They record what they do, with the time. No Get returns a version
// that a Delete or Update in any build has replaced. Each build fetches an unchanged key at most once
// per TTL.
//
//test:long
func TestRollingRestartReturnsNoReplacedVersion(t *testing.T) {
	server := redistest.Server(t)
	var h deployHistory
	running := make([]*deployWorker, deployProcesses)
	for i := range running {
		running[i] = startDeployWorker(t, server.URL(), "old")
	}
	for i := range running {
		time.Sleep(time.Second) // for how long the builds are mixed
		next := startDeployWorker(t, server.URL(), "new")
		running[i].end()
		h.add(t, running[i])
		running[i] = next
	}
	time.Sleep(deployTTL + time.Second)
	for _, w := range running {
		w.end()
		h.add(t, w)
	}
	for _, wrong := range append(h.stale(), h.repeated()...) {
		t.Error(wrong)
	}
	t.Logf("%d Gets, %d Deletes and Updates, %d fetches of the old build, %d of the new one", h.gets, len(h.changes), len(h.fetched["old"]), len(h.fetched["new"]))
	if h.gets < 1000 || len(h.changes) < 40 || len(h.fetched["old"]) < 40 || len(h.fetched["new"]) < 40 {
		t.Error("this run shows nothing: the processes did too little")
	}
}

// A deployHistory is what all processes have recorded. Times are in ns of the machine's clock, which
// the processes share.
type deployHistory struct {
	reads   []read
	changes []change
	fetched map[string][]change // by build
	gets    int64
}

// A change is a Delete or Update that made a version, or a lease and a fetch that read a version.
type change struct{ key, version, began, ended int64 }

func (h *deployHistory) add(t *testing.T, w *deployWorker) {
	t.Helper()
	if w.failed != "" {
		t.Errorf("a process of the %s build: %s", w.build, w.failed)
	}
	h.reads = append(h.reads, w.reads...)
	h.changes = append(h.changes, w.changes...)
	if h.fetched == nil {
		h.fetched = make(map[string][]change)
	}
	h.fetched[w.build] = append(h.fetched[w.build], w.fetched...)
	h.gets += w.gets
}

// stale describes the Gets that began after a change had ended and returned an older version.
func (h *deployHistory) stale() (wrong []string) {
	slices.SortFunc(h.changes, func(a, b change) int { return cmp.Compare(b.version, a.version) })
	for _, r := range h.reads {
		replaced := int64(math.MaxInt64) // the end of the first later version's change
		for _, c := range h.changes {
			if c.version <= r.version {
				break
			}
			if c.key == r.key {
				replaced = min(replaced, c.ended)
			}
		}
		if r.began > replaced {
			wrong = append(wrong, fmt.Sprintf("a Get that began %v after version %d of key %d was replaced returned it", time.Duration(r.began-replaced), r.version, r.key))
		}
	}
	return wrong
}

// repeated describes the fetches of a build that repeat an earlier one although the key did not
// change and half of its TTL had not passed. The other half allows for estimated clocks.
func (h *deployHistory) repeated() (wrong []string) {
	for build, fetched := range h.fetched {
		slices.SortFunc(fetched, func(a, b change) int { return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.began, b.began)) })
		for i := 1; i < len(fetched); i++ {
			one, next := fetched[i-1], fetched[i]
			changed := slices.ContainsFunc(h.changes, func(c change) bool {
				return c.key == one.key && c.began <= next.began && c.ended >= one.began
			})
			if one.key == next.key && !changed && time.Duration(next.began-one.began) < deployTTL/2 {
				wrong = append(wrong, fmt.Sprintf("the %s build fetched key %d twice within %v", build, one.key, time.Duration(next.began-one.began)))
			}
		}
	}
	return wrong
}

// A deployWorker is one of the processes.
type deployWorker struct {
	build string
	in    io.Closer
	done  chan struct{} // closed when all of its records are read

	// Its records. They are complete after done.
	reads            []read
	changes, fetched []change
	gets             int64
	failed           string
}

func startDeployWorker(t *testing.T, address, build string) *deployWorker {
	t.Helper()
	w := &deployWorker{build: build, done: make(chan struct{})}
	in, out := startSelf(t, w.done, "FETCHONCE_DEPLOY_WORKER="+address, "FETCHONCE_DEPLOY_BUILD="+build)
	w.in = in
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Errorf("a process of the %s build printed %q, want ready", build, lines.Text())
	}
	go w.listen(lines) // ends with the process
	return w
}

// end makes the process end and waits for its end.
func (w *deployWorker) end() {
	_ = w.in.Close()
	<-w.done
}

func (w *deployWorker) listen(lines *bufio.Scanner) {
	defer close(w.done)
	ended := false
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		var n [4]int64
		for i, field := range strings.Fields(rest) {
			if i < len(n) {
				n[i], _ = strconv.ParseInt(field, 10, 64)
			}
		}
		switch word {
		case "got":
			w.reads = append(w.reads, read{key: n[0], version: n[1], began: n[2]})
		case "changed":
			w.changes = append(w.changes, change{n[0], n[1], n[2], n[3]})
		case "fetched":
			w.fetched = append(w.fetched, change{n[0], n[1], n[2], n[3]})
		case "end":
			w.gets, ended = n[0], true
		default:
			w.failed = lines.Text()
		}
	}
	if !ended && w.failed == "" {
		w.failed = "the process ended without its last line"
	}
}

// deployWork is the work of a process, until standard input ends.
func deployWork(address string) error {
	if os.Getenv("FETCHONCE_DEPLOY_BUILD") == "old" {
		return deploy(address, "1", func(version int64) oldRow { return oldRow{version, "old"} }, func(r oldRow) int64 { return r.Version })
	}
	return deploy(address, "2", func(version int64) newRow { return newRow{1, strconv.FormatInt(version, 10)} }, func(r newRow) int64 {
		n, _ := strconv.ParseInt(r.Version, 10, 64)
		return n
	})
}

// A deployed is a process of a build whose values are of type V.
type deployed[V any] struct {
	rdb     redis.UniversalClient
	l       *fetchonce.Loader[V]
	row     func(version int64) V
	version func(V) int64
	note    *notes
	over    chan struct{}
}

func deploy[V any](address, schema string, row func(int64) V, version func(V) int64) error {
	rdb, err := soakClient(address)
	if err != nil {
		return err
	}
	defer rdb.Close()
	l, err := fetchonce.New(rdb, fetchonce.Options[V]{
		Prefix: "soak", Schema: schema, TTL: deployTTL, Jitter: fetchonce.Off, Lease: 30 * time.Second, RedisTimeout: 10 * time.Second,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer l.Close()
	d := deployed[V]{rdb, l, row, version, newNotes(os.Stdout), make(chan struct{})}
	defer d.note.flush()
	d.note.line("ready")
	d.note.flush()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(d.over)
	}()
	var all sync.WaitGroup
	var gets [2]int64
	for i := range gets {
		all.Go(func() { gets[i] = d.read() })
	}
	all.Go(d.change)
	all.Wait()
	d.note.line("end", gets[0]+gets[1])
	return nil
}

func (d *deployed[V]) running() bool {
	select {
	case <-d.over:
		return false
	default:
		return true
	}
}

// read Gets keys. It records only the last of several Gets in a row that return the same version of
// a key: the others began earlier and prove less.
func (d *deployed[V]) read() (gets int64) {
	var last [deployKeys]read
	for ; d.running(); gets++ {
		k := rand.N(int64(deployKeys))
		began := time.Now().UnixNano()
		got, err := d.l.Load(context.Background(), strconv.FormatInt(k, 10), d.fetch)
		if err != nil {
			d.note.line("read", err)
			return gets
		}
		if version := d.version(got.Value); last[k].began == 0 || last[k].version != version {
			d.record(last[k])
			last[k] = read{key: k, version: version}
		}
		last[k].began = began
		if gets%20 == 0 {
			time.Sleep(time.Millisecond) // lets other goroutines run
		}
	}
	for _, r := range last {
		d.record(r)
	}
	return gets
}

func (d *deployed[V]) record(r read) {
	if r.began != 0 {
		d.note.line("got", r.key, r.version, r.began)
	}
}

// fetch reads the source. It records when the lease began by the server's clock, which the fence
// gives: a change may end the lease before this process knows that it has one.
func (d *deployed[V]) fetch(ctx context.Context, f *fetchonce.Fetch[V]) (v V, err error) {
	version, err := d.rdb.Get(ctx, "source:"+f.Key).Int64()
	if err != nil && err != redis.Nil {
		return v, err
	}
	d.note.line("fetched", f.Key, version, f.Fence*1000, time.Now().UnixNano())
	return d.row(version), nil
}

// change changes the source of keys, and deletes their values.
func (d *deployed[V]) change() {
	ctx := context.Background()
	for d.running() {
		time.Sleep(20*time.Millisecond + rand.N(200*time.Millisecond))
		k := rand.N(int64(deployKeys - 1)) // the last key never changes
		key := strconv.FormatInt(k, 10)
		began, version := time.Now().UnixNano(), int64(0)
		write := func(ctx context.Context) (err error) {
			version, err = d.rdb.Incr(ctx, "source:"+key).Result()
			return err
		}
		var err error
		if rand.N(2) == 0 {
			err = d.l.Update(ctx, key, write)
		} else if err = write(ctx); err == nil {
			err = d.l.Delete(ctx, key)
		}
		if err != nil {
			d.note.line("change", err)
			return
		}
		d.note.line("changed", k, version, began, time.Now().UnixNano())
	}
}

// The judge finds replaced versions and repeated fetches, and nothing else.
func TestRollingRestartJudgeFindsFaults(t *testing.T) {
	const s = int64(time.Second)
	for name, c := range map[string]struct {
		h     deployHistory
		wrong int
	}{
		"the new version after a Delete": {deployHistory{reads: []read{{key: 1, version: 5, began: 3 * s}}, changes: []change{{1, 5, 1 * s, 2 * s}}}, 0},
		"the old version during it":      {deployHistory{reads: []read{{key: 1, version: 4, began: 2 * s}}, changes: []change{{1, 5, 1 * s, 2 * s}}}, 0},
		"the old version after it":       {deployHistory{reads: []read{{key: 1, version: 4, began: 3 * s}}, changes: []change{{1, 5, 1 * s, 2 * s}}}, 1},
		"another key's version":          {deployHistory{reads: []read{{key: 2, version: 4, began: 3 * s}}, changes: []change{{1, 5, 1 * s, 2 * s}}}, 0},
		"a fetch of each build":          {deployHistory{fetched: map[string][]change{"old": {{1, 5, 1, 2}}, "new": {{1, 5, 2, 3}}}}, 0},
		"two of one build":               {deployHistory{fetched: map[string][]change{"old": {{1, 5, 1, 2}, {1, 5, 3, 4}}}}, 1},
		"two, and a Delete between":      {deployHistory{fetched: map[string][]change{"old": {{1, 5, 1, 2}, {1, 5, 9, 10}}}, changes: []change{{1, 6, 3, 4}}}, 0},
		"two, and another key's Delete":  {deployHistory{fetched: map[string][]change{"old": {{1, 5, 1, 2}, {1, 5, 9, 10}}}, changes: []change{{2, 6, 3, 4}}}, 1},
		"two, after the TTL":             {deployHistory{fetched: map[string][]change{"old": {{1, 5, 1, 2}, {1, 5, 2 * s, 3 * s}}}}, 0},
	} {
		if wrong := append(c.h.stale(), c.h.repeated()...); len(wrong) != c.wrong {
			t.Errorf("%s: judged as %q", name, wrong)
		}
	}
}
