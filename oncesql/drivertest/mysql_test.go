package drivertest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

// The first of three creators rolls back. The other two waited for it, each with a shared
// lock, and now both need an exclusive lock: a deadlock, in which one of them fails.
func TestDeadlockOfCreatorsIsRepeated(t *testing.T) {
	d := newMariaDB(t)
	s := textStore(t, d, "things")
	if _, err := s.Create(t.Context(), "other", "v"); err != nil { // so that no creator begins with a look at the indexes
		t.Fatal(err)
	}
	before := d.number(t, "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'innodb_deadlocks'")
	first, err := d.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Rollback() }()
	if _, err := first.Exec(`INSERT INTO things VALUES ('k', '"first"')`); err != nil {
		t.Fatal(err)
	}
	second, third := inBackground(t.Context(), s, "k", "second"), inBackground(t.Context(), s, "k", "third")
	d.awaitBlocked(t, 2)
	if err := first.Rollback(); err != nil {
		t.Fatal(err)
	}
	a, b := <-second, <-third
	if a.err != nil || b.err != nil || a.v != b.v || a.v == "first" {
		t.Errorf("the creators got %v and %v; want one value of theirs", a, b)
	}
	if after := d.number(t, "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'innodb_deadlocks'"); after == before {
		t.Error("there was no deadlock")
	}
}

// The context decides how long a call waits.
func TestCreateWaitsLongerThanTheServer(t *testing.T) {
	d := newMariaDB(t, "innodb_lock_wait_timeout=1")
	s := textStore(t, d, "things")
	other, err := d.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Rollback() }()
	if _, err := other.Exec(`INSERT INTO things VALUES ('k', '"theirs"')`); err != nil {
		t.Fatal(err)
	}
	inserts := make(chan struct{}, 10)
	watched := newStore(t, d.before(t, func(statement string) error {
		if strings.HasPrefix(statement, "INSERT") {
			inserts <- struct{}{}
		}
		return nil
	}), oncesql.Options[string]{Table: "things"})
	created := inBackground(t.Context(), watched, "k", "mine")
	for range 2 { // the first waits for a second
		select {
		case <-inserts:
		case r := <-created:
			t.Fatalf("Create = %v, while the other's row was not committed", r)
		}
	}
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	if r := <-created; r.v != "theirs" || r.err != nil {
		t.Errorf("Create = %v; want theirs, nil", r)
	}
	if v, err := s.Lookup(t.Context(), "k"); v != "theirs" || err != nil {
		t.Errorf("Lookup = %q, %v; want theirs", v, err)
	}
}

// A driver may be wrapped, for example for traces.
func TestNumberOfAWrappedErrorCounts(t *testing.T) {
	for _, test := range []struct {
		number uint16
		repeat bool
	}{{1213, true}, {1205, true}, {1020, true}, {1062, true}, {1406, false}, {1146, false}, {1064, false}} {
		d := newMariaDB(t)
		textStore(t, d, "things")
		inserts := 0
		s := newStore(t, d.before(t, func(statement string) error {
			if strings.HasPrefix(statement, "INSERT") {
				if inserts++; inserts == 1 {
					return fmt.Errorf("traced: %w", &mysql.MySQLError{Number: test.number})
				}
			}
			return nil
		}), oncesql.Options[string]{Table: "things"})
		v, err := s.Create(t.Context(), "k", "v")
		if test.repeat && (v != "v" || err != nil || inserts != 2) {
			t.Errorf("after error %d: Create = %q, %v, with %d inserts; want v, nil, 2", test.number, v, err, inserts)
		}
		if e, ok := errors.AsType[*mysql.MySQLError](err); !test.repeat && (!ok || e.Number != test.number || inserts != 1) {
			t.Errorf("after error %d: Create = %q, %v, with %d inserts; want that error, 1", test.number, v, err, inserts)
		}
	}
}

// A plain insert does not name the unique index.
func TestCreateRefusesAKeyThatIsNotUnique(t *testing.T) {
	const refused = `the column "id" has no unique index of its own, so a key could get several rows`
	d := newMariaDB(t)
	for i, test := range []struct {
		columns string
		unique  bool
	}{
		{"id varbinary(50), value text", false},
		{"id varbinary(50), value text, INDEX (id)", false},
		{"id varbinary(50), tenant int, value text, PRIMARY KEY (id, tenant)", false},
		{"id varbinary(50), tenant int, value text, UNIQUE (tenant, id)", false},
		{"id varbinary(50), other int UNIQUE, value text", false},
		{"id varbinary(50) PRIMARY KEY, value text", true},
		{"ID varbinary(50) PRIMARY KEY, value text", true},
		{"id varbinary(50) NULL UNIQUE, value text", true},
		{"id varbinary(50), tenant int DEFAULT 1, value text, PRIMARY KEY (id, tenant), INDEX (id), UNIQUE u (id)", true},
		{"id varbinary(50), value text, UNIQUE (id(10))", false}, // of a part
	} {
		table := fmt.Sprintf("t%d", i)
		d.exec(t, "CREATE TABLE `"+table+"` ("+strings.ReplaceAll(test.columns, " text", " longtext")+")")
		s := newStore(t, d, oncesql.Options[string]{Table: table, Key: "id"})
		for range 2 {
			v, err := s.Create(t.Context(), "k", "v")
			switch {
			case test.unique && (v != "v" || err != nil):
				t.Errorf("with %s: Create = %q, %v; want v", test.columns, v, err)
			case !test.unique && (v != "" || err == nil || !strings.Contains(err.Error(), refused)):
				t.Errorf("with %s: Create = %q, %v; want %s", test.columns, v, err, refused)
			}
		}
		rows := 0
		if test.unique {
			rows = 1
		}
		if n := d.number(t, "SELECT count(*) FROM `"+table+"`"); n != rows {
			t.Errorf("with %s: %d rows, want %d", test.columns, n, rows)
		}
	}
}

// The index may be created while a Store is in use.
func TestKeyThatWasMadeUniqueIsAccepted(t *testing.T) {
	d := newMariaDB(t)
	d.exec(t, "CREATE TABLE things (key text, value text)")
	looks := 0
	s := newStore(t, d.before(t, func(statement string) error {
		if strings.HasPrefix(statement, "SHOW") {
			looks++
		}
		return nil
	}), oncesql.Options[string]{Table: "things"})
	for range 3 {
		if v, err := s.Create(t.Context(), "k", "v"); err == nil {
			t.Fatalf("Create = %q, nil; want an error", v)
		}
	}
	d.exec(t, "ALTER TABLE things ADD UNIQUE (`key`)")
	for range 3 {
		if v, err := s.Create(t.Context(), "k", "v"); v != "v" || err != nil {
			t.Errorf("Create = %q, %v; want v", v, err)
		}
	}
	if looks != 4 {
		t.Errorf("looked for the index %d times, want until it was there, 4", looks)
	}
}

func TestKeyThatIsTooLongIsRefusedAndNotCut(t *testing.T) {
	d := newMariaDB(t)
	s := textStore(t, d, "things")
	long := strings.Repeat("k", 3072)
	if v, err := s.Create(t.Context(), long, "v"); v != "v" || err != nil {
		t.Errorf("Create of 3,072 bytes = %q, %v; want v", v, err)
	}
	for range 2 {
		v, err := s.Create(t.Context(), long+"k", "w")
		if v != "" || err == nil || !strings.Contains(err.Error(), "longer than its column, 3072") {
			t.Errorf("Create of 3,073 bytes = %q, %v; want that the key is too long", v, err)
		}
	}
	if _, err := s.Lookup(t.Context(), long+"k"); err == nil || errors.Is(err, fetchonce.ErrNotFound) {
		t.Errorf("Lookup of 3,073 bytes = %v; want that the key is too long", err)
	}
}

// Keys and values survive if the driver interpolates parameters, and with ANSI_QUOTES or
// NO_BACKSLASH_ESCAPES.
func TestValuesSurviveEachModeOfTheServer(t *testing.T) {
	for _, settings := range [][]string{
		{"interpolateParams=true"},
		{"sql_mode=%27ANSI_QUOTES,STRICT_TRANS_TABLES%27"},
		{"sql_mode=%27NO_BACKSLASH_ESCAPES,STRICT_TRANS_TABLES%27", "interpolateParams=true"},
		{"sql_mode=%27ORACLE,STRICT_TRANS_TABLES%27"},
		{"charset=utf8mb4", "collation=utf8mb4_unicode_ci"},
		{"clientFoundRows=true"},
		{"columnsWithAlias=true"},
		{"parseTime=true"},
	} {
		d := newMariaDB(t, settings...)
		for _, f := range forms {
			s := f.store(t, f.prepare(t, d))
			want := thing{`a \ b \\ c \" d ' e \x41 \101 日本 ` + "\U0001F600", 1}
			for range 2 {
				if v, err := s.Create(t.Context(), `k\'"`, want); v != want || err != nil {
					t.Errorf("%v, %s: Create = %v, %v; want %v", settings, f.name, v, err, want)
				}
			}
			if v, err := s.LookupMany(t.Context(), []string{`k\'"`, "absent"}); v[`k\'"`] != want || len(v) != 1 || err != nil {
				t.Errorf("%v, %s: LookupMany = %v, %v; want %v", settings, f.name, v, err, want)
			}
		}
	}
}

// A time, whose fractions MySQL rounds.
func TestCreateReturnsTheTimeThatMySQLRounded(t *testing.T) {
	d := newMariaDB(t, "parseTime=true")
	d.exec(t, "CREATE TABLE moments (key text PRIMARY KEY, at datetime)")
	s := newStore(t, d, oncesql.Options[time.Time]{
		Table:   "moments",
		Columns: []string{"at"},
		Values:  func(v time.Time) []any { return []any{v} },
		Scan: func(_ string, scan func(dest ...any) error) (v time.Time, err error) {
			err = scan(&v)
			return v, err
		},
	})
	sent := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	created, err := s.Create(t.Context(), "k", sent)
	if err != nil {
		t.Fatal(err)
	}
	found, err := s.Lookup(t.Context(), "k")
	if err != nil || !found.Equal(created) || created.Equal(sent) {
		t.Errorf("Create(%v) = %v, and Lookup = %v, %v; want them equal, and in seconds", sent, created, found, err)
	}
}
