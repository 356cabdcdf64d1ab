package drivertest_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/oncesql"
)

const creators = 32 // at once, of one key

// contended returns the number of contended keys. SQLite is slow: a waiting writer sleeps, for
// longer each time.
func (d database) contended() int {
	if d.dialect == oncesql.SQLite {
		return 10
	}
	return 50
}

// Each creator has its own value, and all start a key together.
func TestCreatorsOfOneKeyGetOneRow(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			s, keys := f.store(t, d), d.contended()
			for k := range keys {
				key := "key " + strconv.Itoa(k)
				kept, err := together(creators, func(i int) (thing, error) {
					return s.Create(t.Context(), key, thing{key, i})
				})
				if err != nil {
					t.Fatalf("Create(%s): %v", key, err)
				}
				for _, v := range kept {
					if v != kept[0] || v.Name != key {
						t.Fatalf("creators of %s got %v and %v", key, kept[0], v)
					}
				}
				if v, err := s.Lookup(t.Context(), key); v != kept[0] || err != nil {
					t.Fatalf("Lookup(%s) = %v, %v; the creators got %v", key, v, err, kept[0])
				}
			}
			if n := d.number(t, "SELECT count(*) FROM things"); n != keys {
				t.Errorf("%d rows for %d keys", n, keys)
			}
		})
	}
}

// All creators of a key have the same value, so their rows are equal in every column, also in
// another unique one.
func TestCreatorsOfEqualRowsGetOneRow(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s, keys := slugStore(t, d), d.contended()
			for k := range keys {
				key := strconv.Itoa(k)
				kept, err := together(creators, func(int) (string, error) {
					return s.Create(t.Context(), key, "slug of "+key)
				})
				if err != nil {
					t.Fatalf("Create(%s): %v", key, err)
				}
				for _, v := range kept {
					if v != "slug of "+key {
						t.Fatalf("a creator of %s got %q", key, v)
					}
				}
			}
			if n := d.number(t, "SELECT count(*) FROM pages"); n != keys {
				t.Errorf("%d rows for %d keys", n, keys)
			}
		})
	}
}

// together calls n functions at once and returns their results, or an error.
func together[V any](n int, call func(i int) (V, error)) ([]V, error) {
	var (
		start   = make(chan struct{})
		done    sync.WaitGroup
		results = make([]V, n)
		errs    = make([]error, n)
	)
	for i := range n {
		done.Go(func() {
			<-start
			results[i], errs[i] = call(i)
		})
	}
	close(start)
	done.Wait()
	return results, errors.Join(errs...)
}

// In PostgreSQL, an insert checks whether its key exists, and then writes the indexes one by
// one. Here an index that waits for a lock stops it between the two, while another creator
// inserts an equal row. The index of the other unique column is older than that of the key, so
// the insert meets the row there.
func TestCreatorsOfEqualRowsMeetInAnotherColumn(t *testing.T) {
	d := newPostgres(t)
	d.exec(t,
		`CREATE TABLE pages (slug text NOT NULL, key text NOT NULL)`,
		`CREATE FUNCTION wait(key text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
			IF current_setting('application_name') = 'waits' THEN PERFORM pg_advisory_xact_lock(1); END IF;
			RETURN key;
		END $$`,
		`CREATE INDEX ON pages (wait(key))`,
		`CREATE UNIQUE INDEX ON pages (slug)`,
		`CREATE UNIQUE INDEX ON pages (key)`)
	waits := open(t, d.dialect, d.driver, d.dsn+"&application_name=waits")
	waitingInserts := 0
	waits = waits.before(t, func(statement string) error {
		if strings.HasPrefix(statement, "INSERT") {
			waitingInserts++
		}
		return nil
	})

	hold, err := d.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hold.Rollback() }()
	if _, err := hold.Exec("SELECT pg_advisory_xact_lock(1)"); err != nil {
		t.Fatal(err)
	}
	created := inBackground(t.Context(), slugs(t, waits), "k", "slug")
	d.awaitBlocked(t, 1)
	if v, err := slugs(t, d).Create(t.Context(), "k", "slug"); v != "slug" || err != nil {
		t.Fatalf("Create that does not wait = %q, %v; want slug", v, err)
	}
	if err := hold.Rollback(); err != nil {
		t.Fatal(err)
	}
	if r := <-created; r.v != "slug" || r.err != nil {
		t.Errorf("Create that waited = %v; want slug, nil", r)
	}
	if waitingInserts != 1 {
		t.Errorf("%d inserts, want the one that met the other's slug", waitingInserts)
	}

	// The same, but the existing row has another key.
	hold, err = d.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hold.Rollback() }()
	if _, err := hold.Exec("SELECT pg_advisory_xact_lock(1)"); err != nil {
		t.Fatal(err)
	}
	created = inBackground(t.Context(), slugs(t, waits), "mine", "theirs")
	d.awaitBlocked(t, 1)
	if _, err := slugs(t, d).Create(t.Context(), "other", "theirs"); err != nil {
		t.Fatal(err)
	}
	if err := hold.Rollback(); err != nil {
		t.Fatal(err)
	}
	if r := <-created; r.v != "" || !isDriversUniqueViolation(r.err) {
		t.Errorf("Create of another's slug = %v; want nothing, and the driver's unique violation", r)
	}
}

// isolated has SQLite, and the other databases at each isolation level.
var isolated = func() map[string]func(t *testing.T) database {
	all := map[string]func(t *testing.T) database{"SQLite": newSQLite}
	for _, level := range []string{"read committed", "repeatable read", "serializable"} {
		all["Postgres, "+level] = func(t *testing.T) database {
			t.Helper()
			return newPostgres(t, "default_transaction_isolation="+url.PathEscape(level))
		}
		all["MariaDB, "+level] = func(t *testing.T) database {
			t.Helper()
			return newMariaDB(t, "tx_isolation="+url.QueryEscape("'"+strings.ReplaceAll(level, " ", "-")+"'"))
		}
	}
	all["MariaDB, snapshot isolation"] = func(t *testing.T) database {
		t.Helper()
		return newMariaDB(t, "innodb_snapshot_isolation=1")
	}
	return all
}()

// Create meets a row of a transaction that has not committed yet.
func TestCreateWaitsForARowThatIsNotCommitted(t *testing.T) {
	for name, newDatabase := range isolated {
		for _, end := range []string{"COMMIT", "ROLLBACK"} {
			t.Run(name+", "+end, func(t *testing.T) {
				d := newDatabase(t)
				sent := make(chan struct{})
				var once sync.Once
				s := textStore(t, d, "things")
				watched := newStore(t, d.before(t, func(string) error {
					once.Do(func() { close(sent) })
					return nil
				}), oncesql.Options[string]{Table: "things"})

				other, err := d.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = other.Rollback() }()
				if _, err := other.Exec(`INSERT INTO things VALUES ('k', '"theirs"')`); err != nil {
					t.Fatal(err)
				}
				created := inBackground(t.Context(), watched, "k", "mine")
				<-sent
				if d.dialect != oncesql.SQLite {
					d.awaitBlocked(t, 1)
				}
				want := "mine"
				if end == "COMMIT" {
					want, err = "theirs", other.Commit()
				} else {
					err = other.Rollback()
				}
				if err != nil {
					t.Fatal(err)
				}
				if r := <-created; r.v != want || r.err != nil {
					t.Errorf("Create = %v; want %s, nil", r, want)
				}
				if v, err := s.Lookup(t.Context(), "k"); v != want || err != nil {
					t.Errorf("Lookup = %q, %v; want %s", v, err, want)
				}
				if n := d.number(t, "SELECT count(*) FROM things"); n != 1 {
					t.Errorf("%d rows, want 1", n)
				}
			})
		}
	}
}

func TestCreateThatWaitsFollowsItsContext(t *testing.T) {
	d := newPostgres(t)
	s := textStore(t, d, "things")
	other, err := d.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Rollback() }()
	if _, err := other.Exec(`INSERT INTO things VALUES ('k', '"theirs"')`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	created := inBackground(ctx, s, "k", "mine")
	d.awaitBlocked(t, 1)
	cancel()
	if r := <-created; r.v != "" || !errors.Is(r.err, context.Canceled) {
		t.Errorf("Create = %v; want nothing, context.Canceled", r)
	}
}

// The insert finds the key taken. Then the row is deleted, and the lookup finds no row.
func TestRowDeletedBetweenInsertAndLookupIsCreatedAgain(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			theirs, mine := thing{"theirs", 1}, thing{"mine", 2}
			if _, err := f.store(t, d).Create(t.Context(), "k", theirs); err != nil {
				t.Fatal(err)
			}
			var statements []string
			s := f.store(t, d.before(t, func(statement string) error {
				verb, _, _ := strings.Cut(statement, " ")
				if verb == "SELECT" && !slices.Contains(statements, verb) {
					d.exec(t, "DELETE FROM things")
				}
				if verb == "SELECT" || verb == "INSERT" { // and no check of the table
					statements = append(statements, verb)
				}
				return nil
			}))
			if v, err := s.Create(t.Context(), "k", mine); v != mine || err != nil {
				t.Errorf("Create = %v, %v; want %v, nil", v, err, mine)
			}
			want := "INSERT SELECT INSERT"
			if d.dialect == oncesql.MySQL {
				want = "INSERT SELECT INSERT SELECT"
			}
			if got := strings.Join(statements, " "); got != want {
				t.Errorf("statements: %s; want %s", got, want)
			}
		})
	}
}

// The row exists at each insert and not at each lookup.
func TestCreateFailsIfItsRowIsNeverVisible(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			textStore(t, d, "things")
			s := newStore(t, d.before(t, func(statement string) error {
				if strings.HasPrefix(statement, "INSERT") {
					d.exec(t, `INSERT INTO things VALUES ('k', '"theirs"')`)
				} else if strings.HasPrefix(statement, "SELECT") {
					d.exec(t, "DELETE FROM things")
				}
				return nil
			}), oncesql.Options[string]{Table: "things"})
			v, err := s.Create(t.Context(), "k", "mine")
			if d.dialect == oncesql.MySQL {
				if v != "" || !isDriversUniqueViolation(err) {
					t.Errorf("Create = %q, %v; want nothing, and the driver's unique violation", v, err)
				}
				return
			}
			const want = `oncesql: create "k": no row was there after an insert, 10 times`
			if v != "" || err == nil || err.Error() != want {
				t.Errorf("Create = %q, %v; want %s", v, err, want)
			}
		})
	}
}

// Rows are deleted while they are created. No creator fails, and each gets a value of its
// key.
func TestCreatorsDoNotFailWhileRowsAreDeleted(t *testing.T) {
	for name, newDatabase := range isolated {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := textStore(t, d, "things")
			ctx, cancel := context.WithCancel(t.Context())
			var deleter sync.WaitGroup
			deleter.Go(func() {
				for ctx.Err() == nil {
					// At REPEATABLE READ, it fails if another transaction was faster.
					_, _ = d.Exec("DELETE FROM things")
					// Without a pause, a creator in MySQL would never see its row between
					// insert and lookup, and one in SQLite would never get the lock.
					if d.dialect != oncesql.Postgres {
						time.Sleep(time.Millisecond)
					}
				}
			})
			for k := range d.contended() {
				key := strconv.Itoa(k % 2)
				kept, err := together(4, func(i int) (string, error) {
					return s.Create(t.Context(), key, fmt.Sprintf("%s by %d", key, i))
				})
				if err != nil {
					t.Errorf("Create(%s): %v", key, err)
				}
				for _, v := range kept {
					if !strings.HasPrefix(v, key+" by ") {
						t.Errorf("a creator of %s got %q", key, v)
					}
				}
			}
			cancel()
			deleter.Wait()
		})
	}
}
