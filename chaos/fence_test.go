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

// recipe has the statements of docs/fence.md by their names.
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

// fence is the role of a process that writes under a lease, as docs/fence.md
// says. It says "holds" and its fence, and then executes what it is told, line by
// line: "write 5", "upsert 5", "claimed 5" and the balance to write, "naive 5" for
// a write without a fence, "claim". It says "wrote" and the number of rows, or
// "claimed" and the balance.
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
		say("holds", f.Fence)
		for in.Scan() {
			var name string
			var balance int
			_, _ = fmt.Sscan(in.Text(), &name, &balance)
			if name == "claim" {
				rows, err := db.Query(statements[name], f.Key, f.Fence) // its own context, as if it had not looked
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
				say("claimed", found)
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
			say("wrote", n)
		}
		return "", nil
	})
	return err
}

// A holder is stopped beyond its lease. Another gets the lease and writes. Then
// the first one goes on, and writes what it has.
//
//test:long
func TestFence(t *testing.T) {
	statements, err := recipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name                  string
		before                string // what the first does before it is stopped, and what it says to it
		beforeSays            string
		second, secondSays    string // what the other does meanwhile
		late, lateSays        string // what the first then tries
		afterwards, afterSays string // what the other does then
		balance               int    // in the end
		rowIsThere            bool   // in the beginning
	}{
		{name: "without a fence the late write wins", rowIsThere: true, second: "naive 2", secondSays: "wrote 1", late: "naive 1", lateSays: "wrote 1", balance: 1},
		{name: "write", rowIsThere: true, second: "write 2", secondSays: "wrote 1", late: "write 1", lateSays: "wrote 0", balance: 2},
		{name: "upsert", second: "upsert 2", secondSays: "wrote 1", late: "upsert 1", lateSays: "wrote 0", balance: 2},
		{
			name: "upsert, twice by the first", before: "upsert 7", beforeSays: "wrote 1",
			second: "upsert 2", secondSays: "wrote 1", late: "upsert 1", lateSays: "wrote 0", balance: 2,
		},
		{
			name: "the other has not written yet", rowIsThere: true, late: "write 1", lateSays: "wrote 1",
			afterwards: "write 2", afterSays: "wrote 1", balance: 2,
		},
		{
			name: "claim", rowIsThere: true, before: "claim", beforeSays: "claimed 0",
			second: "claim", secondSays: "claimed 0", late: "claimed 1", lateSays: "wrote 0",
			afterwards: "claimed 2", afterSays: "wrote 1", balance: 2,
		},
		{
			name: "a late claim", rowIsThere: true, second: "claim", secondSays: "claimed 0", late: "claim", lateSays: "claimed nothing",
			afterwards: "claimed 2", afterSays: "wrote 1", balance: 2,
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
			if c.rowIsThere {
				if _, err := db.Exec("INSERT INTO accounts VALUES ('k', 0)"); err != nil {
					t.Fatal(err)
				}
			}
			do := func(w *worker, what, says string) {
				t.Helper()
				if what == "" {
					return
				}
				w.tell(what)
				if got := w.says(""); got != says {
					t.Errorf("%s, %s: %q, want %q", w.name, what, got, says)
				}
			}
			holder := func(name string) (*worker, int64) {
				t.Helper()
				w := start(t, executable(t), job{Role: "fence", Process: name, Redis: server.URL(), Driver: "pgx", DSN: dsn, Lease: fenceLease})
				fence, err := strconv.ParseInt(w.says("holds"), 10, 64) // waits for the lease
				if err != nil {
					t.Fatal(err)
				}
				return w, fence
			}

			first, firstFence := holder("first")
			do(first, c.before, c.beforeSays)
			first.signal(syscall.SIGSTOP)
			second, secondFence := holder("second")
			if firstFence >= secondFence {
				t.Errorf("fences %d and %d do not rise", firstFence, secondFence)
			}
			do(second, c.second, c.secondSays)
			first.signal(syscall.SIGCONT)
			do(first, c.late, c.lateSays)
			do(second, c.afterwards, c.afterSays)

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

// Without a lease there is a fence of 0, with which nothing is written over.
func TestNoFenceWritesNothing(t *testing.T) {
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
