package drivertest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

const (
	processes = 4
	names     = 200
	callers   = 8 // of each name, in each process
)

// Every lock is granted. In each process, many callers look a name up, find nothing, and
// create it, each with its own value. The name has one row, no caller gets an error, and all
// callers get the value of the row.
func TestBrokenLockMakesNoDuplicates(t *testing.T) {
	runProcesses(t, isolated, callStore, names*(callers-1))
}

// The same with Loaders. Each caller has a Loader with its own Redis, so all of them get the
// lease, and most callers of the first process fetch.
//
//test:long
func TestLoadersWithABrokenLockMakeNoDuplicates(t *testing.T) {
	runProcesses(t, databases, callLoaders, names)
}

// runProcesses runs the calling test again in several processes, in which it calls work. At
// least a number of the creators must meet the row of another creator.
func runProcesses(t *testing.T, kinds map[string]func(t *testing.T) database, work func(t *testing.T, d database) caller, meet int) {
	t.Helper()
	if dsn := os.Getenv("DRIVERTEST_DSN"); dsn != "" {
		dialect, err := strconv.Atoi(os.Getenv("DRIVERTEST_DIALECT"))
		if err != nil {
			t.Fatal(err)
		}
		callAll(t, work(t, open(t, oncesql.Dialect(dialect), os.Getenv("DRIVERTEST_DRIVER"), dsn)))
		return
	}
	for name, newDatabase := range kinds {
		test := t.Name()
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			textStore(t, d, "things")
			start := time.Now()
			said, err := together(processes, func(i int) (string, error) { return d.process(t, test, i) })
			if err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)

			kept := make(map[string]string) // by name
			query := `SELECT "key", value FROM things`
			if d.dialect == oncesql.MySQL {
				query = "SELECT `key`, value FROM things"
			}
			rows, err := d.Query(query)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = rows.Close() }()
			duplicates := 0
			for rows.Next() {
				var name, v string
				if err := rows.Scan(&name, &v); err != nil {
					t.Fatal(err)
				}
				if _, ok := kept[name]; ok {
					duplicates++
				}
				kept[name] = v
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			if duplicates > 0 || len(kept) != names {
				t.Errorf("%d duplicate rows, and rows for %d names; want 0, %d", duplicates, len(kept), names)
			}

			calls, met := 0, 0
			for _, lines := range said {
				for line := range strings.Lines(lines) {
					var name, mine, got string
					switch n, _ := fmt.Sscanf(line, "%q created %q got %q", &name, &mine, &got); n {
					case 0: // the testing package's
						continue
					case 3:
						if got != mine {
							met++
						}
					case 1:
						if _, err := fmt.Sscanf(line, "%q found %q", &name, &got); err != nil {
							t.Fatalf("%q: %v", line, err)
						}
					}
					calls++
					if strconv.Quote(got) != kept[name] {
						t.Errorf("a caller of %s got %s, and the row has %s", name, got, kept[name])
					}
				}
			}
			if calls != processes*names*callers {
				t.Errorf("%d results, want one for each of %d calls", calls, processes*names*callers)
			}
			if met < meet {
				t.Errorf("%d creators met another's row, want %d at least", met, meet)
			}
			t.Logf("%d calls in %v, %d of them created what was there", calls, took, met)
		})
	}
}

// process runs test in a process, and returns its output.
func (d database) process(t *testing.T, test string, i int) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), "DRIVERTEST_DSN="+d.dsn, "DRIVERTEST_DRIVER="+d.driver,
		"DRIVERTEST_DIALECT="+strconv.Itoa(int(d.dialect)), "DRIVERTEST_PROCESS="+strconv.Itoa(i))
	var logged strings.Builder // by a Loader whose Redis is slow on a busy machine
	cmd.Stderr = &logged
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w\n%s\n%s", err, out, logged.String())
	}
	return string(out), nil
}

// A caller is one of the concurrent callers of a name. It returns the value of the name, and
// whether it tried to create mine.
type caller func(ctx context.Context, i int, name, mine string) (v string, created bool, err error)

// callAll calls all callers, for one name after the other. Each process does so.
func callAll(t *testing.T, call caller) {
	t.Helper()
	out := bufio.NewWriter(os.Stdout)
	for n := range names {
		name := fmt.Sprintf("name %d", n)
		said, err := together(callers, func(i int) (string, error) {
			mine := fmt.Sprintf("by caller %d of process %s", i, os.Getenv("DRIVERTEST_PROCESS"))
			v, created, err := call(t.Context(), i, name, mine)
			if created {
				return fmt.Sprintf("%q created %q got %q\n", name, mine, v), err
			}
			return fmt.Sprintf("%q found %q\n", name, v), err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range said {
			_, _ = io.WriteString(out, line)
		}
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
}

// callStore makes all callers of a name look it up before one of them creates it. So in the
// first process all of them create it.
func callStore(t *testing.T, d database) caller {
	t.Helper()
	s := newStore(t, d, oncesql.Options[string]{Table: "things"})
	looked := barrier{open: make(chan struct{})}
	return func(ctx context.Context, _ int, name, mine string) (string, bool, error) {
		v, err := s.Lookup(ctx, name)
		looked.wait()
		if !errors.Is(err, fetchonce.ErrNotFound) {
			return v, false, err
		}
		v, err = s.Create(ctx, name, mine)
		return v, true, err
	}
}

// callLoaders has a Loader for each caller.
func callLoaders(t *testing.T, d database) caller {
	t.Helper()
	s := newStore(t, d, oncesql.Options[string]{Table: "things"})
	loaders := make([]*fetchonce.Loader[string], callers)
	for i := range loaders {
		rdb := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
		t.Cleanup(func() { _ = rdb.Close() })
		opt := fetchonce.Options[string]{Prefix: "things", Store: s}
		if i%2 == 1 {
			opt.TTL = fetchonce.Off
		}
		l, err := fetchonce.New(rdb, opt)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		loaders[i] = l
	}
	return func(ctx context.Context, i int, name, mine string) (v string, fetched bool, err error) {
		v, err = loaders[i].Get(ctx, name, func(context.Context, string) (string, error) {
			fetched = true
			time.Sleep(5 * time.Millisecond) // other callers look the name up meanwhile
			return mine, nil
		})
		return v, fetched, err
	}
}

// A barrier makes the callers of a name wait until all have arrived. It serves one name after
// the other.
type barrier struct {
	mu      sync.Mutex
	waiting int
	open    chan struct{} // closed when all have arrived
}

func (b *barrier) wait() {
	b.mu.Lock()
	open := b.open
	if b.waiting++; b.waiting == callers {
		close(open)
		b.waiting, b.open = 0, make(chan struct{})
	}
	b.mu.Unlock()
	<-open
}
