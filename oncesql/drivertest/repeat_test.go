package drivertest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fetchonce/fetchonce/oncesql"
)

// passing has errors that may pass when a statement is repeated.
func passing(dialect oncesql.Dialect) map[string]error {
	errs := map[string]error{
		"EOF":            fmt.Errorf("read: %w", io.EOF),
		"unexpected EOF": fmt.Errorf("read: %w", io.ErrUnexpectedEOF),
	}
	switch dialect {
	case oncesql.Postgres:
		for _, code := range []string{"57P01", "57P02", "57P03", "08000", "08006", "0A000", "26000", "40001", "40P01", "55P03"} {
			errs[code] = &pgconn.PgError{Code: code}
		}
	case oncesql.MySQL:
		errs["invalid connection"] = mysql.ErrInvalidConn
		for _, number := range []uint16{1213, 1205, 1020, 1053, 1615, 1243, 1412, 1927, 4031} {
			errs[fmt.Sprint(number)] = &mysql.MySQLError{Number: number}
		}
	case oncesql.SQLite:
		errs["busy"], errs["locked"] = sqliteError(5), sqliteError(6)
	}
	return errs
}

// A sqliteError has the method of modernc.org/sqlite's errors, which only that
// package can make.
type sqliteError int

func (e sqliteError) Error() string { return fmt.Sprintf("SQLite: %d", int(e)) }
func (e sqliteError) Code() int     { return int(e) }

// Every statement is repeated after a passing error. Other errors are returned at once.
func TestPassingErrorsAreRepeated(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			kept := textStore(t, d, "things")
			if _, err := kept.Create(t.Context(), "k", "v"); err != nil {
				t.Fatal(err)
			}
			for text, passes := range passing(d.dialect) {
				var failing string
				s := newStore(t, d.before(t, func(statement string) error {
					if failing != "" && strings.HasPrefix(statement, failing) {
						failing = ""
						return passes
					}
					return nil
				}), oncesql.Options[string]{Table: "things"})
				failing = "SELECT"
				if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil {
					t.Errorf("%s: Lookup = %q, %v; want v, nil", text, v, err)
				}
				failing = "SELECT"
				if found, err := s.LookupMany(t.Context(), []string{"k", "other"}); found["k"] != "v" || err != nil {
					t.Errorf("%s: LookupMany = %v, %v; want v, nil", text, found, err)
				}
				failing = "INSERT"
				if v, err := s.Create(t.Context(), "new "+text, "v"); v != "v" || err != nil {
					t.Errorf("%s: Create = %q, %v; want v, nil", text, v, err)
				}
			}
		})
	}
}

// An insert fails with a lasting error, and the key has a row. The lookup after it is repeated
// until it finds the row.
func TestCreateRepeatsTheLookupAfterAFailedInsert(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			kept := textStore(t, d, "things")
			lasting, failed := errors.New("lasting"), 0
			s := newStore(t, d.before(t, func(statement string) error {
				switch {
				case strings.HasPrefix(statement, "INSERT"):
					if _, err := kept.Create(t.Context(), "k", "theirs"); err != nil {
						t.Error(err)
					}
					return lasting
				case strings.HasPrefix(statement, "SELECT"):
					if failed++; failed < 3 {
						return io.ErrUnexpectedEOF
					}
				}
				return nil
			}), oncesql.Options[string]{Table: "things"})
			if v, err := s.Create(t.Context(), "k", "mine"); v != "theirs" || err != nil {
				t.Errorf("Create = %q, %v; want theirs, nil", v, err)
			}
		})
	}
}

func TestLastingErrorsAreNotRepeated(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			textStore(t, d, "things")
			for _, lasting := range []error{
				errors.New("other"), context.DeadlineExceeded,
				&pgconn.PgError{Code: "42P01"}, &pgconn.PgError{Code: "22021"}, &mysql.MySQLError{Number: 1146}, sqliteError(1),
			} {
				selects := 0
				s := newStore(t, d.before(t, func(statement string) error {
					if strings.HasPrefix(statement, "SELECT") {
						selects++
						return lasting
					}
					return nil
				}), oncesql.Options[string]{Table: "things"})
				if _, err := s.Lookup(t.Context(), "k"); !errors.Is(err, lasting) || selects != 1 {
					t.Errorf("Lookup = %v, with %d statements; want %v, 1", err, selects, lasting)
				}
			}
		})
	}
}

// A passing error that lasts is returned after about a second, or at once when ctx ends.
func TestRepeatsAreBounded(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			textStore(t, d, "things")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			selects, last := 0, 100
			s := newStore(t, d.before(t, func(statement string) error {
				if !strings.HasPrefix(statement, "SELECT") {
					return nil
				}
				if selects++; selects == last {
					cancel()
				}
				return io.ErrUnexpectedEOF
			}), oncesql.Options[string]{Table: "things"})
			if _, err := s.Lookup(ctx, "k"); !errors.Is(err, io.ErrUnexpectedEOF) || selects < 3 || selects > 20 {
				t.Errorf("Lookup = %v, after %d statements; want the error, after some", err, selects)
			}
			last = selects + 1
			if _, err := s.Lookup(ctx, "k"); err == nil || selects > last {
				t.Errorf("Lookup = %v, after %d statements; want an error as soon as ctx ends", err, selects-last+1)
			}
		})
	}
}

// The server ends all connections, as in a restart.
func TestLookupsAfterTheServerEndedTheConnections(t *testing.T) {
	for name, newDatabase := range databases {
		if name == "SQLite" {
			continue // has no server
		}
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := textStore(t, d, "things")
			if _, err := s.Create(t.Context(), "k", "v"); err != nil {
				t.Fatal(err)
			}
			each := func(do func(i int)) {
				var all sync.WaitGroup
				for i := range 20 {
					all.Go(func() { do(i) })
				}
				all.Wait()
			}
			each(func(int) { _, _ = s.Lookup(t.Context(), "k") }) // 20 idle connections
			d.endConnections(t)
			each(func(i int) {
				if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil {
					t.Errorf("Lookup = %q, %v; want v", v, err)
				}
				if v, err := s.Create(t.Context(), fmt.Sprint(i), "v"); v != "v" || err != nil {
					t.Errorf("Create = %q, %v; want v", v, err)
				}
			})
		})
	}
}

// endConnections makes the server end all connections to this database except its own.
func (d database) endConnections(t *testing.T) {
	t.Helper()
	admin := d.again(t)
	if d.dialect == oncesql.Postgres {
		admin.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		return
	}
	rows, err := admin.Query("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
	if err != nil {
		t.Fatal(err)
	}
	var ids []int
	for rows.Next() {
		var id int
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		_, _ = admin.Exec(fmt.Sprintf("KILL %d", id)) // it may have ended by itself
	}
}

// A column changes its type: PostgreSQL then refuses the plans of all connections.
func TestPlanChangesWithTheTable(t *testing.T) {
	d := newPostgres(t)
	s := textStore(t, d, "things")
	if _, err := s.Create(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	for _, newType := range []string{"json", "text", "varchar(100)", "jsonb"} {
		if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil { // prepares
			t.Errorf("Lookup = %q, %v; want v", v, err)
		}
		d.exec(t, "ALTER TABLE things ALTER COLUMN value TYPE "+newType+" USING value::"+newType)
		if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil {
			t.Errorf("with %s: Lookup = %q, %v; want v", newType, v, err)
		}
		if found, err := s.LookupMany(t.Context(), []string{"k", "l"}); found["k"] != "v" || err != nil {
			t.Errorf("with %s: LookupMany = %v, %v; want v", newType, found, err)
		}
	}
}
