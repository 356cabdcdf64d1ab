package drivertest_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	_ "github.com/lib/pq"           // as "postgres"
	_ "github.com/mattn/go-sqlite3" // as "sqlite3"

	"github.com/fetchonce/fetchonce/internal/daemon"
	"github.com/fetchonce/fetchonce/internal/mariadbtest"
	"github.com/fetchonce/fetchonce/internal/pgtest"
	"github.com/fetchonce/fetchonce/internal/programs"
	"github.com/fetchonce/fetchonce/oncesql"
)

// A conformingDriver is one row of the table of TestEachDriverConforms.
type conformingDriver struct {
	name     string
	server   *conformingServer
	driver   string
	settings string   // at the end of the DSN
	alter    []string // what another program does to the table "pages", in turn
}

// A conformingServer is a server that the test restarts.
type conformingServer struct {
	dialect oncesql.Dialect
	driver  string // of other programs
	others  string // settings of other programs
	calls   int    // of each driver
	run     func(dir string) (restartable, error)
	missing error // of run

	whole   *testing.T  // the test of all drivers
	running restartable // nil before the first driver, and for SQLite
}

// A restartable is a server of pgtest or of mariadbtest.
type restartable interface {
	daemon.Server
	Restart() error
	Stop() error
}

// These change the type of a result, and the plans of the statements. PostgreSQL
// need not write the table anew for them.
var alterPostgres = []string{
	"ALTER TABLE pages ALTER COLUMN slug TYPE varchar", "ALTER TABLE pages ADD COLUMN IF NOT EXISTS more text",
	"ALTER TABLE pages ALTER COLUMN slug TYPE text", "ALTER TABLE pages DROP COLUMN IF EXISTS more",
	"ALTER TABLE pages ALTER COLUMN key TYPE varchar", "ALTER TABLE pages ALTER COLUMN key TYPE text",
}

// For these it does, which is safe at READ COMMITTED only: see docs/database.md.
var rewritePostgres = []string{
	"ALTER TABLE pages ALTER COLUMN slug TYPE varchar(100)", "ALTER TABLE pages ALTER COLUMN slug TYPE text",
	"ALTER TABLE pages ALTER COLUMN key TYPE varchar(100)", "ALTER TABLE pages ALTER COLUMN key TYPE text",
}

var alterMariaDB = []string{
	"ALTER TABLE pages MODIFY slug varchar(300) NOT NULL", "ALTER TABLE pages ADD COLUMN IF NOT EXISTS more text",
	"ALTER TABLE pages MODIFY slug varchar(200) NOT NULL", "ALTER TABLE pages DROP COLUMN IF EXISTS more",
	"ALTER TABLE pages ENGINE=InnoDB",
}

var alterSQLite = []string{"ALTER TABLE pages ADD COLUMN more text", "ALTER TABLE pages DROP COLUMN more"}

// conforming returns the drivers, each with its server.
func conforming(t *testing.T) []conformingDriver {
	t.Helper()
	postgres := &conformingServer{
		whole:   t,
		dialect: oncesql.Postgres, driver: "pgx", calls: 600,
		others: "&default_query_exec_mode=exec&deadlock_timeout=10ms",
		run:    func(dir string) (restartable, error) { return pgtest.Run(dir) }, missing: pgtest.ErrNotInstalled,
	}
	mariaDB := &conformingServer{
		whole:   t,
		dialect: oncesql.MySQL, driver: "mysql", calls: 600,
		run: func(dir string) (restartable, error) { return mariadbtest.Run(dir) }, missing: mariadbtest.ErrNotInstalled,
	}
	sqlite := &conformingServer{dialect: oncesql.SQLite, calls: 300}
	const (
		timeouts     = "&deadlock_timeout=10ms&lock_timeout=2ms"
		serializable = "&default_transaction_isolation=serializable" + timeouts
	)
	return []conformingDriver{
		{"pgx cache_statement", postgres, "pgx", serializable, alterPostgres},
		{"pgx cache_describe", postgres, "pgx", serializable + "&default_query_exec_mode=cache_describe", alterPostgres},
		{"pgx describe_exec", postgres, "pgx", serializable + "&default_query_exec_mode=describe_exec", alterPostgres},
		{"pgx exec", postgres, "pgx", serializable + "&default_query_exec_mode=exec", alterPostgres},
		{"pgx simple_protocol", postgres, "pgx", serializable + "&default_query_exec_mode=simple_protocol", alterPostgres},
		{"pgx read committed", postgres, "pgx", timeouts, rewritePostgres},
		{"lib/pq", postgres, "postgres", serializable, alterPostgres},
		{"lib/pq binary_parameters", postgres, "postgres", timeouts + "&binary_parameters=yes", rewritePostgres},
		{"go-sql-driver", mariaDB, "mysql", "?tx_isolation=%27SERIALIZABLE%27", alterMariaDB},
		{"go-sql-driver interpolated", mariaDB, "mysql", "?innodb_snapshot_isolation=1&interpolateParams=true", alterMariaDB},
		{"modernc", sqlite, "sqlite", "?_pragma=busy_timeout(30000)&_pragma=journal_mode(wal)", alterSQLite},
		{"modernc without busy_timeout", sqlite, "sqlite", "?_pragma=journal_mode(wal)&_pragma=synchronous(off)", alterSQLite},
		{"mattn", sqlite, "sqlite3", "?_busy_timeout=30000&_journal_mode=WAL", alterSQLite},
		{"mattn with one cache", sqlite, "sqlite3", "?cache=shared&_synchronous=OFF", alterSQLite},
	}
}

// open returns an empty database for the driver, and connections of another
// program to it. The first driver of a server starts it.
func (d conformingDriver) open(t *testing.T, name string) (db, others database) {
	t.Helper()
	s := d.server
	if d.driver == "sqlite3" && !hasCgo {
		programs.Missing(t, errors.New("go-sqlite3 needs cgo, without which this test is built for "+runtime.GOOS))
	}
	if s.run == nil {
		db = open(t, s.dialect, d.driver, "file:"+filepath.Join(t.TempDir(), "test.db")+d.settings)
		return db, db.again(t) // of the same driver: two copies of SQLite in a process destroy a file
	}
	if s.running == nil {
		s.start(t)
	}
	dsn, err := s.running.CreateDatabase(name)
	if err != nil {
		t.Fatal(err)
	}
	return open(t, s.dialect, d.driver, dsn+d.settings), open(t, s.dialect, s.driver, dsn+s.others)
}

// start starts the server for the whole test, or skips a driver's.
func (s *conformingServer) start(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp(daemon.TempDir(), "conform") //nolint:usetesting // the server's user cannot enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	s.whole.Cleanup(func() { _ = os.RemoveAll(dir) })
	server, err := s.run(dir)
	if errors.Is(err, s.missing) {
		programs.Missing(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.running = server
	s.whole.Cleanup(func() { _ = server.Stop() })
}
