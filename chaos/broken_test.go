//go:build unix

package main_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	_ "modernc.org/sqlite" // as "sqlite"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/pgtest"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
	"github.com/fetchonce/fetchonce/oncesql"
)

// A database is a kind of database for a Store. Its driver must be imported.
type database struct {
	driver  string
	dialect oncesql.Dialect
	start   func(t *testing.T) (dsn string)
}

// databases lists the kinds of databases.
var databases = map[string]database{
	"Postgres": {"pgx", oncesql.Postgres, func(t *testing.T) string { t.Helper(); return pgtest.Start(t) }},
	"SQLite": {"sqlite", oncesql.SQLite, func(t *testing.T) string {
		t.Helper()
		return "file:" + filepath.Join(t.TempDir(), "test.db") + "?_pragma=busy_timeout(60000)&_pragma=journal_mode(wal)&_pragma=synchronous(off)"
	}},
}

// store opens the Store of a worker.
func store(driver, dsn string) (*sql.DB, *oncesql.Store[string], error) {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return nil, nil, err
	}
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	for _, d := range databases {
		if d.driver == driver {
			s, err := oncesql.New(db, oncesql.Options[string]{Dialect: d.dialect, Table: "things"})
			return db, s, err
		}
	}
	return nil, nil, fmt.Errorf("there is no database with the driver %q", driver)
}

// grantEveryLease changes a script so that Redis grants every lease, even if another process holds it: each gets
// its own key. It appends the owner, the first argument of a script about a lease, to the name of the
// lease's key.
func grantEveryLease(cmd redis.Cmder) {
	args := cmd.Args()
	if !strings.HasPrefix(cmd.Name(), "eval") {
		return
	}
	keys := args[3 : 3+args[2].(int)]
	owner := fmt.Sprint(args[3+len(keys)])
	for i, key := range keys {
		name := key.(string)
		if strings.HasPrefix(name, sharedPrefix+":m:") && !strings.HasSuffix(name, owner) {
			keys[i] = name + owner
		}
	}
}

const sharedPrefix = "shared"

// create is the role of a process whose callers all Get the same names in the same order. It prints how
// often it fetched and what each caller received.
func create(ctx context.Context, j job, in *bufio.Scanner) error {
	opt, err := redis.ParseURL(j.Redis)
	if err != nil {
		return err
	}
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	if j.Shared {
		rdb.AddHook(testkit.Before(grantEveryLease))
	}
	db, table, err := store(j.Driver, j.DSN)
	if err != nil {
		return err
	}
	defer db.Close()
	var (
		fetches atomic.Int64
		got     = make([][]string, j.Callers)
		loaders = make([]*fetchonce.Loader[string], j.Callers)
	)
	for c := range loaders {
		// Each caller has its own prefix, as if it had its own Redis.
		prefix := j.Process + strconv.Itoa(c)
		if j.Shared {
			prefix = sharedPrefix
		}
		loaders[c], err = fetchonce.New(rdb, fetchonce.Options[string]{
			Prefix: prefix, Store: table, RedisTimeout: 10 * time.Second, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return err
		}
		defer loaders[c].Close()
	}
	printLine("ready")
	in.Scan() // until all processes are ready
	for n := range j.Names {
		var all sync.WaitGroup // one per name, so that its callers run at once
		for c, l := range loaders {
			all.Go(func() {
				v, err := l.Get(ctx, "name "+strconv.Itoa(n), func(context.Context, string) (string, error) {
					time.Sleep(2 * time.Millisecond) // like a remote call
					return fmt.Sprintf("%s's %d", j.Process, fetches.Add(1)), nil
				})
				if err != nil {
					v = "error: " + err.Error()
				}
				got[c] = append(got[c], v)
			})
		}
		all.Wait()
	}
	printLine("fetches", fetches.Load())
	for _, values := range got {
		printLine("got", strings.Join(values, "|"))
	}
	return nil
}

// Every caller is granted the lease at once. The Store still keeps one row for each name, and all
// callers receive it.
//
//test:long
func TestStoreKeepsOneRowWithoutWorkingLeases(t *testing.T) {
	const names, callers = 200, 8
	for kind, d := range databases {
		for how, shared := range map[string]bool{"one prefix per caller": false, "every lease granted": true} {
			t.Run(kind+", "+how, func(t *testing.T) {
				server, dsn := redistest.Server(t), d.start(t)
				db, table, err := store(d.driver, dsn)
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				if err := table.CreateTable(t.Context()); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				fetches, got := allCreate(t, job{
					Role: "create", Redis: server.URL(), Driver: d.driver, DSN: dsn, Names: names, Callers: callers, Shared: shared,
				})
				took := time.Since(began)
				differ, failed := 0, 0
				for n := range names {
					kept, err := table.Lookup(t.Context(), "name "+strconv.Itoa(n))
					if err != nil {
						t.Error(err)
					}
					for _, values := range got {
						if strings.HasPrefix(values[n], "error: ") {
							if failed++; failed < 5 {
								t.Error(values[n])
							}
						} else if values[n] != kept {
							if differ++; differ < 5 {
								t.Errorf("a caller of name %d got %q, want the row %q", n, values[n], kept)
							}
						}
					}
				}
				var rows int
				if err := db.QueryRow("SELECT count(*) FROM things").Scan(&rows); err != nil {
					t.Fatal(err)
				}
				t.Logf("%d names, %d callers of each, %d fetches: %d rows, %d errors, %d other values, in %v",
					names, len(got), fetches, rows, failed, differ, took.Round(time.Millisecond))
				if rows != names || failed > 0 || differ > 0 {
					t.Errorf("%d rows, %d errors, %d other values; want %d, 0, 0", rows, failed, differ, names)
				}
				if fetches < 2*names {
					t.Errorf("%d fetches, want two per name at least: leases worked", fetches)
				}
			})
		}
	}
}

// allCreate runs creators in several processes. It returns how often they fetched, and what each caller
// received for each name.
func allCreate(t *testing.T, j job) (fetches int, got [][]string) {
	t.Helper()
	var workers []*worker
	for n := range processes {
		j := j
		j.Process = "p" + strconv.Itoa(n)
		workers = append(workers, start(t, executable(t), j))
	}
	for _, w := range workers {
		w.await("ready")
	}
	for _, w := range workers {
		w.send("go")
	}
	for _, w := range workers {
		n, err := strconv.Atoi(w.await("fetches"))
		if err != nil {
			t.Fatal(err)
		}
		fetches += n
		for range j.Callers {
			values := strings.Split(w.await("got"), "|")
			if len(values) != j.Names {
				t.Fatal(errors.New("a caller did not get all names"))
			}
			got = append(got, values)
		}
		w.stop()
	}
	return fetches, got
}
