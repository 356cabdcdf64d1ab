package drivertest_test

import (
	"database/sql/driver"
	"errors"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

// The row is inserted, and the answer is lost. In every database, Create looks the key up
// before it returns an error.
func TestCreateReturnsTheRowIfItsAnswerWasLost(t *testing.T) {
	for _, f := range everyForm {
		t.Run(f.name, func(t *testing.T) {
			d := f.open(t)
			mine := thing{"mine", 1}
			lost := false
			s := f.store(t, d.before(t, func(statement string) error {
				if !strings.HasPrefix(statement, "INSERT") || lost {
					return nil
				}
				lost = true
				if _, err := f.store(t, d).Create(t.Context(), "k", mine); err != nil {
					t.Error(err)
				}
				return errors.New("connection reset by peer")
			}))
			if v, err := s.Create(t.Context(), "k", mine); v != mine || err != nil || !lost {
				t.Errorf("Create = %v, %v; want %v, nil", v, err, mine)
			}
		})
	}
}

// If no row was inserted, Create returns the error of the insert, whatever the lookup returns.
func TestCreateReturnsTheErrorOfTheInsert(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			textStore(t, d, "things")
			for _, lookupErr := range []error{nil, errors.New("the lookup's")} {
				want := errors.New("the insert's")
				s := newStore(t, d.before(t, func(statement string) error {
					switch {
					case strings.HasPrefix(statement, "INSERT"):
						return want
					case strings.HasPrefix(statement, "SELECT"):
						return lookupErr
					}
					return nil
				}), oncesql.Options[string]{Table: "things"})
				if v, err := s.Create(t.Context(), "k", "v"); v != "" || err != want {
					t.Errorf("Create = %q, %v; want the insert's error", v, err)
				}
			}
		})
	}
}

// A connection that was lost while it was idle causes no error.
func TestPreparedStatementOutlivesItsConnection(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := textStore(t, d, "things")
			if _, err := s.Create(t.Context(), "k", "v"); err != nil {
				t.Fatal(err)
			}
			conn, err := d.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // the pool lets it go
			if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil {
				t.Errorf("Lookup = %q, %v; want v", v, err)
			}
		})
	}
}

func TestTableMayBeCreatedAfterTheFirstLookup(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, newDatabase(t), oncesql.Options[string]{Table: "things"})
			if v, err := s.Lookup(t.Context(), "k"); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
				t.Errorf("Lookup without a table = %q, %v; want the database's error", v, err)
			}
			if err := s.CreateTable(t.Context()); err != nil {
				t.Fatal(err)
			}
			if v, err := s.Create(t.Context(), "k", "v"); v != "v" || err != nil {
				t.Errorf("Create = %q, %v; want v", v, err)
			}
			if v, err := s.Lookup(t.Context(), "k"); v != "v" || err != nil {
				t.Errorf("Lookup = %q, %v; want v", v, err)
			}
		})
	}
}
