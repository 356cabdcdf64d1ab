//go:build unix

package main_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/pgtest"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

const fenceLease = 500 * time.Millisecond

// recipe returns the statements of docs/fence.md by their names.
func recipe() (map[string]string, error) {
	text, err := os.ReadFile("../docs/fence.md")
	if err != nil {
		return nil, err
	}
	statements := make(map[string]string)
	for _, m := range regexp.MustCompile("(?s)```sql (\\w+)\n(.*?)\n```").FindAllStringSubmatch(string(text), -1) {
		statements[m[1]] = m[2]
	}
	return statements, nil
}

// fence is the role of a process that writes under a lease as docs/fence.md describes. It prints "holds"
// and its fence. Then it executes the lines of its input: "write 5", "upsert 5" or "claimed 5" with the
// balance to write, "naive 5" for a write without a fence, or "claim". It prints "wrote" and the number
// of rows, or "claimed" and the balance.
func fence(ctx context.Context, j job, in *bufio.Scanner) error {
	statements, err := recipe()
	if err != nil {
		return err
	}
	statements["naive"] = "UPDATE accounts SET balance = $2 WHERE key = $1 AND $3::bigint > 0"
	opt, err := redis.ParseURL(j.Redis)
	if err != nil {
		return err
	}
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	db, err := sql.Open(j.Driver, j.DSN)
	if err != nil {
		return err
	}
	defer db.Close()
	l, err := fetchonce.New(rdb, fetchonce.Options[string]{Prefix: "accounts", Lease: j.Lease})
	if err != nil {
		return err
	}
	defer l.Close()
	_, err = l.Load(ctx, "k", func(_ context.Context, f *fetchonce.Fetch[string]) (string, error) {
		printLine("holds", f.Fence)
		for in.Scan() {
			var name string
			var balance int
			_, _ = fmt.Sscan(in.Text(), &name, &balance)
			if name == "claim" {
				rows, err := db.Query(statements[name], f.Key, f.Fence) // without the context of the fetch, as if it ignored that
				if err != nil {
					return "", err
				}
				found := "nothing"
				for rows.Next() {
					if err := rows.Scan(&found); err != nil {
						return "", err
					}
				}
				if err := rows.Close(); err != nil {
					return "", err
				}
				printLine("claimed", found)
				continue
			}
			done, err := db.Exec(statements[name], f.Key, balance, f.Fence)
			if err != nil {
				return "", err
			}
			n, err := done.RowsAffected()
			if err != nil {
				return "", err
			}
			printLine("wrote", n)
		}
		return "", nil
	})
	return err
}

// A holder is stopped for longer than its lease. Another process acquires the lease and writes. Then the
// first continues and writes too.
//
//test:long
func TestFenceRefusesALateWrite(t *testing.T) {
	statements, err := recipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name                 string
		before               string // order to the first holder before it is stopped
		beforePrints         string // and its output
		second, secondPrints string // order to the second holder meanwhile, and its output
		late, latePrints     string // order to the first holder when it continues
		after, afterPrints   string // last order to the second holder
		balance              int    // at the end
		rowExists            bool   // at the start
	}{
		{name: "without a fence the late write wins", rowExists: true, second: "naive 2", secondPrints: "wrote 1", late: "naive 1", latePrints: "wrote 1", balance: 1},
		{name: "write", rowExists: true, second: "write 2", secondPrints: "wrote 1", late: "write 1", latePrints: "wrote 0", balance: 2},
		{name: "upsert", second: "upsert 2", secondPrints: "wrote 1", late: "upsert 1", latePrints: "wrote 0", balance: 2},
		{
			name: "upsert, twice by the first holder", before: "upsert 7", beforePrints: "wrote 1",
			second: "upsert 2", secondPrints: "wrote 1", late: "upsert 1", latePrints: "wrote 0", balance: 2,
		},
		{
			name: "the second holder has not written yet", rowExists: true, late: "write 1", latePrints: "wrote 1",
			after: "write 2", afterPrints: "wrote 1", balance: 2,
		},
		{
			name: "claim", rowExists: true, before: "claim", beforePrints: "claimed 0",
			second: "claim", secondPrints: "claimed 0", late: "claimed 1", latePrints: "wrote 0",
			after: "claimed 2", afterPrints: "wrote 1", balance: 2,
		},
		{
			name: "a late claim", rowExists: true, second: "claim", secondPrints: "claimed 0", late: "claim", latePrints: "claimed nothing",
			after: "claimed 2", afterPrints: "wrote 1", balance: 2,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			server, dsn := redistest.Server(t), pgtest.Start(t)
			db, err := sql.Open("pgx", dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.Exec(statements["schema"]); err != nil {
				t.Fatal(err)
			}
			if c.rowExists {
				if _, err := db.Exec("INSERT INTO accounts VALUES ('k', 0)"); err != nil {
					t.Fatal(err)
				}
			}
			do := func(w *worker, order, want string) {
				t.Helper()
				if order == "" {
					return
				}
				w.send(order)
				if got := w.await(""); got != want {
					t.Errorf("%s, %s: %q, want %q", w.name, order, got, want)
				}
			}
			holder := func(name string) (*worker, int64) {
				t.Helper()
				w := start(t, executable(t), job{Role: "fence", Process: name, Redis: server.URL(), Driver: "pgx", DSN: dsn, Lease: fenceLease})
				fence, err := strconv.ParseInt(w.await("holds"), 10, 64) // waits for the lease
				if err != nil {
					t.Fatal(err)
				}
				return w, fence
			}

			first, firstFence := holder("first")
			do(first, c.before, c.beforePrints)
			first.signal(syscall.SIGSTOP)
			second, secondFence := holder("second")
			if firstFence >= secondFence {
				t.Errorf("fences %d and %d do not rise", firstFence, secondFence)
			}
			do(second, c.second, c.secondPrints)
			first.signal(syscall.SIGCONT)
			do(first, c.late, c.latePrints)
			do(second, c.after, c.afterPrints)

			var balance int
			var fence int64
			if err := db.QueryRow("SELECT balance, fence FROM accounts WHERE key = 'k'").Scan(&balance, &fence); err != nil {
				t.Fatal(err)
			}
			if balance != c.balance {
				t.Errorf("the balance is %d, want %d", balance, c.balance)
			}
			if fence != secondFence && c.second != "naive 2" {
				t.Errorf("the row has fence %d, want the later holder's, %d", fence, secondFence)
			}
			first.stop()
			second.stop()
		})
	}
}

// Without a lease the fence is 0, which never changes a row.
func TestFenceOfZeroWritesNothing(t *testing.T) {
	statements, err := recipe()
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("pgx", pgtest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statements["schema"] + "; INSERT INTO accounts VALUES ('k', 0)"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"write", "upsert"} {
		done, err := db.Exec(statements[name], "k", 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := done.RowsAffected(); n != 0 || err != nil {
			t.Errorf("%s changed %d rows, %v; want none", name, n, err)
		}
	}
	if _, err := db.Exec(statements["claimed"], "k", 1, 1); err != nil {
		t.Error(err)
	}
}
